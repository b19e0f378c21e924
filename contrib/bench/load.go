package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// loaded is what a load of messages measured.
type loaded struct {
	took     time.Duration
	p50, p99 time.Duration // of a message: MAIL to the 250 after its end
}

// load sends n messages over SMTP sessions that stay open; each session takes the next message when its last one was
// answered 250. Message i is bodies[i%len(bodies)], dots doubled and ended by one, and goes to user i%users.
func load(ctx context.Context, addr string, sessions, n int, bodies [][]byte, users int) (loaded, error) {
	var next atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	start := time.Now()
	for range min(sessions, n) {
		wg.Go(func() {
			took, err := session(ctx, addr, users, func() ([]byte, int, bool) {
				i := int(next.Add(1)) - 1
				return bodies[i%len(bodies)], i, i < n
			})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil && failed == nil {
				failed = err
				cancel()
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if failed != nil {
		return loaded{}, failed
	}
	slices.Sort(all)
	return loaded{took, all[len(all)/2], all[len(all)*99/100]}, nil
}

// session is one SMTP client.
func session(ctx context.Context, addr string, users int, next func() ([]byte, int, bool)) (took []time.Duration, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	r := bufio.NewReader(c)
	say := func(want byte, line []byte) error {
		if len(line) > 0 {
			if _, err := c.Write(line); err != nil {
				return err
			}
		}
		return reply(r, want)
	}
	if err := errors.Join(say('2', nil), say('2', []byte("EHLO bench.example\r\n"))); err != nil {
		return nil, err
	}
	for {
		body, i, ok := next()
		if !ok {
			_, err := io.WriteString(c, "QUIT\r\n")
			return took, err
		}
		start := time.Now()
		if err := say('2', []byte("MAIL FROM:<from@camp.example>\r\n")); err != nil {
			return took, err
		}
		if err := say('2', fmt.Appendf(nil, "RCPT TO:<to%d@hub.example>\r\n", i%users)); err != nil {
			return took, err
		}
		if err := say('3', []byte("DATA\r\n")); err != nil {
			return took, err
		}
		if err := say('2', body); err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
	}
}

// reply reads one SMTP reply.
func reply(r *bufio.Reader, want byte) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("no reply: %w", err)
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		if line[0] != want {
			return fmt.Errorf("the server said: %s", bytes.TrimSpace(line))
		}
		return nil
	}
}

// sink is an SMTP server that counts messages and forgets them.
type sink struct {
	ln   net.Listener
	got  atomic.Int64
	want atomic.Int64
	done chan struct{} // closed when want messages are there
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
}

func newSink(want int) (*sink, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{ln: ln, done: make(chan struct{}), conns: map[net.Conn]bool{}}
	s.want.Store(int64(want))
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				s.serve(c)
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			})
		}
	})
	return s, nil
}

func (s *sink) addr() string { return s.ln.Addr().String() }

// close ends the sink with all its connections.
func (s *sink) close() {
	s.ln.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// wait waits until the sink has everything.
func (s *sink) wait(ctx context.Context, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("the sink got %d of %d messages within %v", s.got.Load(), s.want.Load(), patience)
	}
}

func (s *sink) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	say := func(line string) {
		w.WriteString(line)
		if r.Buffered() == 0 {
			w.Flush()
		}
	}
	say("220 sink ESMTP\r\n")
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch verb := string(bytes.ToUpper(line[:min(4, len(line))])); verb {
		case "EHLO":
			say("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n")
		case "DATA":
			say("354 go on\r\n")
			w.Flush()
			if skipMessage(r) != nil {
				return
			}
			w.WriteString("250 ok\r\n")
			w.Flush()
			if s.got.Add(1) == s.want.Load() {
				s.once.Do(func() { close(s.done) })
			}
		case "QUIT":
			say("221 bye\r\n")
			w.Flush()
			return
		default:
			say("250 ok\r\n")
		}
	}
}

// skipMessage reads to the lone dot.
func skipMessage(r *bufio.Reader) error {
	whole := true // the last line was complete
	for {
		line, err := r.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			whole = false
			continue
		}
		if err != nil {
			return err
		}
		if whole && len(line) == 3 && line[0] == '.' {
			return nil
		}
		whole = true
	}
}
