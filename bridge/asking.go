package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"mochila/bridge/bounce"
	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/bridge/summary"
	"mochila/internal/envelope"
	"mochila/spool"
)

// viaSummaries is where mails go that ask for the release of one.
const viaSummaries = "summaries:"

// refuseAsking is the answer to who asks at this node's own door.
func refuseAsking() error {
	return envelope.NewStatus(550, "5.7.1", "only who got the summary may ask for the mail, and by way of the node that it went to")
}

// reader is the place of mails that ask for the release of another one.
type reader struct{ b *Bridge }

// Deliver is deliver.Transport's.
func (x reader) Deliver(_ context.Context, m *deliver.Message) []deliver.Result {
	var out []deliver.Result
	for _, i := range m.Rcpts {
		r := deliver.Result{Rcpt: i, MTA: "summaries", Action: envelope.ActionDelivered}
		text, err := x.b.asked(m, m.Env.Mail.Recipients[i].Addr)
		if err != nil {
			r.Action, r.Status = envelope.ActionPending, statusOf(err)
			if r.Status.Code >= 500 {
				r.Action = envelope.ActionFailed
			}
		} else {
			r.Status = envelope.Status{Code: 250, Enhanced: "2.0.0", Text: text}
		}
		out = append(out, r)
	}
	return out
}

// Close is deliver.Transport's.
func (reader) Close() error { return nil }

// asked takes a mail to an address that releases another mail. The error is a permanent *envelope.Status, or of the spool.
func (b *Bridge) asked(m *deliver.Message, addr string) (string, error) {
	of, secret, ok := b.Policy().asks(addr)
	if !ok {
		return "", notHeld()
	}
	request, err := readRequest(m)
	if err != nil {
		return "", fmt.Errorf("read the request: %w", err)
	}
	if m.Env.Mail.Sender == "" || request.Automatic() {
		b.log.Info(fmt.Sprintf("%s: asks for %s, but a program sent it: nothing is released", m.Env.ID, of))
		return "taken, and nothing released: no person sent it", nil
	}
	var item *spool.Item
	var e *entry
	err = b.spool.View(func(tx *spool.Tx) (err error) {
		if e, err = findEntry(tx, of, secret); err != nil || e == nil {
			return err
		}
		item, err = tx.Item(of)
		return gone(err)
	})
	switch {
	case err != nil:
		return "", err
	case e == nil:
		return "", notHeld()
	case item == nil:
		if item, _, err = b.spool.Find(of); errors.Is(err, spool.ErrNotFound) {
			return "", notHeld()
		} else if err != nil {
			return "", err
		}
	}
	if m.Env.Origin != e.node || !e.anyone && !addressed(item, e, m.Env.Mail.Sender) {
		b.log.Warn(fmt.Sprintf("%s: <%s> of %s asks for %s, which was not for him", m.Env.ID, esc(m.Env.Mail.Sender), b.Policy().nodeName(m.Env.Origin), of))
		return "", envelope.NewStatus(550, "5.7.1", "only those to whom the mail is addressed may ask for it")
	}
	return b.release(m.Env, item, e, request)
}

// notHeld is the answer to a token that is none, or none any more.
func notHeld() error {
	return envelope.NewStatus(550, "5.7.1", "no mail is held here for this address, or not any more; its author may send it again")
}

// readRequest reads the header of a request.
func readRequest(m *deliver.Message) (*summary.Mail, error) {
	r, err := m.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	head, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return nil, err
	}
	return summary.Read(bytes.NewReader(bounce.HeaderOf(head)))
}

// findEntry finds the summary that a token is of, nil when there is none.
func findEntry(tx *spool.Tx, of envelope.ID, secret [16]byte) (found *entry, err error) {
	list, err := entriesOf(tx, of)
	for _, e := range list {
		if e.matches(secret) {
			found = e
		}
	}
	return found, err
}

// addressed reports whether an address is one to which a summary went: as it is now, or as the sender wrote it.
func addressed(item *spool.Item, e *entry, addr string) bool {
	for _, i := range e.rcpts {
		if i >= len(item.Env.Mail.Recipients) {
			continue
		}
		r := &item.Env.Mail.Recipients[i]
		if sameAddress(r.Addr, addr) || r.ORcpt != "" && strings.EqualFold(r.ORcpt, orcpt(addr)) {
			return true
		}
	}
	return false
}

