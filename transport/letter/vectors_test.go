package letter

import (
	"bytes"
	"encoding/base32"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// vectorPacket is the packet in the vectors: 300 bytes.
func vectorPacket() []byte {
	b := make([]byte, 300)
	for i := range b {
		b[i] = byte(i*7 + 3)
	}
	return b
}

// wants are the parts in those vectors that do not hold the whole packet in one.
var wants = map[string][]Part{
	"ok-two-parts.eml":   {{Offset: 200, Length: 100}, {Offset: 0, Length: 200}},
	"ok-second-part.eml": {{Offset: 200, Length: 100}},
}

func parts(r io.Reader) (got []Part, datas [][]byte, err error) {
	m, err := Open(r)
	if err != nil {
		return nil, nil, err
	}
	err = m.Parts(func(p Part, data io.Reader) error {
		b, err := io.ReadAll(data)
		if err == nil {
			got, datas = append(got, p), append(datas, b)
		}
		return err
	})
	return got, datas, err
}

// TestVectors: letters that another program wrote, as they come out of mail servers, and broken ones named after
// their defect.
func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil || len(files) < 35 {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	packet := vectorPacket()
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "bounce-") {
			continue
		}
		mail, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, datas, err := parts(bytes.NewReader(mail))
		switch {
		case strings.HasPrefix(name, "ok-"):
			want := wants[name]
			if want == nil {
				want = []Part{{Length: 300}}
			}
			if err != nil || len(got) != len(want) {
				t.Errorf("%s: %d parts, %v", name, len(got), err)
				continue
			}
			for i, w := range want {
				w.Packet, w.Size = vectorName(t), 300
				if got[i] != w || !bytes.Equal(datas[i], packet[w.Offset:w.Offset+w.Length]) {
					t.Errorf("%s: part %d is %+v", name, i, got[i])
				}
			}
		case strings.HasPrefix(name, "none-"):
			if !errors.Is(err, ErrNoLetter) {
				t.Errorf("%s: %v, want ErrNoLetter", name, err)
			}
		default:
			if !errors.Is(err, ErrDamaged) || len(got) != 0 {
				t.Errorf("%s: %d parts, %v, want ErrDamaged", name, len(got), err)
			}
		}
	}
}

// vectorName is what the vectors call their packet. A letter does not ask whether it is the hash of its bytes.
func vectorName(t *testing.T) (name [32]byte) {
	b, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper("ar3t7bzgzaok7t5bucniezsltcya2ibbamnbofn4ueku6lnngrza"))
	if err != nil || copy(name[:], b) != len(name) {
		t.Fatal(err)
	}
	return name
}

func TestBounces(t *testing.T) {
	name := vectorName(t)
	for file, want := range map[string]Bounce{
		"bounce-failed.eml":     {name, true, "550 5.1.1 <mochila@hub.example>: user unknown"},
		"bounce-delayed.eml":    {name, false, "550 5.1.1 <mochila@hub.example>: user unknown"},
		"bounce-relayed.eml":    {name, false, "550 5.1.1 <mochila@hub.example>: user unknown"},
		"bounce-old-form.eml":   {name, true, "failure notice"},
		"bounce-of-another.eml": {[32]byte{}, true, "550 5.1.1 <mochila@hub.example>: user unknown"},
	} {
		f, err := os.Open(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		m, err := Open(f)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		got, err := m.Bounce()
		if err != nil || got != want || !m.IsBounce("") {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
		f.Close()
	}
	m, err := Open(strings.NewReader("From: a@b\n\nhello\n"))
	if err != nil || m.IsBounce("a@b") || !m.IsBounce("<>") {
		t.Errorf("a plain mail is a bounce only from the null sender: %v", err)
	}
}
