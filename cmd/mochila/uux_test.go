package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseUUX(t *testing.T) {
	for _, c := range []struct {
		args string // separated by |
		site string
		cmd  string
		want []string
		in   bool
		bad  string
	}{
		{args: "-r|-n|-z|-aeve@camp.example|-|hub!rmail|(ana@hub.example)", site: "hub", cmd: "rmail", want: []string{"ana@hub.example"}, in: true},
		{args: "-|-r|-aeve@camp.example|-gC|hub!rsmtp", site: "hub", cmd: "rsmtp", in: true},
		{args: "-a|eve|-g|C|-p|hub!rmail (a@x) (b c@x)", site: "hub", cmd: "rmail", want: []string{"a@x", "b c@x"}, in: true},
		{args: "-rnzj|hub!backup|daily|--full", site: "hub", cmd: "backup", want: []string{"daily", "--full"}},
		{args: "--requestor=eve|--nouucico|--stdin|hub!x", site: "hub", cmd: "x", in: true},
		{args: "--grade|C|-|hub!x|(-rf)", site: "hub", cmd: "x", want: []string{"-rf"}, in: true},
		{args: "-a|", bad: "command is missing"},
		{args: "-k|hub!x", bad: "unknown option -k"},
		{args: "--what|hub!x", bad: "unknown option"},
		{args: "rmail|ana", bad: "is not SITE!COMMAND"},
		{args: "a!b!rmail|ana", bad: "is not SITE!COMMAND"},
		{args: "hub!cat|other!file", bad: "file of another machine"},
		{args: "hub!cat|>out", bad: "file of another machine"},
	} {
		u, err := parseUUX(strings.Split(c.args, "|"))
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%q: %v, want %q", c.args, err, c.bad)
			}
			continue
		}
		if err != nil || u.site != c.site || u.command != c.cmd || !slices.Equal(u.args, c.want) || u.stdin != c.in {
			t.Errorf("%q: %+v, %v", c.args, u, err)
		}
	}
}

// batchText is what the compressed vectors hold.
func batchText() []byte {
	var b bytes.Buffer
	for i := range 3000 {
		b.WriteString(strings.Repeat("abcdefghijklmnop"[i%13:], i%7))
		b.WriteByte(byte(i * i >> 3))
		b.WriteString("line of a batch\n")
	}
	return b.Bytes()
}

// TestUnpack reads what compress, gzip and bzip2 wrote.
func TestUnpack(t *testing.T) {
	want := batchText()
	for _, name := range []string{"batch.Z", "batch12.Z", "batch.gz", "batch.bz2", "batch"} {
		var packed []byte
		if name == "batch" {
			packed = want
		} else {
			var err error
			if packed, err = os.ReadFile(filepath.Join("testdata/packed", name)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := unpackAny(bytes.NewReader(packed))
		var got []byte
		if err == nil {
			got, err = io.ReadAll(r)
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
	for name, b := range map[string][]byte{
		"no header": {0x1f, 0x9d}, "another magic": {0x1f, 0x9e, 0x90}, "9 bits": {0x1f, 0x9d, 0x89}, "17 bits": {0x1f, 0x9d, 0x91},
		"reserved bits": {0x1f, 0x9d, 0xf0}, "first code too large": {0x1f, 0x9d, 0x90, 0xff, 0xff}, "code before its time": {0x1f, 0x9d, 0x90, 'a', 0xfe, 0xff},
	} {
		r, err := newZReader(bytes.NewReader(b))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, errZ) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzUnpackZ: whatever is fed, it ends, without a panic, and never makes more than the format allows of its input.
func FuzzUnpackZ(f *testing.F) {
	for _, name := range []string{"batch.Z", "batch12.Z"} {
		if b, err := os.ReadFile(filepath.Join("testdata/packed", name)); err == nil {
			f.Add(b[:min(len(b), 3000)])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := newZReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, r)
		if n > int64(len(b))*65536 {
			t.Errorf("%d bytes from %d", n, len(b))
		}
	})
}

// TestDecompressTellsOfDamage: a batch that is cut is not taken for a whole one.
func TestDecompressTellsOfDamage(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(batchText())
	w.Close()
	for _, cut := range []int{5, packed.Len() / 2, packed.Len() - 1} {
		if err := decompress(io.Discard, bytes.NewReader(packed.Bytes()[:cut]), unpackAny); err == nil {
			t.Errorf("cut at %d of %d: no error", cut, packed.Len())
		}
	}
}
