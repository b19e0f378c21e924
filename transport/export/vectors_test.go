package export

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/envelope"
	"mochila/transport/transporttest"
)

var update = flag.Bool("update", false, "write the vectors of testdata anew (only when the format changes)")

// vectors are streams: good ones, whose name begins with ok-, and headers with one defect each. The first line of a file says what a
// reader makes of it.
func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	v := map[string][]byte{}
	for name, o := range map[string]Options{"ok-one-part": {Block: 64}, "ok-2-and-1": {Data: 2, Parity: 1, Block: 64}} {
		_, parts := someSet(t, o, 40, 100, 33)
		v[name] = bytes.Join(parts, nil)
	}
	_, parts := someSet(t, Options{}, 40)
	good := parts[0]
	v["ok-small"] = good
	v["ok-between-rubbish"] = bytes.Join([][]byte{[]byte("label"), good[:70], magic, good, good[:100]}, nil)
	header := func(name string, change func(b []byte)) {
		b := bytes.Clone(good)
		change(b)
		binary.BigEndian.PutUint32(b[headerSum:], crc32.Checksum(b[:headerSum], castagnoli))
		sum := blockSum(b[:headerSum], b[HeaderSize:])
		copy(b[headerSum+4:], sum[:])
		v[name] = b
	}
	header("version-2", func(b []byte) { b[4] = 2 })
	header("flag-2", func(b []byte) { b[5] |= 2 })
	header("no-data-shards", func(b []byte) { b[6] = 0 })
	header("257-shards", func(b []byte) { b[6], b[7] = 255, 2 })
	header("shard-beyond-the-last", func(b []byte) { b[8] = 1 })
	header("block-of-63", func(b []byte) { b[9], b[10], b[11] = 0, 0, 63 })
	header("block-above-1MiB", func(b []byte) { b[9], b[10], b[11] = 16, 0, 1 })
	header("stripe-above-16MiB", func(b []byte) { b[6], b[9] = 255, 16 })
	header("set-too-long", func(b []byte) { b[36] = 1 })
	header("packet-behind-the-end", func(b []byte) { binary.BigEndian.PutUint32(b[42:], 74) })
	header("content-0", func(b []byte) { binary.BigEndian.PutUint32(b[46:], 0) })
	header("content-above-the-stripe", func(b []byte) { binary.BigEndian.PutUint32(b[46:], 1<<16+1) })
	header("content-short-and-not-last", func(b []byte) { b[5] = 0 })
	header("reserved-bytes", func(b []byte) { b[51] = 1 })
	v["header-bit"] = bytes.Clone(good)
	v["header-bit"][20] ^= 1
	v["payload-bit"] = bytes.Clone(good)
	v["payload-bit"][HeaderSize+5] ^= 1
	v["cut-off"] = good[:len(good)-1]
	header("record-of-kind-2", func(b []byte) { b[HeaderSize] = 2 })
	header("packet-of-0", func(b []byte) { b[HeaderSize+33] = 0 })
	header("packet-beyond-the-end", func(b []byte) { b[HeaderSize+33] = 41 })
	header("size-not-shortest", func(b []byte) { b[HeaderSize+33], b[HeaderSize+34] = 0xa8, 0 })
	header("packet-name", func(b []byte) { b[HeaderSize+1] ^= 1 })
	return v
}

// verdict is what a reader makes of a stream.
func verdict(t *testing.T, b []byte) string {
	t.Helper()
	m := importer(t, t.TempDir())
	defer m.Close()
	got, scans := feed(t, m, transporttest.NewStation(""), b)
	s := fmt.Sprintf("# %d blocks, %d damaged, %d bytes of rubbish", scans[0].Blocks, scans[0].Damaged, scans[0].Garbage)
	for _, x := range got {
		s += fmt.Sprintf("; %d packets, %d damaged, complete %v", x.Packets, x.Damaged, x.Complete)
	}
	if f := scans[0].Foreign; f != nil {
		s += "; " + f.Error()
	}
	return s
}

func TestVectors(t *testing.T) {
	all := vectors(t)
	if *update {
		os.RemoveAll("testdata")
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		for name, b := range all {
			text := verdict(t, b) + "\n" + hex.Dump(b)
			if err := os.WriteFile(filepath.Join("testdata", name+".hex"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, _ := filepath.Glob("testdata/*.hex")
	if len(files) != len(all) {
		t.Errorf("%d vectors on disk, %d in the table", len(files), len(all))
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".hex")
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		first, dump, _ := strings.Cut(string(text), "\n")
		b := undump(t, dump)
		if !bytes.Equal(b, all[name]) {
			t.Errorf("%s: the table has other bytes", name)
		}
		if got := verdict(t, b); got != first {
			t.Errorf("%s: got %q, want %q", name, got, first)
		}
		if ok := strings.Contains(first, "complete true") && !strings.Contains(first, "packets, 1 damaged") && !strings.Contains(first, "1 damaged, 0 bytes"); ok != strings.HasPrefix(name, "ok-") {
			t.Errorf("%s: %s", name, first)
		}
	}
}

// undump reads what hex.Dump wrote.
func undump(t *testing.T, s string) (b []byte) {
	t.Helper()
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line[min(len(line), 8):], "|")
		x, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, x...)
	}
	return b
}

// FuzzImport: whatever is read, a block is written again as it was, and nothing but whole packets reaches the station (it hashes).
func FuzzImport(f *testing.F) {
	for _, o := range []Options{{Block: 64}, {Data: 2, Parity: 1, Block: 64}} {
		_, parts := someSet(f, o, 40, 100, 33)
		f.Add(bytes.Join(parts, nil))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		// A fuzzer does not find checksums: each header gets its own.
		for i := 0; i+HeaderSize <= len(b); i++ {
			if bytes.Equal(b[i:i+4], magic) {
				binary.BigEndian.PutUint32(b[i+headerSum:], crc32.Checksum(b[i:i+headerSum], castagnoli))
				if h, err := parseHeader(b[i:]); err == nil && i+HeaderSize+h.payload() <= len(b) {
					sum := blockSum(b[i:i+headerSum], b[i+HeaderSize:i+HeaderSize+h.payload()])
					copy(b[i+headerSum+4:], sum[:])
				}
				i += HeaderSize - 1
			}
		}
		s := NewScanner(bytes.NewReader(b))
		for {
			h, raw, err := s.Raw()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if again := h.append(nil, raw[HeaderSize:]); !bytes.Equal(again, raw[:HeaderSize]) {
				t.Errorf("%x is written again as %x", raw[:HeaderSize], again)
			}
		}
		m, err := OpenImporter(dir, ImporterOptions{Self: shore, Peer: func(envelope.Label) bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		run, err := m.Begin(t.Context(), transporttest.NewStation(""))
		if err != nil {
			t.Fatal(err)
		}
		err = Merge(func(h Header, raw []byte) error { return run.Add(t.Context(), &Block{h, raw[HeaderSize:]}) }, NewScanner(bytes.NewReader(b)))
		if _, e := run.End(); err != nil || e != nil {
			t.Fatal(err, e)
		}
	})
}
