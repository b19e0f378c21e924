package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// wire measures one large transfer over loopback, between what is packed at one node and durable at the other: beside cp and fsync on
// the same disk, and beside NNCP's online transfer. A tap between the two notes when the first of it passed, and when the other side
// said that it has it (mochila) or when the last of it passed (NNCP, whose checking and syncing comes on top).
func (b *bench) wire() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	size := int64(b.scaled(256)) << 20
	file := filepath.Join(dir, "input")
	if err := writeNoise(file, size); err != nil {
		return err
	}
	for range b.reps {
		start := time.Now()
		copied := filepath.Join(dir, "copy")
		if err := copySynced(file, copied); err != nil {
			return err
		}
		b.rate("cp.wire", size, time.Since(start))
		if err := os.Remove(copied); err != nil { // not timed: a disk mounted with discard takes longer for that than for the copy
			return err
		}
		if err := b.mochilaWire(file, size); err != nil {
			return fmt.Errorf("mochila: %w", err)
		}
		if err := b.nncpWire(file, size); !b.missing("nncp", err) && err != nil {
			return fmt.Errorf("nncp: %w", err)
		}
	}
	b.fig.show("cp.wire.", "mochila.wire.", "nncp.wire.")
	return nil
}

func (b *bench) rate(name string, size int64, took time.Duration) {
	b.fig.add(name+".MB_per_s", float64(size)/1e6/took.Seconds())
}

// writeNoise makes a file that does not compress.
func writeNoise(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, io.LimitReader(rand.NewChaCha8([32]byte{1}), size)); err != nil {
		return err
	}
	return f.Sync()
}

func copySynced(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

// tap passes one connection on and watches it.
type tap struct {
	addr string
	done sync.WaitGroup

	mu    sync.Mutex
	first time.Time // when more than a greeting came
	last  time.Time // when the last of the bulk passed
	said  time.Time // when the other side first said something after that
	bulk  int64
	size  int64
}

// newTap listens until its connections are over; the bulk is size bytes.
func newTap(to string, size int64) (*tap, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tap{addr: l.Addr().String(), size: size}
	t.done.Go(func() {
		defer l.Close()
		near, err := l.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer far.Close()
		var both sync.WaitGroup
		pass := func(to, from net.Conn, out bool) {
			defer to.(*net.TCPConn).CloseWrite()
			buf := make([]byte, 256<<10)
			for {
				n, err := from.Read(buf)
				t.note(n, out)
				if _, e := to.Write(buf[:n]); err != nil || e != nil {
					return
				}
				if left := t.middle(out); left > 0 {
					moved, err := io.CopyN(to, from, left) // in the kernel, without a copy
					t.pass(moved)
					if err != nil {
						return
					}
				}
			}
		}
		both.Go(func() { pass(far, near, true) })
		both.Go(func() { pass(near, far, false) })
		both.Wait()
	})
	return t, nil
}

// middle is how much of the bulk may pass unread, once it has begun: all but its last MiB.
func (t *tap) middle(out bool) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !out || t.first.IsZero() {
		return 0
	}
	return t.size - 1<<20 - t.bulk
}

func (t *tap) pass(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bulk += n
}

func (t *tap) note(n int, out bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch {
	case out && n >= 8<<10 && t.first.IsZero():
		t.first = now
		fallthrough
	case out && !t.first.IsZero():
		t.bulk += int64(n)
		if t.bulk < t.size || t.last.IsZero() || t.said.IsZero() && n >= 8<<10 {
			t.last = now
		}
	case !out && n > 0 && t.bulk >= t.size && t.said.IsZero():
		t.said = now
	}
}

// mochilaWire: camp has a job with a large input packed, and hub's daemon takes it.
func (b *bench) mochilaWire(file string, size int64) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := b.newPair(dir, "maildir:"+dir+"/mail/%u")
	if err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	line, err := newTap(addr, size)
	if err != nil {
		return err
	}
	carrier := fmt.Sprintf("carrier = %q", "dir:"+p.stick)
	err = errors.Join(appendTo(p.hubConfig, fmt.Sprintf("%s\n[link]\nlisten = [%q]\n", jobHandlers, addr)),
		replaceIn(p.hubPeering, carrier, `when = "on-call"`),
		replaceIn(p.campPeering, carrier, fmt.Sprintf("carrier = %q", "tcp:"+line.addr)))
	if err != nil {
		return err
	}
	hub, err := b.serve(b.ctx, p.hub, p.hubAddr)
	if err != nil {
		return err
	}
	defer hub.stop()
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	c := exec.CommandContext(b.ctx, filepath.Join(b.bin, "mochila"), "--home", p.camp, "run", "hub", "--", "true")
	c.Stdin = in
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("run: %w: %s", err, out)
	}
	start := time.Now()
	if err := b.mochila(p.camp, "sync", "hub"); err != nil {
		return err
	}
	took := time.Since(start)
	line.done.Wait()
	if line.said.IsZero() {
		return fmt.Errorf("only %d bytes passed", line.bulk)
	}
	b.rate("mochila.wire", size, line.said.Sub(line.first))
	b.rate("mochila.wire.sync", size, took)
	return nil
}

// nncpWire: a has the file queued for b, and calls b's daemon.
func (b *bench) nncpWire(file string, size int64) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := b.nncpPair(dir, "/bin/true"); err != nil {
		return err
	}
	if err := replaceIn(filepath.Join(dir, "b.hjson"), "   exec: {", "   incoming: "+dir+"/in\n   exec: {"); err != nil {
		return err
	}
	if _, err := command(b.ctx, nil, "nncp-file", "-cfg", filepath.Join(dir, "a.hjson"), "-noprogress", "-quiet", file, "b:input"); err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	daemon := exec.CommandContext(b.ctx, "nncp-daemon", "-cfg", filepath.Join(dir, "b.hjson"), "-noprogress", "-quiet", "-bind", addr)
	if err := daemon.Start(); err != nil {
		return err
	}
	defer func() { daemon.Process.Kill(); daemon.Wait() }()
	for range 200 {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	line, err := newTap(addr, size)
	if err != nil {
		return err
	}
	if _, err := command(b.ctx, nil, "nncp-call", "-cfg", filepath.Join(dir, "a.hjson"), "-noprogress", "-quiet", "-onlinedeadline", "2", "b", line.addr); err != nil {
		log.Printf("nncp-call: %v", err) // its exit status says little
	}
	line.done.Wait()
	if line.bulk < size {
		return fmt.Errorf("only %d bytes passed", line.bulk)
	}
	b.rate("nncp.wire", size, line.last.Sub(line.first))
	return nil
}
