package envelope

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
)

// seeds adds the vectors of one kind.
func seeds(f *testing.F, kind string, add func(b []byte)) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", kind, "*.hex"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no vectors of %s: %v", kind, err)
	}
	for _, v := range vectors() {
		if v.kind == kind {
			add(v.b)
		}
	}
}

// FuzzEnvelope asserts that what parses is the only encoding of its value, in both forms, and may travel.
func FuzzEnvelope(f *testing.F) {
	for _, kind := range []string{"envelope", "stored"} {
		seeds(f, kind, func(b []byte) { f.Add(b) })
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEnvelope(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("%v does not wrap ErrFormat", err)
			}
		} else {
			if got := AppendEnvelope(nil, e); !bytes.Equal(got, b) {
				t.Fatalf("%x is written again as %x", b, got)
			}
			if err := e.Check(); err != nil {
				t.Fatalf("parsed, but %v", err)
			}
			if _, err := ParseStored(b); err != nil {
				t.Fatalf("the stored form refuses it: %v", err)
			}
		}
		if e, err := ParseStored(b); err == nil {
			if got := AppendStored(nil, e); !bytes.Equal(got, b) {
				t.Fatalf("stored %x is written again as %x", b, got)
			}
		}
	})
}

// FuzzRecords asserts the same of all other records; the first argument picks the kind.
func FuzzRecords(f *testing.F) {
	kinds := []string{"held", "refused", "close", "reset", "fork", "greeting", "invite-proof", "channel", "resume"}
	for i, kind := range kinds {
		seeds(f, kind, func(b []byte) { f.Add(byte(i), b) })
	}
	f.Fuzz(func(t *testing.T, i byte, b []byte) {
		out, err := parsers[kinds[int(i)%len(kinds)]](b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("%v does not wrap ErrFormat", err)
			}
			return
		}
		if !bytes.Equal(out, b) {
			t.Fatalf("%x is written again as %x", b, out)
		}
	})
}
