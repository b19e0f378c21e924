package transport_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// postbox is a Submitter in memory that takes packets up to a size.
type postbox struct {
	max     int64
	arrived [][]byte
}

func (p *postbox) Submit(ctx context.Context, q *transport.Packet) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.max > 0 && q.Size > p.max {
		return fmt.Errorf("letter is too thick: %w", transport.ErrRefused)
	}
	r, err := q.Open(0)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	p.arrived = append(p.arrived, b)
	return nil
}

func TestSubmitterConforms(t *testing.T) {
	transporttest.TestSubmitter(t, func(*testing.T) (transport.Submitter, func() [][]byte) {
		p := &postbox{}
		return p, func() [][]byte { return p.arrived }
	})
}

func TestSubmitLinkPassesOverWhatIsTooBig(t *testing.T) {
	big, small := transporttest.Packet(0, transporttest.Random(1, 9000)), transporttest.Packet(1, transporttest.Random(2, 900))
	st := transporttest.NewStation("", big, small)
	seen := 0
	link := transport.NewSubmitLink(&postbox{max: 1000}, transport.SubmitOptions{Progress: func(transport.Stats) { seen++ }})
	stats, err := link.Run(t.Context(), st)
	if err == nil || stats.PacketsOut != 1 || st.SentCount(small.ID) != 1 || st.SentCount(big.ID) != 0 || seen != 1 {
		t.Errorf("%+v, %v, progress %d times", stats, err, seen)
	}
}
