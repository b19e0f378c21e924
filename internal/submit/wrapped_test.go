package submit

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime/quotedprintable"
	"testing"
)

// pieces undoes an encoding in two pieces.
func pieces(u undoer, b []byte, at int) ([]byte, bool) {
	first, rest := bytes.Clone(b[:at]), bytes.Clone(b[at:])
	n, ok := u.undo(first)
	if !ok {
		return nil, false
	}
	m, ok := u.undo(rest)
	return append(first[:n], rest[:m]...), ok
}

// FuzzUndo: what the standard library encodes comes back, wherever the input is cut; anything else does no harm.
func FuzzUndo(f *testing.F) {
	f.Add([]byte("MAIL FROM:<a@c.x>\r\n\xff=\x00 \n"), 3)
	f.Add([]byte("=\r\n=3D=\t\n"), 1)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		at = max(0, at) % (len(b) + 1)
		pieces(&unbase64{}, b, at)
		pieces(&unquote{}, b, at)
		e := []byte(base64.StdEncoding.EncodeToString(b))
		if got, ok := pieces(&unbase64{}, e, min(at, len(e))); !ok || !bytes.Equal(got, b) {
			t.Errorf("base64 %q: got %q", e, got)
		}
		var q bytes.Buffer
		w := quotedprintable.NewWriter(&q)
		w.Binary = true
		w.Write(b)
		w.Close()
		if got, ok := pieces(&unquote{}, q.Bytes(), min(at, q.Len())); !ok || !bytes.Equal(got, b) {
			t.Errorf("quoted-printable %q: got %q, want %q", q.Bytes(), got, b)
		}
		if want, err := io.ReadAll(quotedprintable.NewReader(&q)); err != nil || !bytes.Equal(want, b) {
			t.Skip("the library does not read what it wrote")
		}
	})
}
