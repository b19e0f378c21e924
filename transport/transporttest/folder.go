package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"mochila/internal/envelope"
	"mochila/transport"
)

// TestFolder is the conformance suite of a transport.Folder. open returns an empty one each time.
func TestFolder(t *testing.T, open func(t *testing.T) transport.Folder) {
	for name, test := range map[string]func(folderTest, *testing.T){
		"empty":           folderTest.empty,
		"put and get":     folderTest.putAndGet,
		"sizes":           folderTest.sizes,
		"put twice":       folderTest.putTwice,
		"source fails":    folderTest.sourceFails,
		"source is short": folderTest.sourceIsShort,
		"source is long":  folderTest.sourceIsLong,
		"remove":          folderTest.remove,
		"bad names":       folderTest.badNames,
		"concurrent":      folderTest.concurrent,
		"cancelled":       folderTest.cancelled,
		"link":            folderTest.link,
	} {
		t.Run(name, func(t *testing.T) { test(folderTest{t.Context(), open(t)}, t) })
	}
}

type folderTest struct {
	ctx context.Context
	f   transport.Folder
}

const outbox = "mochila/aaaaaaaaaaaaa/bbbbbbbbbbbbb"

func (s folderTest) put(t *testing.T, p *transport.Packet) {
	t.Helper()
	r, err := p.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.f.Put(s.ctx, outbox, p.ID.String(), p.Size, r); err != nil {
		t.Fatalf("put %d bytes: %v", p.Size, err)
	}
}

func (s folderTest) get(t *testing.T, name string) []byte {
	t.Helper()
	r, err := s.f.Get(s.ctx, outbox, name)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return b
}

// mustList fails unless exactly these packets lie there, and nothing half done beside them.
func (s folderTest) mustList(t *testing.T, want ...*transport.Packet) {
	t.Helper()
	got, err := s.f.List(s.ctx, outbox)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	var names, wanted []string
	for _, e := range got {
		names = append(names, fmt.Sprint(e.Name, " ", e.Size))
	}
	for _, p := range want {
		wanted = append(wanted, fmt.Sprint(p.ID, " ", p.Size))
	}
	slices.Sort(names)
	slices.Sort(wanted)
	if !slices.Equal(names, wanted) {
		t.Errorf("listed %q, want %q", names, wanted)
	}
}

