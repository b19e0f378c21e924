package bridge

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"

	"mochila/bridge/deliver"
	"mochila/internal/envelope"
	"mochila/spool"
)

// refusing is a place that refuses every mail for good.
type refusing struct{ calls *atomic.Int64 }

func (r refusing) Deliver(_ context.Context, m *deliver.Message) (out []deliver.Result) {
	r.calls.Add(1)
	for _, i := range m.Rcpts {
		out = append(out, deliver.Result{Rcpt: i, Action: envelope.ActionFailed, MTA: "test", Status: envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no such user"}})
	}
	return out
}

func (refusing) Close() error { return nil }

// TestNoSecondDeliveryBeforeTheFirstIsRecorded has a place decide about a mail while the disk is too full to store the
// notice that follows: the mail is not handed over again, and the notice is made when there is room.
func TestNoSecondDeliveryBeforeTheFirstIsRecorded(t *testing.T) {
	n := newNode(t, "camp")
	n.close()
	var free, calls atomic.Int64
	free.Store(1 << 40)
	asked := make(chan struct{}, 4)
	sp, err := spool.Open(filepath.Join(n.dir, "spool2"), spool.Options{Reserve: 1 << 20, OnDue: func(d spool.Dest) { n.b.OnDue(d) },
		Free: func() (int64, int64, error) {
			f := free.Load()
			if f == 0 {
				select {
				case asked <- struct{}{}:
				default:
				}
			}
			return f, 1 << 41, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	n.sp = sp
	n.b, err = New(Options{Spool: sp, Keys: n.keys, Policy: n.pol, Now: n.now, NoContacts: true,
		Deliver: func(string) (deliver.Transport, error) { return refusing{&calls}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	n.submit("ana@elsewhere.example", "bob@camp.example", "Subject: x\r\n\r\nx\r\n")
	free.Store(0)
	n.run()
	eventually(t, "the mail is handed over", func() bool { return calls.Load() == 1 })
	for range 2 * cap(asked) { // the first commit fails, and the next tries of it
		<-asked
	}
	if c := calls.Load(); c != 1 {
		t.Errorf("handed over %d times although the outcome could not be recorded", c)
	}
	free.Store(1 << 40)
	eventually(t, "the notice is there and the mail has ended", func() bool {
		items, _, err := n.sp.List(spool.Query{})
		return err == nil && len(items) == 1 && items[0].Env.Mail.Sender == "" && items[0].Legs[0].Dest == spool.DeadDest
	})
	if c := calls.Load(); c != 1 {
		t.Errorf("handed over %d times", c)
	}
}
