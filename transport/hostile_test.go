package transport_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// rawFrame encodes one frame as docs/link.md says, independently of the implementation.
func rawFrame(t byte, body []byte) []byte {
	b := append(binary.AppendUvarint([]byte{t}, uint64(len(body))), body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func nums(n ...uint64) (b []byte) {
	for _, x := range n {
		b = binary.AppendUvarint(b, x)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

const hello = "mch\x01"

// speak sends raw bytes to an answering node and returns what it said and how it ended.
func speak(t testing.TB, st *transporttest.Station, o transport.StreamOptions, raw []byte) (said []byte, stats transport.Stats, err error) {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		stats, err = transport.Answer(t.Context(), b, st, o)
	}()
	heard := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(a) // ends when the other side closes
		heard <- all
	}()
	a.SetWriteDeadline(time.Now().Add(time.Minute))
	a.Write(raw) // fails when the node hangs up first, which is its right
	a.Close()
	<-done
	return <-heard, stats, err
}

func TestHostileFrames(t *testing.T) {
	partials := openPartials(t)
	first := join([]byte(hello), rawFrame(1, []byte("ship")))
	id, head := make([]byte, 32), make([]byte, 32)
	offer := func(size uint64) []byte { return rawFrame(3, join(id, head, []byte{0}, nums(size))) }
	oneByteOff := rawFrame(2, []byte("packet"))
	oneByteOff[4] ^= 1
	many := []byte{}
	for range 40 {
		id = transporttest.Random(uint64(len(many)), 32)
		many = append(many, offer(1000)...)
	}
	for name, raw := range map[string][]byte{
		"nothing":                 {},
		"http":                    []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"other version":           []byte("mch\x02"),
		"no greeting":             join([]byte(hello), rawFrame(10, nums(0, 0, 0))),
		"empty greeting":          join([]byte(hello), rawFrame(1, nil)),
		"greeting too long":       join([]byte(hello), []byte{1}, nums(65537)),
		"greeting of 2^62":        join([]byte(hello), []byte{1}, nums(1<<62)),
		"two greetings":           join(first, rawFrame(1, []byte("ship"))),
		"type 0":                  join(first, rawFrame(0, nil)),
		"type 200":                join(first, rawFrame(200, nil)),
		"long length":             join(first, []byte{2, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}),
		"padded length":           join(first, []byte{2, 0x81, 0x00}),
		"packet too long":         join(first, []byte{2}, nums(65537)),
		"empty packet":            join(first, rawFrame(2, nil)),
		"checksum":                join(first, oneByteOff),
		"cut packet":              join(first, rawFrame(2, make([]byte, 1000))[:500]),
		"short offer":             join(first, rawFrame(3, make([]byte, 65))),
		"offer of nothing":        join(first, offer(0)),
		"offer of 2^63":           join(first, offer(1<<63)),
		"offer with tail":         join(first, rawFrame(3, join(id, head, []byte{0}, nums(1000, 1)))),
		"offers without end":      join(first, many),
		"data without offer":      join(first, rawFrame(5, join(nums(0), []byte("xxxxx")))),
		"data beyond the end":     join(first, offer(100), rawFrame(5, join(nums(0), make([]byte, 101)))),
		"cancel without offer":    join(first, rawFrame(12, nums(0))),
		"want without offer":      join(first, rawFrame(4, nums(0, 0))),
		"verdict without offer":   join(first, rawFrame(6, nums(0, 0))),
		"verdict unknown":         join(first, rawFrame(6, nums(0, 77))),
		"acknowledges too much":   join(first, rawFrame(7, nums(1))),
		"done with too much":      join(first, rawFrame(8, nums(5, 0, 0))),
		"done with too many":      join(first, rawFrame(8, nums(0, 5, 0))),
		"done short":              join(first, rawFrame(8, nums(0, 5))),
		"done long":               join(first, rawFrame(8, nums(0, 0, 0, 0))),
		"bye with escape codes":   join(first, rawFrame(10, []byte("\x1b[31m\n\x00"))),
		"ping with a body":        join(first, rawFrame(11, []byte("x"))),
		"ends inside a checksum":  join(first, rawFrame(2, []byte("packet"))[:9]),
		"ends inside a length":    join(first, []byte{2, 0x80}),
		"the reflected greeting?": join(first, first),
	} {
		t.Run(name, func(t *testing.T) {
			st := transporttest.NewStation("shore")
			_, stats, err := speak(t, st, transport.StreamOptions{Partials: partials}, raw)
			if err == nil {
				t.Fatal("accepted")
			}
			if stats.PacketsIn != 0 || st.Partial() != 0 {
				t.Errorf("%d packets came of it, %d in part", stats.PacketsIn, st.Partial())
			}
			if bytes.ContainsAny([]byte(err.Error()), "\x1b\n\x00") {
				t.Errorf("control characters in %q", err)
			}
		})
	}
}

// The worked example of docs/link.md: a caller with one packet, written and read byte by byte.
func TestFramesOnTheWire(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	a.SetDeadline(time.Now().Add(5 * time.Minute))
	done := make(chan error)
	st := transporttest.NewStation("shore")
	go func() {
		_, err := transport.Answer(t.Context(), b, st, transport.StreamOptions{})
		done <- err
	}()
	say := unhex(t, "6d636801 0104 73686970 ce58b587 0205 68656c6c6f e9fea2ea 0803 000000 e237f49d")
	if _, err := a.Write(say); err != nil {
		t.Fatal(err)
	}
	// A DONE for nothing may come before the packet is dealt with.
	all, _ := io.ReadAll(a)
	hear := bytes.Replace(all, unhex(t, "0803 000000 e237f49d"), nil, 1)
	if want := unhex(t, "6d636801 0105 73686f7265 497c7ee9 0803 010000 477666e3"); !bytes.Equal(hear, want) {
		t.Errorf("heard % x, want % x", hear, want)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzAnswer(f *testing.F) {
	first := join([]byte(hello), rawFrame(1, []byte("ship")))
	f.Add([]byte("mch"))
	f.Add(first)
	f.Add(join(first, rawFrame(2, []byte("packet")), rawFrame(8, nums(0, 0, 0))))
	f.Add(join(first, rawFrame(3, join(make([]byte, 65), nums(100))), rawFrame(5, join(nums(0), make([]byte, 100)))))
	f.Add(join(first, rawFrame(8, nums(0, 0, 9)), rawFrame(9, []byte("full")), rawFrame(10, []byte("bye"))))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		partials, err := transport.OpenPartials(dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer partials.Close()
		st := transporttest.NewStation("shore", transporttest.Packet(0, []byte("one small packet")))
		// A hostile peer may repair checksums: give it both chances.
		for _, in := range [][]byte{raw, repair(raw)} {
			speak(t, st, transport.StreamOptions{Partials: partials, Idle: 5 * time.Second, MaxSize: 1 << 19}, in)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 64 {
			for _, f := range files {
				os.Remove(f)
			}
		}
	})
}

// repair reads raw as a list of (type, length, body) and gives each a right header and checksum.
func repair(raw []byte) []byte {
	out := join([]byte(hello), rawFrame(1, []byte("ship")))
	for len(raw) >= 2 {
		t, n := raw[0]%14, int(raw[1])
		raw = raw[2:]
		n = min(n, len(raw))
		out = append(out, rawFrame(t, raw[:n])...)
		raw = raw[n:]
	}
	return out
}
