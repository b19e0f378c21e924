package bridge

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"mochila/bridge/route"
	"mochila/bridge/summary"
	"mochila/internal/envelope"
	"mochila/spool"
)

// Summaries that go ahead of large mail, whose legs are held meanwhile (docs/summary.md).

// summaries is the table of the summaries of this node's mail.
const summaries = "summaries"

// summaryMemory is how long beyond the mail's expiry an entry of that table is kept.
const summaryMemory = 90 * 24 * time.Hour

// heldFor begins what a leg says that is held for its readers.
const heldFor = "waits until a reader asks; its summary went ahead as "

// heldForReader reports whether a leg is held because its summary went ahead.
func heldForReader(leg *spool.Leg) bool {
	return leg.State == spool.Held && leg.Last.Code == 0 && strings.HasPrefix(leg.Last.Text, heldFor)
}

// summaryOf is what a rule sends ahead of a mail to one of its recipients; the zero value for a mail that travels whole.
func (p *Policy) summaryOf(env *envelope.Envelope, addr string, rule *route.Rule) route.Summary {
	m := env.Mail
	if env.Size <= rule.Summary.Above || m.Sender == "" || env.Priority > 0 || p.archives(addr) || p.oneWay(rule.Node) > 0 {
		return route.Summary{}
	}
	return rule.Summary
}

// ahead is a summary that enters in the commit of its mail.
type ahead struct {
	addition
	key, value []byte
	held       int64
}

// goAhead makes the summaries that some legs of a new mail want, and holds these legs. sums is parallel to the legs.
func (b *Bridge) goAhead(item *spool.Item, sums []route.Summary, body *spool.Body) (out []*ahead, err error) {
	if !slices.ContainsFunc(sums, func(s route.Summary) bool { return s.Above > 0 }) {
		return nil, nil
	}
	defer func() {
		if err != nil {
			discardAhead(out)
			out = nil
		}
	}()
	r, err := body.Open()
	if err != nil {
		return nil, storageStatus(err)
	}
	defer r.Close()
	m, err := summary.Read(r)
	if err != nil {
		return nil, storageStatus(err)
	}
	for k := range sums {
		if sums[k].Above == 0 || m.Report {
			continue
		}
		if m.Sealing != summary.Open && !sums[k].Signed {
			item.AddLog(item.Entered, "whole", "no summary: it is "+m.Sealing.String())
			b.log.Info(fmt.Sprintf("%s: summary=none (%s)", item.Env.ID, m.Sealing))
			continue
		}
		c := m.Choose(sums[k].Above)
		if c == nil {
			continue
		}
		a, err := b.summarise(item, k, c, sums[k], r)
		if err != nil {
			return out, storageStatus(err)
		}
		out = append(out, a)
	}
	return out, nil
}

// summarise makes the summary for one leg, and holds the leg.
func (b *Bridge) summarise(item *spool.Item, k int, c *summary.Choice, s route.Summary, r io.ReadSeeker) (*ahead, error) {
	p := b.Policy()
	leg := &item.Legs[k]
	id := envelope.NewID(b.now())
	var secret, mark [16]byte
	rand.Read(secret[:])
	rand.Read(mark[:])
	a := &ahead{held: c.Held, key: summaryKey(item.Env.ID, id), value: summaryValue(item, leg, s, secret)}
	a.body = b.spool.NewMailBody()
	err := c.Write(a.body, r, summary.Note{ID: item.Env.ID.String(), MessageID: id.String() + ".summary@" + p.Domain, ReplyTo: releaseAddress(item.Env.ID, secret, p.Domain),
		Node: p.Name + when(p.Domain != p.Name+".mochila", " ("+p.Domain+")"), Until: item.Env.Expires, Boundary: "=_" + hex.EncodeToString(mark[:])})
	if err == nil {
		err = a.body.Finish()
	}
	if err != nil {
		a.discard()
		return nil, err
	}
	env, mail := *item.Env, *item.Env.Mail
	env.ID, env.Mail, env.Size, env.Sum = id, &mail, a.body.Size(), a.body.Sum()
	next := &spool.Item{Env: &env, Trust: item.Trust, Entered: item.Entered, Parent: item.Env.ID, Outcomes: make([]envelope.Outcome, len(leg.Rcpts)),
		Legs: []spool.Leg{{Dest: leg.Dest, State: leg.State, At: leg.At, KeepHop: leg.KeepHop}}}
	mail.Recipients = nil
	for i, of := range leg.Rcpts {
		to := item.Env.Mail.Recipients[of]
		to.Notify = withoutSuccess(to.Notify)
		mail.Recipients = append(mail.Recipients, to)
		next.Outcomes[i].Addr = to.Addr
		next.Legs[0].Rcpts = append(next.Legs[0].Rcpts, i)
	}
	next.AddLog(item.Entered, "summary", "of "+item.Env.ID.String())
	a.item = next
	leg.State, leg.At, leg.Last = spool.Held, time.Time{}, envelope.Status{Text: heldFor + id.String()}
	item.AddLog(item.Entered, "summary", fmt.Sprintf("%s goes ahead to %s, %d bytes in %d parts are held until a reader asks", id, p.nodeName(mustNode(leg.Dest)), c.Held, c.Of))
	return a, nil
}

