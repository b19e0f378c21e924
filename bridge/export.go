package bridge

import (
	"context"
	"errors"
	"io"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// ExportResult is how one Export went.
type ExportResult struct {
	Stats     transport.Stats
	Envelopes int // of ours that went along
	Left      int // that are due and found no room
}

// receiptRoom is kept free for receipts at the end of a medium, in bytes.
const receiptRoom = 4 << 10

// Export hands all that is due for a neighbour to l, a link that writes one medium. name stands for that medium in the queue and the
// log; it is another one each time. room, if set, is the size of the largest packet that still fits: what does not stays due. When l
// fails everything that it took is due again.
func (b *Bridge) Export(ctx context.Context, node envelope.NodeID, name string, room func() int64, l transport.Link) (ExportResult, error) {
	p := b.Policy()
	c := &Contact{Node: node, NodeName: p.nodeName(node), URL: name}
	for _, x := range p.Contacts {
		if x.Node == node && c.Overdue == 0 {
			c.Overdue = x.Overdue
		}
	}
	d := b.openDesk(c)
	d.room = room
	st, err := l.Run(ctx, d)
	r := ExportResult{Stats: st}
	r.Envelopes, _, _ = d.close(0)
	if err != nil {
		return r, errors.Join(err, b.Unexport(name))
	}
	counts, err := b.spool.Counts()
	for _, q := range counts {
		if n, ok := q.Dest.Node(); ok && d.serves(n) {
			r.Left += q.States[spool.Due]
		}
	}
	return r, err
}

// Unexport makes due again what went to a medium that turned out to be worth nothing.
func (b *Bridge) Unexport(name string) error {
	var lost []resend
	err := b.spool.View(func(tx *spool.Tx) error {
		return tx.EachSent(func(s *spool.Sent) error {
			if s.Carrier != name || s.Packet == ([32]byte{}) {
				return nil
			}
			in, err := carried(tx, s)
			if errors.Is(err, spool.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			lost = append(lost, resend{s, in.Refs})
			return nil
		})
	})
	for _, s := range lost {
		if e := b.giveUp(s); e != nil {
			err = errors.Join(err, e)
		}
	}
	b.kickContacts()
	return err
}

// Intake is where packets are brought that lie on a medium which nobody can write back to.
type Intake struct{ d *desk }

// OpenIntake opens one; Close it.
func (b *Bridge) OpenIntake() *Intake { return &Intake{b.openDesk(&Contact{URL: "import:"})} }

// Known is transport.Station's.
func (i *Intake) Known(head []byte, size int64) bool { return i.d.Known(head, size) }

// Receive is transport.Station's.
func (i *Intake) Receive(ctx context.Context, size int64, r io.Reader) error {
	return i.d.Receive(ctx, size, r)
}

// Close ends it.
func (i *Intake) Close() {
	i.d.close(0)
	i.d.b.kickContacts()
}
