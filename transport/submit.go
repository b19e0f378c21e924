package transport

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// SubmitOptions configures a SubmitLink.
type SubmitOptions struct {
	Log      *slog.Logger // nil: silent
	Progress func(Stats)  // called after each packet; nil: nobody looks
}

// SubmitLink makes a Link of a Submitter. It only sends: what comes back arrives by another way, unless the Submitter
// is a Source.
type SubmitLink struct {
	s Submitter
	o SubmitOptions
}

// NewSubmitLink returns the Link over s.
func NewSubmitLink(s Submitter, o SubmitOptions) *SubmitLink {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &SubmitLink{s: s, o: o}
}

// Run takes what has arrived at a Source and submits all that is due. A packet that the carrier refuses (ErrRefused, ErrFull: too big for it, say) is
// passed over; any other error ends the contact, because the next packet would meet it too. The first error is
// returned; nothing that failed is reported as Sent.
func (l *SubmitLink) Run(ctx context.Context, st Station) (Stats, error) {
	stats := Stats{Began: time.Now()}
	out := outbox{st: st}
	var first error
	if src, ok := l.s.(Source); ok {
		first = arrivals(ctx, src, st, &stats, l.o.Log)
	}
	for {
		p, err := out.next(ctx)
		if err != nil || p == nil {
			return stats, firstErr(first, err)
		}
		q := *p
		q.Open = func(off int64) (io.ReadCloser, error) {
			if off != 0 {
				return p.Open(off)
			}
			return openWhole(ctx, p)
		}
		if err := l.s.Submit(ctx, &q); err != nil {
			err = fmt.Errorf("submit packet %s: %w", p.ID, err)
			first = firstErr(first, err)
			if !passOver(err) {
				return stats, first
			}
			l.o.Log.Warn("packet passed over", "packet", p.ID, "err", err)
			if err := out.failed(p); err != nil {
				return stats, first
			}
			continue
		}
		stats.PacketsOut++
		stats.BytesOut += p.Size
		st.Sent(p)
		if l.o.Progress != nil {
			l.o.Progress(stats)
		}
	}
}

// Watch returns a channel that hints at new packets where they appear in a folder, and nil otherwise. It is closed when
// ctx is done.
func (l *SubmitLink) Watch(ctx context.Context) <-chan struct{} {
	p, ok := l.s.(interface{ place() string })
	if !ok || p.place() == "" {
		return nil
	}
	hints := make(chan struct{}, 1)
	w := &dirWatch{full: p.place(), hints: hints}
	go w.run(ctx)
	return hints
}