func (s folderTest) empty(t *testing.T) {
	s.mustList(t)
	dirs, err := s.f.Dirs(s.ctx, "mochila")
	if err != nil || len(dirs) != 0 {
		t.Errorf("directories %q, %v", dirs, err)
	}
	if _, err := s.f.Get(s.ctx, outbox, Packet(0, []byte("x")).ID.String()); err == nil {
		t.Error("got a file that is not there")
	}
	if err := s.f.Flush(s.ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
}

func (s folderTest) putAndGet(t *testing.T) {
	p, q := Packet(0, Random(1, 1000)), Packet(0, Random(2, 70_000))
	s.put(t, p)
	s.put(t, q)
	s.mustList(t, p, q)
	if !bytes.Equal(s.get(t, p.ID.String()), Random(1, 1000)) {
		t.Error("other bytes came back")
	}
	dirs, err := s.f.Dirs(s.ctx, "mochila")
	if err != nil || !slices.Equal(dirs, []string{"aaaaaaaaaaaaa"}) {
		t.Errorf("directories of the top: %q, %v", dirs, err)
	}
	dirs, err = s.f.Dirs(s.ctx, "mochila/aaaaaaaaaaaaa")
	if err != nil || !slices.Equal(dirs, []string{"bbbbbbbbbbbbb"}) {
		t.Errorf("directories of the sender: %q, %v", dirs, err)
	}
	files, err := s.f.List(s.ctx, "mochila/aaaaaaaaaaaaa")
	if err != nil || len(files) != 0 {
		t.Errorf("directories are listed as files: %v, %v", files, err)
	}
	if err := s.f.Flush(s.ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
}

func (s folderTest) sizes(t *testing.T) {
	var all []*transport.Packet
	for _, n := range []int{1, 4095, 4096, 4097, 1 << 16, 1<<20 + 1, 9 << 20} {
		p := Packet(0, Random(uint64(n), n))
		s.put(t, p)
		if got := s.get(t, p.ID.String()); !bytes.Equal(got, Random(uint64(n), n)) {
			t.Errorf("of %d bytes, %d came back, or others", n, len(got))
		}
		all = append(all, p)
	}
	s.mustList(t, all...)
}

func (s folderTest) putTwice(t *testing.T) {
	p := Packet(0, Random(3, 5000))
	s.put(t, p)
	s.put(t, p)
	s.mustList(t, p)
	if !bytes.Equal(s.get(t, p.ID.String()), Random(3, 5000)) {
		t.Error("other bytes came back")
	}
}

func (s folderTest) sourceFails(t *testing.T) {
	p := Packet(0, Random(4, 200_000))
	broken := errors.New("source is broken")
	r := io.MultiReader(bytes.NewReader(Random(4, 150_000)), iotest.ErrReader(broken))
	if err := s.f.Put(s.ctx, outbox, p.ID.String(), p.Size, r); !errors.Is(err, broken) {
		t.Errorf("put: %v, want the error of the source", err)
	}
	s.mustList(t)
	s.put(t, p)
	s.mustList(t, p)
}

func (s folderTest) sourceIsShort(t *testing.T) {
	p := Packet(0, Random(5, 2000))
	if err := s.f.Put(s.ctx, outbox, p.ID.String(), p.Size, bytes.NewReader(Random(5, 1999))); err == nil {
		t.Error("a short source was accepted")
	}
	s.mustList(t)
}

func (s folderTest) sourceIsLong(t *testing.T) {
	p := Packet(0, Random(6, 2000))
	if err := s.f.Put(s.ctx, outbox, p.ID.String(), p.Size-1, bytes.NewReader(Random(6, 2000))); err == nil {
		t.Error("a long source was accepted")
	}
	s.mustList(t)
}

func (s folderTest) remove(t *testing.T) {
	p, q := Packet(0, Random(7, 10)), Packet(0, Random(8, 10))
	s.put(t, p)
	s.put(t, q)
	for range 2 {
		if err := s.f.Remove(s.ctx, outbox, p.ID.String()); err != nil {
			t.Errorf("remove: %v", err)
		}
		s.mustList(t, q)
	}
	if err := s.f.Remove(s.ctx, "mochila/nowhere", p.ID.String()); err != nil {
		t.Errorf("remove from a directory that is not there: %v", err)
	}
}

func (s folderTest) badNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/etc/passwd", "\x00", ".hidden", "~tilde"} {
		if err := s.f.Put(s.ctx, outbox, name, 1, strings.NewReader("x")); err == nil {
			t.Errorf("file name %q was accepted", name)
		}
		if r, err := s.f.Get(s.ctx, outbox, name); err == nil {
			r.Close()
			t.Errorf("file name %q was opened", name)
		}
	}
	for _, dir := range []string{"..", "../x", "/tmp", "mochila/../..", "mochila//x", "mochila/./x"} {
		if err := s.f.Put(s.ctx, dir, "x", 1, strings.NewReader("x")); err == nil {
			t.Errorf("directory %q was accepted", dir)
		}
	}
	s.mustList(t)
}

func (s folderTest) concurrent(t *testing.T) {
	var all []*transport.Packet
	for i := range 8 {
		all = append(all, Packet(0, Random(uint64(20+i), 1000*i+1)))
	}
	var wg sync.WaitGroup
	for _, p := range append(all, all...) {
		wg.Go(func() {
			r, err := p.Open(0)
			if err == nil {
				err = s.f.Put(s.ctx, outbox, p.ID.String(), p.Size, r)
			}
			if err != nil {
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	s.mustList(t, all...)
}

func (s folderTest) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	p := Packet(0, Random(9, 100))
	r, err := p.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.f.Put(ctx, outbox, p.ID.String(), p.Size, r); err == nil {
		t.Error("put in spite of a cancelled context")
	}
	s.mustList(t)
}

// link moves packets both ways through the folder and takes the acknowledged ones away again.
func (s folderTest) link(t *testing.T) {
	a, b := envelope.Label{1}, envelope.Label{2}
	there := []*transport.Packet{Packet(0, Random(30, 100)), Packet(1, Random(31, 300_000))}
	back := []*transport.Packet{Packet(0, Random(32, 64))}
	sa, sb := NewStation("a", there...), NewStation("b", back...)
	la := transport.NewFolderLink(s.f, a, b, transport.FolderOptions{})
	lb := transport.NewFolderLink(s.f, b, a, transport.FolderOptions{})
	run := func(l *transport.FolderLink, st *Station) transport.Stats {
		t.Helper()
		stats, err := l.Run(s.ctx, st)
		if err != nil {
			t.Fatal(err)
		}
		return stats
	}
	run(la, sa)
	run(lb, sb)
	run(la, sa)
	RequireReceived(t, sb, there...)
	RequireReceived(t, sa, back...)
	for _, p := range there {
		sa.Finish(p.ID)
	}
	if stats := run(la, sa); stats.Removed != 2 || stats.Waiting != 0 {
		t.Errorf("after the acknowledgement: %+v", stats)
	}
	if n := sa.Left() + sb.Left(); n != 0 {
		t.Errorf("%d packets were not reported as sent", n)
	}
}
