package control

import (
	"context"
	"errors"
	"strings"
	"testing"

	"mochila/internal/envelope"
)

func TestCheckAuthors(t *testing.T) {
	ps, err := patterns([]string{"ana@camp.example", "*.lists.example"})
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]string{
		"From: Ana <ana@camp.example>\r\n":                                                       "",
		"From: ana@CAMP.example, x@a.lists.example\r\nSender: <ana@camp.example>\r\n":            "",
		"Subject: nobody says who wrote it\r\n":                                                  "",
		"From: =?x-unknown?q?Ana?= <ana@camp.example>\r\n":                                       "",
		"From: \"boss@camp.example\"\r\n <ana@camp.example>\r\n":                                 "",
		"From: boss@camp.example\r\n":                                                            "From: <boss@camp.example> is not allowed for ana",
		"FROM :\r\n\tboss@camp.example\r\n":                                                      "FROM: <boss@camp.example> is not allowed for ana",
		"From: ana@camp.example\r\nFrom: boss@camp.example\r\n":                                  "not allowed",
		"From: ana@camp.example, boss@camp.example\r\n":                                          "not allowed",
		"From: Team: ana@camp.example, boss@camp.example;\r\n":                                   "not allowed",
		"From: ana@camp.example\r\nSender: boss@camp.example\r\n":                                "Sender: <boss@camp.example> is not allowed",
		"From: \"ana@camp.example\" <boss@camp.example>\r\n":                                     "not allowed",
		"From: <ana@camp.example> boss@camp.example\r\n":                                         "cannot be read",
		"From: ana@camp.example@evil.example\r\n":                                                "cannot be read",
		"Reply-To: boss@camp.example\r\nX-From: boss@camp.example\r\nFrom: ana@camp.example\r\n": "",
	} {
		err := checkAuthors([]byte(header), ps, "ana", "camp.example")
		var st *envelope.Status
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", header, err)
		case want != "" && (!errors.As(err, &st) || st.Code != 553 || st.Enhanced != "5.7.1" || !strings.Contains(st.Text, want)):
			t.Errorf("%q: %v, want %q", header, err, want)
		}
	}
	if err := checkAuthors(nil, ps, "ana", "camp.example"); err == nil {
		t.Error("a header without an end is let through")
	}
}

// TestHeadIntake: the header is seen whole, however the content is cut, and all passes as it came.
func TestHeadIntake(t *testing.T) {
	long := "X: " + strings.Repeat("y", maxHeader) + "\r\n"
	for name, c := range map[string]struct {
		content, header string
		whole           bool
	}{
		"usual":       {"A: b\r\nC: d\r\n\r\nbody\r\n\r\nmore\r\n", "A: b\r\nC: d\r\n", true},
		"no header":   {"\r\nbody\r\n", "", true},
		"header only": {"A: b\r\n", "A: b\r\n", true},
		"too long":    {long + "\r\nbody\r\n", "", false},
		"no end":      {long, "", false},
		"nothing":     {"", "", false},
	} {
		for _, step := range []int{1, 3, 1 << 20} {
			if step == 1 && len(c.content) > 1000 {
				continue
			}
			under := &plainIntake{}
			calls := 0
			in := &headIntake{in: under, change: func(h []byte) ([]byte, error) {
				calls++
				if string(h) != c.header || (h != nil) != c.whole {
					t.Errorf("%s by %d: header %.50q, whole %v", name, step, h, h != nil)
				}
				return h, nil
			}}
			for rest := c.content; rest != ""; {
				n := min(step, len(rest))
				if _, err := in.Write([]byte(rest[:n])); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if _, err := in.Commit(context.Background()); err != nil || under.String() != c.content || calls != 1 || under.committed != 1 {
				t.Errorf("%s by %d: %v, %d calls, %d bytes of %d", name, step, err, calls, len(under.String()), len(c.content))
			}
		}
	}
	under := &plainIntake{}
	no := errors.New("no")
	in := &headIntake{in: under, change: func([]byte) ([]byte, error) { return nil, no }}
	if _, err := in.Commit(context.Background()); !errors.Is(err, no) || under.aborted != 1 || under.committed != 0 {
		t.Errorf("a refusal at the end: %v, aborted %d", err, under.aborted)
	}
}
