package bridge

import (
	"context"
	"errors"
	"fmt"

	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport"
)

// ErrLeft says that an envelope cannot be carried by hand: it has left, or ended.
var ErrLeft = errors.New("it has left already, or ended")

// Mailing hands one job of this node, which has not left yet, to l and nothing else, sealed for its destination as if that were a
// neighbour. name stands for the way in the queue and the log, and is another one each time. When l fails, the job is
// due again.
func (b *Bridge) Mailing(ctx context.Context, id envelope.ID, name string, l transport.Link) error {
	var item *spool.Item
	err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(id); return err })
	if err != nil {
		return err
	}
	node, ok := item.Legs[0].Dest.Node()
	if s := item.Legs[0].State; item.Env.Kind != envelope.KindJob || !b.own(item.Env) || !ok || s != spool.Held && s != spool.Due {
		return fmt.Errorf("job %s: %w", id, ErrLeft)
	}
	d := b.openDesk(&Contact{Node: node, NodeName: b.Policy().nodeName(node), URL: name})
	d.only = &spool.Ref{ID: id}
	st, err := l.Run(ctx, d)
	d.close(0)
	switch {
	case err != nil:
		return errors.Join(err, b.Unexport(name))
	case st.PacketsOut == 0:
		return fmt.Errorf("job %s: %w", id, ErrLeft)
	}
	return nil
}

// packOne makes a packet of one envelope, due or held, and puts it into ready. The desk's mutex is held.
func (d *desk) packOne(ref spool.Ref) error {
	b := d.b
	var item *spool.Item
	err := b.spool.View(func(tx *spool.Tx) (err error) { item, err = tx.Item(ref.ID); return err })
	if err != nil {
		return gone(err)
	}
	if s, expired := b.expiredNow(item); expired {
		return fmt.Errorf("job %s: %s", ref.ID, s.Text)
	}
	l := b.newLoad()
	l.add(item, ref)
	held, err := d.addReceipts(l, d.node)
	if err != nil {
		return err
	}
	x, err := b.sealLoad(l, d.node, d.node, classOf(item))
	if err != nil {
		return err
	}
	x.held, x.byHand = held, true
	return d.expose(x)
}