// withoutSuccess is a NOTIFY that asks for everything but success.
func withoutSuccess(n envelope.Notify) envelope.Notify {
	rest := n &^ envelope.NotifySuccess
	if n != 0 && rest == 0 {
		return envelope.NotifyNever
	}
	return rest
}

func discardAhead(list []*ahead) {
	for _, a := range list {
		a.discard()
	}
}

// addAhead stores the summaries of a mail, in the transaction that stores the mail.
func addAhead(tx *spool.Tx, list []*ahead) error {
	for _, a := range list {
		if err := tx.Add(a.item, a.body); err != nil {
			return err
		}
		if err := tx.KV(summaries).Put(a.key, a.value); err != nil {
			return err
		}
	}
	return nil
}

// logAhead writes the lines of the summaries of a mail.
func (b *Bridge) logAhead(item *spool.Item, list []*ahead) {
	for _, a := range list {
		b.counts.summarised()
		b.log.Info(fmt.Sprintf("%s: summary=%s, node=%s, nrcpt=%d, held=%d bytes", item.Env.ID, a.item.Env.ID, b.Policy().nodeName(mustNode(a.item.Legs[0].Dest)),
			len(a.item.Legs[0].Rcpts), a.held))
		b.logActive(a.item)
	}
}

// entry is one row of the table: what a summary stands for.
type entry struct {
	id     envelope.ID // of the summary
	node   envelope.NodeID
	hash   [32]byte // SHA-256 of the secret in its address
	rcpts  []int    // of the original, in the order of the summary's
	anyone bool     // over there may ask
}

func summaryKey(of, id envelope.ID) []byte { return append(of[:], id[:]...) }

func summaryValue(item *spool.Item, leg *spool.Leg, s route.Summary, secret [16]byte) []byte {
	node, hash := mustNode(leg.Dest), sha256.Sum256(secret[:])
	e := envelope.Enc{B: timeBytes(item.Env.Expires.Add(summaryMemory))}
	e.Bytes(1, node[:])
	e.Bytes(2, hash[:])
	e.Bool(3, s.Anyone)
	for _, i := range leg.Rcpts {
		e.Item(4, binary.AppendUvarint(nil, uint64(i)))
	}
	return e.B
}

func parseEntry(key, value []byte) (*entry, error) {
	e := &entry{}
	if len(key) != 32 || len(value) < 8 {
		return nil, fmt.Errorf("%w: entry of a summary", envelope.ErrFormat)
	}
	copy(e.id[:], key[16:])
	d := envelope.Dec{B: value[8:]}
	for d.Next() {
		switch d.Tag {
		case 1:
			d.Fixed(e.node[:])
		case 2:
			d.Fixed(e.hash[:])
		case 3:
			e.anyone = d.Bool()
		case 4:
			i, n := binary.Uvarint(d.List())
			if n <= 0 || i > 1<<20 {
				return nil, fmt.Errorf("%w: recipient in the entry of a summary", envelope.ErrFormat)
			}
			e.rcpts = append(e.rcpts, int(i))
		default:
			d.Unknown()
		}
	}
	return e, d.Err
}

// entriesOf reads what is known of the summaries of a mail.
func entriesOf(tx *spool.Tx, of envelope.ID) (out []*entry, err error) {
	err = tx.KV(summaries).Each(of[:], func(k, v []byte) error {
		e, err := parseEntry(k, v)
		if err == nil {
			out = append(out, e)
		}
		return err
	})
	return out, err
}

// entryOf is the entry of an item that is a summary, nil for any other.
func (b *Bridge) entryOf(item *spool.Item) (e *entry, err error) {
	if item.Parent.IsZero() || !b.own(item.Env) || item.Env.Mail == nil {
		return nil, nil
	}
	key := summaryKey(item.Parent, item.Env.ID)
	err = b.spool.View(func(tx *spool.Tx) error {
		v := tx.KV(summaries).Get(key)
		if v == nil {
			return nil
		}
		e, err = parseEntry(key, v)
		return err
	})
	return e, err
}

