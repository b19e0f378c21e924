package serial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"mochila/internal/peertest"
	"mochila/transport"
	"mochila/transport/transporttest"
)

func TestURLs(t *testing.T) {
	for _, s := range []string{"serial:/dev/ttyS0", "serial:/dev/ttyUSB0?baud=300&parity=even&stop=2&duplex=full&turnaround=1500ms"} {
		if _, err := Parse(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"serial:", "serial:ttyS0", "serial:/dev/x?baud=fast", "serial:/dev/x?parity=some", "serial:/dev/x?duplex=quarter", "serial:/dev/x?turnaround=1", "serial:/dev/x?colour=red", "serial:/dev/x?stop=3"} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%s was accepted", s)
		}
	}
	p, err := Parse("serial:/dev/ttyS0?baud=1200&parity=odd&stop=2")
	if err != nil || p.o.Bits != 12 || p.o.Baud != 1200 || p.o.Full || p.String() != "serial:/dev/ttyS0" {
		t.Errorf("%+v, %v", p, err)
	}
}

// Real terminal devices, both kinds of line. The suite of package transporttest moves more than a serial line does in a day: its rules are
// tried here with less.
func TestTerminals(t *testing.T) {
	for _, duplex := range []string{"half", "full"} {
		t.Run(duplex, func(t *testing.T) {
			t.Parallel()
			cable := peertest.NewPTYs(t, nil)
			opts := "?baud=1000000&duplex=" + duplex
			far, err := Parse("serial:" + cable.B + opts)
			if err != nil {
				t.Fatal(err)
			}
			l, err := far.Listen()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			near, err := Parse("serial:" + cable.A + opts)
			if err != nil {
				t.Fatal(err)
			}
			for call := range 2 { // the port is free again after a call
				a, err := near.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				down, up := transporttest.Random(1, 50_000), transporttest.Random(2, 20_000)
				wg.Go(func() {
					if n, err := a.Write(down); n != len(down) || err != nil {
						t.Errorf("call %d: caller wrote %d, %v", call, n, err)
					}
					if got, err := readAll(a, len(up)); err != nil || !bytes.Equal(got, up) {
						t.Errorf("call %d: caller got %d bytes, %v", call, len(got), err)
					}
					a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
					if n, err := a.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("call %d: read %d, %v at the deadline", call, n, err)
					}
					a.Write([]byte("last words"))
					a.Close()
					if _, err := a.Write([]byte("x")); err == nil {
						t.Error("wrote to a closed stream")
					}
				})
				b, err := l.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if got, err := readAll(b, len(down)); err != nil || !bytes.Equal(got, down) {
					t.Errorf("call %d: callee got %d bytes, %v", call, len(got), err)
				}
				if n, err := b.Write(up); n != len(up) || err != nil {
					t.Errorf("call %d: callee wrote %d, %v", call, n, err)
				}
				if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
					t.Errorf("call %d: in the end %q, %v", call, got, err)
				}
				b.Close()
				wg.Wait()
			}
			// A reader is woken by Close.
			s, err := near.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if far, err := l.Accept(context.Background()); err == nil {
					io.ReadAll(far)
					far.Close()
				}
			}()
			done := make(chan error, 1)
			go func() { _, err := s.Read(make([]byte, 1)); done <- err }()
			s.Close()
			if err := <-done; err == nil {
				t.Error("a reader got no error from Close")
			}
		})
	}
}

func TestDeviceTroubles(t *testing.T) {
	cable := peertest.NewPTYs(t, nil)
	p, err := Parse("serial:" + cable.A)
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Listen()
	if err != nil {
		t.Fatal(err)
	}
	var h interface{ Hint() string }
	if _, err := p.Dial(t.Context()); !errors.Is(err, transport.ErrAbsent) || !strings.Contains(err.Error(), "in use") || !errors.As(err, &h) {
		t.Errorf("twice: %v", err)
	}
	l.Close()
	if p, err = Parse("serial:/nonexistent/tty"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Dial(t.Context()); !errors.Is(err, transport.ErrAbsent) {
		t.Errorf("no device: %v", err)
	}
}
