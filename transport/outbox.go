package transport

import (
	"context"
	"errors"
	"fmt"
)

// maxFailed is how many packets may fail in one contact before it ends: a damaged one must not stop the rest,
// and a broken carrier must not drain the whole queue into failures.
const maxFailed = 16

// outbox takes packets from a Station and remembers which ones failed in this contact, so that a Station that
// offers the same packet again does not make the contact go round for ever.
type outbox struct {
	st  Station
	bad map[ID]bool
}

// next returns the packet to send, nil when nothing is due (or only what has failed already).
func (o *outbox) next(ctx context.Context) (*Packet, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := o.st.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("next packet: %w", err)
	}
	if p == nil || o.bad[p.ID] {
		return nil, nil
	}
	return p, nil
}

// failed notes that p could not be sent; an error means that too many have failed.
func (o *outbox) failed(p *Packet) error {
	if o.bad == nil {
		o.bad = make(map[ID]bool)
	}
	o.bad[p.ID] = true
	if len(o.bad) >= maxFailed {
		return fmt.Errorf("%d packets failed in one contact", len(o.bad))
	}
	return nil
}

// passOver reports whether an error concerns one packet and not the carrier.
func passOver(err error) bool {
	return errors.Is(err, ErrFull) || errors.Is(err, ErrRefused) || errors.Is(err, errDamaged)
}

func firstErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
