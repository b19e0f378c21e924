package transport_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// TestNNCPConforms: a program that keeps packets in a folder stands for nncp-exec and nncp-file.
func TestNNCPConforms(t *testing.T) {
	for _, by := range []string{"exec", "file"} {
		t.Run(by, func(t *testing.T) {
			transporttest.TestSubmitter(t, func(t *testing.T) (transport.Submitter, func() [][]byte) {
				dir := t.TempDir()
				return transport.NewNNCP("hub", transport.NNCPOptions{Files: by == "file", Spool: dir, Program: fakeSendmail(t, dir, inside)}),
					func() [][]byte { return files(dir) }
			})
		})
	}
}

// TestNNCPCommandLine: everything is in the packet, nothing in the arguments; niceness follows the class.
func TestNNCPCommandLine(t *testing.T) {
	dir := t.TempDir()
	echo := fakeSendmail(t, dir, `cat >/dev/null; printf '%%s\n' "$*" >%s/args; : %s`)
	p := transporttest.Packet(9, []byte("x"))
	for _, c := range []struct {
		o    transport.NNCPOptions
		want string
	}{
		{transport.NNCPOptions{}, "-quiet -noprogress -nice 160 -nocompress hub mochila"},
		{transport.NNCPOptions{Config: "/c", Handle: "in"}, "-quiet -noprogress -nice 160 -cfg /c -nocompress hub in"},
		{transport.NNCPOptions{Files: true, Spool: dir}, "-quiet -noprogress -nice 160 -spool " + dir + " - hub:mochila/" + p.ID.String()},
	} {
		c.o.Program = echo
		if err := transport.NewNNCP("hub", c.o).Submit(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "args"))
		if err != nil || strings.TrimSpace(string(got)) != c.want {
			t.Errorf("got %q, %v, want %q", got, err, c.want)
		}
	}
}

// TestNNCPFullSpool: NNCP would hang for ever, so that it is not started.
func TestNNCPFullSpool(t *testing.T) {
	p := transporttest.Packet(9, []byte("x"))
	p.Size = 1 << 60
	err := transport.NewNNCP("hub", transport.NNCPOptions{Spool: t.TempDir(), Program: "/nonexistent"}).Submit(t.Context(), p)
	var h interface{ Hint() string }
	if !errors.Is(err, transport.ErrFull) || !errors.As(err, &h) {
		t.Errorf("got %v", err)
	}
}

// TestArrivals: files of the neighbour are taken once each and removed; what is not complete, or no file, waits and
// blocks nothing.
func TestArrivals(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "incoming")
	s := transport.NewNNCP("hub", transport.NNCPOptions{In: in, Spool: dir, Program: fakeSendmail(t, dir, "cat >/dev/null; : %s %s")})
	link := transport.NewSubmitLink(s, transport.SubmitOptions{})
	st := transporttest.NewStation("")
	if stats, err := link.Run(t.Context(), st); err != nil || stats.PacketsIn != 0 {
		t.Errorf("no folder yet: %+v, %v", stats, err)
	}
	if err := os.Mkdir(in, 0o755); err != nil {
		t.Fatal(err)
	}
	var data [4][]byte
	var id [4]string
	for i := range data {
		data[i] = transporttest.Random(uint64(i), 1000+i)
		id[i] = transporttest.Packet(0, data[i]).ID.String()
	}
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(in, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(id[0], data[0])
	put(id[0]+".0", data[0])     // NNCP's name for a second one
	put(id[1], data[1][:500])    // still being written
	put("README", []byte("x"))   // not ours
	put(".tmp"+id[2], data[2])   // not finished
	put(id[3]+".bin", []byte{1}) // damaged
	if err := os.Symlink("/etc/passwd", filepath.Join(in, id[2])); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(in, id[2]+".1"), 0o644); err != nil {
		t.Fatal(err)
	}
	stats, err := link.Run(t.Context(), st)
	if err != nil || stats.PacketsIn != 1 || stats.Incomplete != 2 || st.Count() != 1 {
		t.Errorf("%+v, %v, %d received", stats, err, st.Count())
	}
	left, _ := os.ReadDir(in)
	if len(left) != 6 {
		t.Errorf("left: %v", left)
	}
	put(id[1], data[1])
	if stats, err = link.Run(t.Context(), st); err != nil || stats.PacketsIn != 1 || st.Count() != 2 {
		t.Errorf("when it is complete: %+v, %v", stats, err)
	}
	st.OnReceive = func(transport.ID, int64) error { return fmt.Errorf("disk full: %w", syscall.ENOSPC) }
	put(id[3], data[3])
	if _, err = link.Run(t.Context(), st); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("trouble of this node: %v", err)
	}
	st.OnReceive = func(transport.ID, int64) error { return transport.ErrRefused }
	time.Sleep(time.Millisecond)
	if err := os.Chtimes(filepath.Join(in, id[3]), time.Now(), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if stats, err = link.Run(t.Context(), st); err != nil || stats.Refused != 1 {
		t.Errorf("refused: %+v, %v", stats, err)
	}
	if _, err := os.Lstat(filepath.Join(in, id[3])); !os.IsNotExist(err) {
		t.Error("a refused packet lies there still")
	}
}

