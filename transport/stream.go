package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"syscall"
	"time"
)

// StreamOptions configures both ends of live contacts. The zero value works, except that big packets are put off.
type StreamOptions struct {
	// Partials keeps the beginnings of big packets for the next contact. nil: no big packet is received.
	Partials *Partials
	// Inline is the greatest packet that is sent without asking, in bytes: what a cut costs at most. 256 to
	// 64 KiB; 0: 64 KiB. Slow links want less.
	Inline int
	// MaxSize refuses larger incoming packets. 0: 64 GiB.
	MaxSize int64
	// Idle is how long the neighbour may be silent, and a write may stand still. Each side says something every
	// 15 s. 0: 60 s.
	Idle time.Duration
	// Greet bounds the whole time that a caller's greeting may take. 0: 60 s.
	Greet time.Duration
	// Linger keeps a contact open for so long after the last packet, in case something new comes. The greater
	// wish of the two sides counts, but no side stays longer than its own MaxLinger (0: 1 h) for the other.
	Linger, MaxLinger time.Duration
	Log               *slog.Logger // what was passed over, and why; nil: silent
	Progress          func(Stats)  // called often, from several goroutines; nil: nobody looks
}

func (o StreamOptions) withDefaults() StreamOptions {
	if o.Inline <= 0 || o.Inline > maxSlice {
		o.Inline = maxSlice
	}
	o.Inline = max(o.Inline, 256)
	if o.MaxSize <= 0 {
		o.MaxSize = defaultMaxSize
	}
	if o.Idle <= 0 {
		o.Idle = time.Minute
	}
	if o.Greet <= 0 {
		o.Greet = time.Minute
	}
	if o.MaxLinger <= 0 {
		o.MaxLinger = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// StreamLink makes a Link of a Dialer: it calls the neighbour and speaks the framing of docs/link.md.
// Its Station must be a Greeter. Runs may overlap; each is its own connection.
type StreamLink struct {
	d Dialer
	o StreamOptions
}

// NewStreamLink returns the Link that calls through d.
func NewStreamLink(d Dialer, o StreamOptions) *StreamLink {
	return &StreamLink{d: d, o: o.withDefaults()}
}

// Run makes one call. A call that is cut returns an error; the next one goes on where it stopped.
func (l *StreamLink) Run(ctx context.Context, st Station) (Stats, error) {
	began := time.Now()
	g, ok := st.(Greeter)
	if !ok {
		return Stats{Began: began}, errors.New("a live contact needs a station that can greet")
	}
	greeting, err := g.Greeting(ctx)
	if err != nil {
		return Stats{Began: began}, fmt.Errorf("make greeting: %w", err)
	}
	s, err := l.d.Dial(ctx)
	if err != nil {
		return Stats{Began: began}, fmt.Errorf("call neighbour: %w", err)
	}
	c := newContact(s, l.o, began)
	defer c.hangUp(ctx)()
	c.st = g
	if err := c.sayHello(greeting); err != nil {
		return c.snapshot(), err
	}
	return c.run(ctx, func() error {
		hello, err := c.readHello()
		if err != nil {
			return err
		}
		if err := g.Greeted(ctx, hello); err != nil {
			return &farewell{fmt.Errorf("greeting not accepted: %w", err), "greeting not accepted"}
		}
		return nil
	})
}

// Answer serves a neighbour that called over s: it reads the greeting, asks r whose it is, and runs the contact.
// It closes s. A caller that is not admitted hears nothing at all.
func Answer(ctx context.Context, s Stream, r Reception, o StreamOptions) (Stats, error) {
	c := newContact(s, o.withDefaults(), time.Now())
	defer c.hangUp(ctx)()
	until := c.began.Add(c.o.Greet)
	c.s.until.Store(&until)
	hello, err := c.readHello()
	if err != nil {
		return c.snapshot(), firstErr(ctx.Err(), err)
	}
	c.s.until.Store(nil)
	st, err := r.Admit(ctx, hello)
	if err != nil {
		return c.snapshot(), fmt.Errorf("caller not admitted: %w", err)
	}
	if x, ok := st.(Closer); ok {
		defer x.Close()
	}
	c.st = st
	greeting, err := st.Greeting(ctx)
	if err != nil {
		return c.snapshot(), fmt.Errorf("make greeting: %w", err)
	}
	if err := c.sayHello(greeting); err != nil {
		return c.snapshot(), err
	}
	return c.run(ctx, nil)
}

// hangUp cuts the stream when ctx is done; the function it returns closes it for good.
func (c *contact) hangUp(ctx context.Context) func() {
	cut := c.s.Close
	if x, ok := c.s.Stream.(Cutter); ok {
		cut = x.Cut
	}
	stop := context.AfterFunc(ctx, func() { cut() })
	return func() {
		stop()
		if ctx.Err() != nil {
			cut()
			return
		}
		c.s.Close()
	}
}

// sayHello puts preface and greeting into the buffer: the first packets share its flight.
func (c *contact) sayHello(greeting []byte) error {
	if len(greeting) == 0 || len(greeting) > MaxGreeting {
		return fmt.Errorf("greeting of %d bytes", len(greeting))
	}
	if _, err := c.out.w.WriteString(preface); err != nil {
		return err
	}
	return c.out.write(frameHello, nil, greeting)
}

// readHello reads preface and greeting.
func (c *contact) readHello() ([]byte, error) {
	got := make([]byte, len(preface))
	n, err := io.ReadFull(c.in.r, got)
	for i, b := range got[:n] {
		if b == preface[i] {
			continue
		}
		if i == len(preface)-1 {
			return nil, fmt.Errorf("%w: version %d of the link, this node speaks version %d", errFrame, b, preface[i])
		}
		return nil, fmt.Errorf("%w: the other side does not speak mochila's link protocol", errFrame)
	}
	if err != nil {
		// A line that knows why it ended (a program's last words, a modem that nobody answers) says more than a guess.
		hungUp := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
		if errors.Is(err, errSilent) || n > 0 || !hungUp {
			return nil, fmt.Errorf("wait for greeting: %w", err)
		}
		return nil, withHint(fmt.Errorf("the other side hung up without a greeting: %w", cut(err)),
			"the neighbour may not know this node: look at its log")
	}
	f, err := c.in.next()
	if err != nil {
		return nil, fmt.Errorf("read greeting: %w", cut(err))
	}
	switch f.t {
	case frameHello:
		return f.body, nil
	case frameBye:
		return nil, fmt.Errorf("neighbour ended the contact: %q", f.reason())
	}
	return nil, fmt.Errorf("%w: %v before the greeting", errFrame, f.t)
}

func newContact(s Stream, o StreamOptions, began time.Time) *contact {
	p := newPatientStream(s, o.Idle)
	return &contact{
		o: o, s: p, began: began,
		in:       frameReader{r: bufio.NewReaderSize(p, 32<<10)},
		out:      frameWriter{w: bufio.NewWriterSize(p, 32<<10)},
		wake:     make(chan struct{}, 1),
		slots:    make(chan struct{}, maxReceiving),
		offers:   make(map[uint64]*sending),
		incoming: make(map[uint64]*receiving),
		early:    make(map[uint64]bool),
	}
}
