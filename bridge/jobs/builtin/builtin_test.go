package builtin

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mochila/bridge/jobs/tree"
)

// run does a job and returns its exit status, output and what it says.
func run(s Settings, in []byte, args ...string) (int, []byte, string) {
	var out, errs bytes.Buffer
	env := map[string]string{"MOCHILA_JOB_ID": "JOB", "MOCHILA_STDIN_SIZE": fmt.Sprint(len(in))}
	status := s.Run(args, &Process{In: bytes.NewReader(in), Out: &out, Err: &errs, Getenv: func(k string) string { return env[k] }})
	return status, out.Bytes(), errs.String()
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// names lists the entries of a tree.
func names(t *testing.T, b []byte) (list []string) {
	t.Helper()
	r := tree.NewReader(bytes.NewReader(b), int64(len(b)))
	for {
		e, err := r.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e.Name)
	}
}

func TestLocate(t *testing.T) {
	s := Settings{Folders: []string{"/srv/in/%n", "/srv", "/var/log"}, Peer: "camp"}
	for p, want := range map[string]string{
		"": "/srv/in/camp .", ".": "/srv/in/camp .", "a/b": "/srv/in/camp a/b", "a//./b/": "/srv/in/camp a/b",
		"/srv": "/srv .", "/srv/": "/srv .", "/srv/x": "/srv x", "/srv/in/camp": "/srv/in/camp .", "/srv/in/camp/x": "/srv/in/camp x",
		"/srv/in/camp2": "/srv in/camp2", "/var/log/a": "/var/log a",
		"/srvx": "", "/": "", "/etc": "", "..": "", "../x": "", "a/../b": "", "/srv/../etc": "", "a\x00": "", strings.Repeat("x", 5000): "",
	} {
		folder, rel, err := s.locate(p)
		if got := folder + " " + rel; err == nil && got != want || (err == nil) == (want == "") {
			t.Errorf("%.20q is %q, %v; want %q", p, got, err, want)
		}
	}
	if _, _, err := (Settings{}).locate("x"); err == nil {
		t.Error("a place without folders")
	}
}

func TestGet(t *testing.T) {
	top := t.TempDir()
	dir, out := filepath.Join(top, "open"), filepath.Join(top, "closed")
	write(t, filepath.Join(dir, "a.txt"), "a")
	write(t, filepath.Join(dir, "b.txt"), "b")
	write(t, filepath.Join(dir, "sub", "c"), "c")
	write(t, filepath.Join(out, "secret"), "s")
	for name, to := range map[string]string{"in": "sub", "alias": "a.txt", "out": "../closed", "abs": out, "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := Settings{Kind: Get, Folders: []string{dir}, Output: 1 << 20}
	for _, c := range []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{"a.txt"}, 0, []string{"a.txt"}},
		{[]string{"*.txt", "sub"}, 0, []string{"a.txt", "b.txt", "sub", "sub/c"}},
		{[]string{"[a-b].txt"}, 0, []string{"a.txt", "b.txt"}},
		{[]string{dir + "/sub/*"}, 0, []string{"c"}},
		{[]string{"in"}, 0, []string{"in", "in/c"}},
		{[]string{"alias"}, 0, []string{"alias"}},
		{[]string{"."}, 0, []string{"open", "open/a.txt", "open/b.txt", "open/sub", "open/sub/c", "open/alias", "open/in", "open/loop"}},
		{[]string{"none"}, 66, nil},
		{[]string{"none*"}, 66, nil},
		{[]string{"[a"}, 64, nil},
		{[]string{"out"}, 66, nil},
		{[]string{"out/secret"}, 66, nil},
		{[]string{"abs/secret"}, 66, nil},
		{[]string{"out/*"}, 66, nil},
		{[]string{"loop"}, 66, nil},
		{[]string{"../closed/secret"}, 77, nil},
		{[]string{out}, 77, nil},
		{[]string{"sub/c", "in/c"}, 66, nil}, // two of one name
		{nil, 64, nil},
	} {
		status, b, said := run(s, nil, c.args...)
		if status != c.status || (status == 0) != (said == "" || len(c.args) > 0 && c.args[0] == ".") {
			t.Errorf("%q: %d, %q; want %d", c.args, status, said, c.status)
		}
		if strings.Contains(said, "secret") && !strings.Contains(strings.Join(c.args, ""), "secret") || bytes.Contains(b, []byte("secret")) {
			t.Errorf("%q tells what is elsewhere: %q", c.args, said)
		}
		if status != 0 {
			continue
		}
		got := names(t, b)
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.args, got, c.want)
		}
	}
	s.Output = 2000
	if status, _, said := run(s, nil, "."); status != 65 || !strings.Contains(said, "more than the 2000 bytes") {
		t.Errorf("too much: %d, %q", status, said)
	}
	s.Folders = []string{filepath.Join(top, "unmounted")}
	if status, _, _ := run(s, nil, "a"); status != 75 {
		t.Errorf("a folder that is not there: %d", status)
	}
	if _, err := os.Stat(filepath.Join(top, "unmounted")); err == nil {
		t.Error("it was made")
	}
}

func TestFile(t *testing.T) {
	from, top := t.TempDir(), t.TempDir()
	write(t, filepath.Join(from, "f"), "content")
	root, err := os.OpenRoot(from)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	if _, err := tree.Pack(&b, []tree.Source{{Root: root, Path: "f", Name: "f"}}, nil); err != nil {
		t.Fatal(err)
	}
	s := Settings{Kind: File, Folders: []string{filepath.Join(top, "%n")}, Peer: "camp"}
	if status, out, said := run(s, b.Bytes(), "a/b"); status != 0 || !strings.Contains(string(out), "camp/a/b/f") {
		t.Fatalf("%d, %s, %s", status, out, said)
	}
	if got, _ := os.ReadFile(filepath.Join(top, "camp", "a", "b", "f")); string(got) != "content" {
		t.Errorf("got %q", got)
	}
	if err := os.Symlink(from, filepath.Join(top, "camp", "out")); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]int{"a/b": 0, "out": 73, "out/x": 73, "a/b/f": 73, "../x": 77, "x y": 0} {
		if status, _, said := run(s, b.Bytes(), args); status != want {
			t.Errorf("%q: %d, %s; want %d", args, status, said, want)
		}
	}
	if status, _, _ := run(s, b.Bytes()[:700], ""); status != 65 {
		t.Errorf("cut: %d", status)
	}
	if status, _, _ := run(s, b.Bytes(), "a", "b"); status == 0 {
		t.Error("two folders")
	}
	if list, _ := os.ReadDir(from); len(list) != 1 {
		t.Errorf("outside: %v", list)
	}
	s.Kind = "shell"
	if status, _, _ := run(s, nil); status != 78 {
		t.Errorf("an unknown kind: %d", status)
	}
}