// TestArrivalsBehindTrouble: what this node has no room for keeps nothing behind it from being read; a node that can take
// nothing does not go through the whole folder.
func TestArrivalsBehindTrouble(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "incoming")
	if err := os.Mkdir(in, 0o755); err != nil {
		t.Fatal(err)
	}
	var offered []int64
	for i := range 40 {
		data := transporttest.Random(uint64(i), 1000+100*((i*7)%40))
		if err := os.WriteFile(filepath.Join(in, transporttest.Packet(0, data).ID.String()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := transport.NewNNCP("hub", transport.NNCPOptions{In: in, Spool: dir, Program: "/nonexistent"})
	st := transporttest.NewStation("")
	st.OnReceive = func(_ transport.ID, size int64) error {
		offered = append(offered, size)
		if len(offered) <= 10 {
			return fmt.Errorf("disk full: %w", syscall.ENOSPC)
		}
		return nil
	}
	stats, err := transport.NewSubmitLink(s, transport.SubmitOptions{}).Run(t.Context(), st)
	if !errors.Is(err, syscall.ENOSPC) || stats.PacketsIn != 30 {
		t.Errorf("ten fail: %+v, %v", stats, err)
	}
	if !slices.IsSorted(offered) || len(offered) != 40 {
		t.Errorf("%d offered, not small before big: %v", len(offered), offered)
	}
	for i := range 40 {
		data := transporttest.Random(uint64(100+i), 1000)
		if err := os.WriteFile(filepath.Join(in, transporttest.Packet(0, data).ID.String()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	offered = nil
	st.OnReceive = func(_ transport.ID, size int64) error {
		offered = append(offered, size)
		return syscall.ENOSPC
	}
	if stats, err = transport.NewSubmitLink(s, transport.SubmitOptions{}).Run(t.Context(), st); !errors.Is(err, syscall.ENOSPC) || stats.PacketsIn != 0 || len(offered) != 16 {
		t.Errorf("all fail: %d offered, %+v, %v", len(offered), stats, err)
	}
}

func TestNNCPURLs(t *testing.T) {
	for url, want := range map[string]string{
		"nncp:hub": "", "nncp:hub?cfg=/etc/nncp.hjson&spool=/s&handle=h": "", "nncp:hub?by=file&in=/in": "",
		"nncp:": "not the name", "nncp:-x": "not the name", "nncp:a b": "not the name", "nncp:hub?by=mail": "neither",
		"nncp:hub?by=file&handle=x": "by=exec", "nncp:hub?cfg=nncp.hjson": "absolute", "nncp:hub?handle=a/b": "not a word",
	} {
		_, err := transport.Parse(transport.Schemes(), url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