// failOriginal ends the recipients of a mail whose summary cannot reach them, as long as they wait for it: nobody would
// ever ask. What was released goes its own way.
func (b *Bridge) failOriginal(stub *spool.Item, e *entry, fresh []int) error {
	var original *spool.Item
	err := b.spool.View(func(tx *spool.Tx) (err error) { original, err = tx.Item(stub.Parent); return err })
	if err != nil {
		return gone(err)
	}
	var ends []legEnd
	for k := range original.Legs {
		leg := &original.Legs[k]
		if leg.State != spool.Held || leg.Dest == spool.DeadDest {
			continue
		}
		end := legEnd{leg: k, final: map[int]envelope.Outcome{}}
		for _, i := range fresh {
			o := stub.Outcomes[i]
			if o.Action == envelope.ActionFailed && i < len(e.rcpts) && slices.Contains(leg.Rcpts, e.rcpts[i]) {
				end.final[e.rcpts[i]] = o
			}
		}
		if len(end.final) > 0 {
			ends = append(ends, end)
		}
	}
	if len(ends) == 0 {
		return nil
	}
	done, err := b.concludeAll(stub.Parent, ends)
	if err == nil {
		for _, end := range ends {
			b.logEnded(done, end)
		}
	}
	return err
}

// arrivedAhead reports whether the summary of a mail is known to have reached a recipient of it.
func (b *Bridge) arrivedAhead(item *spool.Item, rcpt int) bool {
	var list []*entry
	err := b.spool.View(func(tx *spool.Tx) (err error) { list, err = entriesOf(tx, item.Env.ID); return err })
	if err != nil {
		return false
	}
	for _, e := range list {
		i := slices.Index(e.rcpts, rcpt)
		if i < 0 {
			continue
		}
		stub, _, err := b.spool.Find(e.id)
		if err == nil && i < len(stub.Outcomes) && stub.Outcomes[i].Action.Final() && stub.Outcomes[i].Action != envelope.ActionFailed {
			return true
		}
	}
	return false
}

// neverAsked says in a notice why a leg ends that was held for its readers.
func (b *Bridge) neverAsked(item *spool.Item, leg *spool.Leg) string {
	for _, i := range leg.Rcpts {
		if !item.Outcomes[i].Action.Final() && !b.arrivedAhead(item, i) {
			return "a summary of it was sent, no word of that came back, and nobody asked for the whole mail before its time was over"
		}
	}
	return "its text was delivered in a summary, and nobody asked for the whole mail before its time was over"
}

// HeldForReaders counts the mails of this node that are held because their summaries went ahead, and their bytes.
func (b *Bridge) HeldForReaders() (n int, bytes int64, err error) {
	err = b.spool.View(func(tx *spool.Tx) error {
		var last envelope.ID
		return tx.KV(summaries).Each(nil, func(k, _ []byte) error {
			id := envelope.ID(k[:16])
			if id == last {
				return nil
			}
			last = id
			item, err := tx.Item(id)
			if err == nil && slices.ContainsFunc(item.Legs, func(l spool.Leg) bool { return heldForReader(&l) }) {
				n++
				bytes += item.BodySize
			}
			if errors.Is(err, spool.ErrPoisoned) {
				err = nil
			}
			return gone(err)
		})
	})
	return n, bytes, err
}

// token is what stands in the address that releases a mail: its id and a secret. Lower-case letters and digits only, so
// that no mail system has a reason to change it; 60 characters with what is in front, of 64 that a local part may have.
var tokenCode = base32.StdEncoding.WithPadding(base32.NoPadding)

const releasePrefix = "release+"

func releaseAddress(of envelope.ID, secret [16]byte, domain string) string {
	return releasePrefix + strings.ToLower(tokenCode.EncodeToString(append(of[:], secret[:]...))) + "@" + domain
}

// asks reads an address that stands for the release of a mail held at this node.
func (p *Policy) asks(addr string) (of envelope.ID, secret [16]byte, ok bool) {
	local, domain := route.Split(addr)
	if !strings.EqualFold(domain, p.Domain) && !strings.EqualFold(domain, p.Name+".mochila") || len(local) != len(releasePrefix)+52 || !strings.EqualFold(local[:len(releasePrefix)], releasePrefix) {
		return of, secret, false
	}
	b, err := tokenCode.DecodeString(strings.ToUpper(local[len(releasePrefix):]))
	if err != nil || len(b) != 32 {
		return of, secret, false
	}
	copy(of[:], b)
	copy(secret[:], b[16:])
	return of, secret, true
}

// matches compares the secret of a request, in a time that tells nothing of how much of it is right.
func (e *entry) matches(secret [16]byte) bool {
	hash := sha256.Sum256(secret[:])
	return subtle.ConstantTimeCompare(hash[:], e.hash[:]) == 1
}