// sameAddress compares addresses without regard to case, as all mail systems do by now, and to needless quotes.
func sameAddress(a, b string) bool {
	la, da := route.Split(a)
	lb, db := route.Split(b)
	return strings.EqualFold(da, db) && strings.EqualFold(route.Unquote(la), route.Unquote(lb))
}

// release lets the legs go that a summary stands for, together with the answer to who asked. Asked again, nothing more
// happens.
func (b *Bridge) release(by *envelope.Envelope, seen *spool.Item, e *entry, request *summary.Mail) (string, error) {
	switch freed, how := b.free(seen, e); {
	case how == legsHeld:
		return "", envelope.NewStatus(550, "5.7.1", "the mail is held by the operator of this node")
	case how == legsOver:
		return "", notHeld()
	case len(freed) == 0:
		return "it was released before", nil
	}
	a, err := b.answerReader(by.Mail.Sender, seen, request)
	if err != nil {
		return "", err
	}
	now := b.now()
	done := false
	var item *spool.Item
	err = b.spool.Apply(func(tx *spool.Tx) error {
		done = false
		if item, err = tx.Item(seen.Env.ID); err != nil {
			return err
		}
		freed, _ := b.free(item, e)
		if len(freed) == 0 {
			return nil
		}
		for _, k := range freed {
			leg := &item.Legs[k]
			leg.State, leg.At, leg.Last = spool.Due, time.Time{}, envelope.Status{}
		}
		item.AddLog(now, "released", "asked for by "+by.Mail.Sender+", "+by.ID.String())
		if err := tx.Add(a.item, a.body); err != nil {
			return err
		}
		done = true
		return tx.Save(item)
	})
	if err != nil || !done {
		a.discard()
	}
	switch {
	case errors.Is(err, spool.ErrNotFound):
		return "", notHeld()
	case err != nil:
		return "", err
	case !done:
		return "it was released before", nil
	}
	b.counts.released()
	b.log.Info(fmt.Sprintf("%s: released, asked for by <%s> of %s (%s)", item.Env.ID, esc(by.Mail.Sender), b.Policy().nodeName(by.Origin), by.ID))
	b.logActive(a.item)
	b.kickContacts()
	return "the mail is on its way", nil
}

// How the legs of a summary stand of which none waits for its reader.
const (
	legsOver  = iota // failed
	legsHeld         // by an operator
	legsGoing        // or arrived
)

// free lists the legs of a mail that a request for one summary lets go; if there are none, how says why.
func (b *Bridge) free(item *spool.Item, e *entry) (freed []int, how int) {
	for k := range item.Legs {
		leg := &item.Legs[k]
		if !slices.ContainsFunc(leg.Rcpts, func(i int) bool { return slices.Contains(e.rcpts, i) }) || leg.Dest == spool.DeadDest {
			continue
		}
		switch {
		case heldForReader(leg):
			freed, how = append(freed, k), legsGoing
		case leg.State == spool.Held:
			how = max(how, legsHeld)
		case leg.State != spool.Done || slices.ContainsFunc(leg.Rcpts, func(i int) bool { return item.Outcomes[i].Action != envelope.ActionFailed }):
			how = legsGoing
		}
	}
	return freed, how
}

// answerReader makes the short mail to who asked: it comes on its way, and what he wrote besides was read by nobody.
func (b *Bridge) answerReader(to string, item *spool.Item, request *summary.Mail) (*addition, error) {
	p := b.Policy()
	id, now := envelope.NewID(b.now()), b.now()
	original, err := summary.Read(bytes.NewReader(b.headerOf(item)))
	if err != nil {
		return nil, err
	}
	var w bytes.Buffer
	err = summary.Answer{From: or(p.Postmaster, "postmaster@"+p.Domain), Node: p.Name, To: to, Subject: request.Subject(), InReplyTo: request.MessageID(),
		MessageID: id.String() + "@" + p.Domain, Date: now, ID: item.Env.ID.String(), Size: item.Env.Size, Author: original.Author()}.Write(&w)
	if err != nil {
		return nil, err
	}
	mail := &envelope.Mail{Recipients: []envelope.Recipient{{Addr: to, Notify: envelope.NotifyNever}}, SMTPUTF8: !isASCII(to), Body: "7BIT"}
	return b.ownNotice(id, mail, w.Bytes(), item.Env.ID, now)
}
