package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	tty "go.bug.st/serial"
	"golang.org/x/sys/unix"

	"mochila/transport"
)

// Port is a terminal line with its options, as its URL says: serial:/dev/ttyUSB0?baud=9600&parity=none&duplex=half&turnaround=1s.
type Port struct {
	dev  string
	mode tty.Mode
	o    Options
}

// Scheme is the carrier.
func Scheme() transport.Scheme {
	return transport.Scheme{Name: "serial", Form: "serial:/dev/ttyUSB0?baud=9600", Parse: func(rest string, opts url.Values) (transport.Carrier, error) {
		p, err := parse(rest, opts)
		if err != nil {
			return transport.Carrier{}, err
		}
		return transport.Carrier{Dialer: p}, nil
	}}
}

// Parse reads a whole URL, as [link] listen has it.
func Parse(s string) (*Port, error) {
	c, err := transport.Parse([]transport.Scheme{Scheme()}, s)
	if err != nil {
		return nil, err
	}
	return c.Dialer.(*Port), nil
}

// advice is an error with what would help.
type advice struct {
	error
	hint string
}

func (a *advice) Hint() string  { return a.hint }
func (a *advice) Unwrap() error { return a.error }

func parse(rest string, opts url.Values) (*Port, error) {
	if !strings.HasPrefix(rest, "/") {
		return nil, &advice{fmt.Errorf("%q is not a device", rest), "as in serial:/dev/ttyUSB0?baud=9600"}
	}
	p := &Port{dev: rest, mode: tty.Mode{BaudRate: 9600, DataBits: 8, Parity: tty.NoParity, StopBits: tty.OneStopBit}}
	p.o = Options{Name: rest, Bits: 10}
	take := func(key string) string {
		v := opts.Get(key)
		opts.Del(key)
		return v
	}
	if s := take("baud"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 50 || n > 4_000_000 {
			return nil, &advice{fmt.Errorf("baud %q is not a speed", s), "as in baud=9600"}
		}
		p.mode.BaudRate = n
	}
	p.o.Baud = p.mode.BaudRate
	switch s := take("parity"); s {
	case "", "none":
	case "even":
		p.mode.Parity, p.o.Bits = tty.EvenParity, p.o.Bits+1
	case "odd":
		p.mode.Parity, p.o.Bits = tty.OddParity, p.o.Bits+1
	default:
		return nil, &advice{fmt.Errorf("parity %q", s), "none, even or odd"}
	}
	switch s := take("stop"); s {
	case "", "1":
	case "2":
		p.mode.StopBits, p.o.Bits = tty.TwoStopBits, p.o.Bits+1
	default:
		return nil, &advice{fmt.Errorf("%q stop bits", s), "1 or 2"}
	}
	switch s := take("duplex"); s {
	case "", "half":
	case "full":
		p.o.Full = true
	default:
		return nil, &advice{fmt.Errorf("duplex %q", s), "half or full"}
	}
	if s := take("turnaround"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 || d > time.Minute {
			return nil, &advice{fmt.Errorf("turnaround %q is not a time", s), "as in turnaround=500ms; at most 1m"}
		}
		p.o.Turnaround = d
	}
	return p, nil
}

// String is the carrier's URL without options.
func (p *Port) String() string { return "serial:" + p.dev }

// Inline is the greatest packet that goes without asking: some eight seconds of the line.
func (p *Port) Inline() int { return max(1024, 8*p.o.Baud/p.o.Bits) }

// open opens the device, for this program alone.
func (p *Port) open() (io.ReadWriteCloser, error) {
	lock, err := os.OpenFile(p.dev, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = &advice{fmt.Errorf("%s is in use", p.dev), "one contact or listener at a time; at one end of a line listen, at the other call"}
			}
		}
	}
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = &advice{err, "the daemon's user must be in the device's group, often dialout"}
		}
		return nil, fmt.Errorf("%w: %w", transport.ErrAbsent, err)
	}
	port, err := tty.Open(p.dev, &p.mode)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("%w: open %s: %w", transport.ErrAbsent, p.dev, err)
	}
	return &device{port, lock}, nil
}

// device is an open port with its lock.
type device struct {
	tty.Port
	lock *os.File
}

func (d *device) Read(b []byte) (int, error) {
	n, err := d.Port.Read(b)
	if n == 0 && err == nil {
		err = io.EOF // hung up, unplugged
	}
	return n, err
}

func (d *device) Write(b []byte) (n int, err error) {
	for {
		if n, err = d.Port.Write(b); err != unix.EINTR {
			return n, err
		}
	}
}

func (d *device) Close() error { return errors.Join(d.Port.Close(), d.lock.Close()) }

// Dial implements transport.Dialer. What keeps the device from being opened is transport.ErrAbsent; whether anybody answers shows later.
func (p *Port) Dial(ctx context.Context) (transport.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	port, err := p.open()
	if err != nil {
		return nil, err
	}
	return Call(port, p.o), nil
}

// Listen opens the device for calls.
func (p *Port) Listen() (*Listener, error) {
	port, err := p.open()
	if err != nil {
		return nil, err
	}
	return Listen(port, p.o), nil
}

// Tune makes a contact's options fit for a slow line: it does not end because one packet takes minutes.
func (p *Port) Tune(o transport.StreamOptions) transport.StreamOptions {
	o.Inline, o.Idle, o.Greet = p.Inline(), 10*time.Minute, 10*time.Minute
	return o
}
