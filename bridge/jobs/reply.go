package jobs

import (
	"errors"
	"fmt"
	"io"

	"mochila/internal/envelope"
	"mochila/spool"
)

// Reply says where the outcome of a job goes by mail. It is kept until the job has its last outcome.
type Reply struct {
	To        string // address, as wire text
	Subject   string // of the mail that the job was made by; "" for another job
	MessageID string // of that mail

	owed  bool   // there is an outcome that was not mailed yet
	count uint64 // outcomes so far
}

func (r *Reply) encode() []byte {
	var w envelope.Enc
	w.String(1, r.To)
	w.String(2, r.Subject)
	w.String(3, r.MessageID)
	w.Bool(4, r.owed)
	w.Uint(5, r.count)
	return w.B
}

func parseReply(b []byte) (*Reply, error) {
	r := new(Reply)
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			r.To = d.String()
		case 2:
			r.Subject = d.String()
		case 3:
			r.MessageID = d.String()
		case 4:
			r.owed = d.Bool()
		case 5:
			r.count = d.Uint()
		default:
			d.Unknown()
		}
	}
	return r, d.Err
}

// Letter is an outcome that is to be told by mail.
type Letter struct {
	View   *View
	Reply  *Reply
	Stdout func() (io.ReadCloser, error) // View.Result.Stdout bytes; nil when nothing was kept
	Stderr func() (io.ReadCloser, error)
}

// oweReply notes, in the transaction of an outcome, that it is to be mailed.
func oweReply(tx *spool.Tx, id envelope.ID) error {
	v := tx.KV(tabReply).Get(id[:])
	if v == nil {
		return nil
	}
	r, err := parseReply(v)
	if err != nil {
		return err
	}
	r.owed = true
	r.count++
	return tx.KV(tabReply).Put(id[:], r.encode())
}

// replyAll writes the mails that a crash has left unwritten.
func (j *Jobs) replyAll() {
	var owed []envelope.ID
	err := j.spool.View(func(tx *spool.Tx) error {
		return tx.KV(tabReply).Each(nil, func(k, v []byte) error {
			if r, err := parseReply(v); err == nil && r.owed && len(k) == 16 {
				owed = append(owed, envelope.ID(k))
			}
			return nil
		})
	})
	if err != nil {
		j.log.Error("look for results to mail", "err", err)
	}
	for _, id := range owed {
		j.reply(id)
	}
}

// errNewer says that another outcome came while a mail was written.
var errNewer = errors.New("a newer outcome has come")

// reply writes the mail about the outcome of a job, if somebody asked for one: once for each outcome, whatever crashes.
func (j *Jobs) reply(id envelope.ID) {
	for {
		err := j.replyOnce(id)
		if errors.Is(err, errNewer) {
			continue
		}
		if err != nil && !errors.Is(err, spool.ErrClosed) {
			j.log.Error("mail the result of a job", "id", id.String(), "err", err)
		}
		return
	}
}

func (j *Jobs) replyOnce(id envelope.ID) error {
	var r *Reply
	err := j.spool.View(func(tx *spool.Tx) (err error) {
		if v := tx.KV(tabReply).Get(id[:]); v != nil {
			r, err = parseReply(v)
		}
		return err
	})
	if err != nil || r == nil || !r.owed || j.o.Compose == nil {
		return err
	}
	v, err := j.Show(id)
	if err != nil {
		return err
	}
	if v.Result == nil {
		return fmt.Errorf("job %s has no outcome", id)
	}
	l := &Letter{View: v, Reply: r}
	if !v.ResultID.IsZero() {
		l.Stdout = j.output(v.ResultID, 0, v.Result.Stdout)
		l.Stderr = j.output(v.ResultID, v.Result.Stdout, v.Result.Stderr)
	}
	item, body, err := j.o.Compose(l)
	if err != nil {
		return err
	}
	last := !v.Result.Held
	err = j.spool.Apply(func(tx *spool.Tx) error {
		b := tx.KV(tabReply).Get(id[:])
		if b == nil {
			return errNewer // somebody was faster: look again
		}
		now, err := parseReply(b)
		if err != nil {
			return err
		}
		if !now.owed || now.count != r.count {
			return errNewer
		}
		if err := tx.Add(item, body); err != nil {
			return err
		}
		if last {
			return tx.KV(tabReply).Delete(id[:])
		}
		now.owed = false
		return tx.KV(tabReply).Put(id[:], now.encode())
	})
	if err != nil {
		body.Discard()
	}
	return err
}

// output opens a part of what a program wrote.
func (j *Jobs) output(result envelope.ID, from, size int64) func() (io.ReadCloser, error) {
	if size == 0 {
		return nil
	}
	return func() (io.ReadCloser, error) {
		r, err := j.spool.OpenBody(result)
		if err != nil {
			return nil, err
		}
		if _, err := r.Seek(from, io.SeekStart); err != nil {
			r.Close()
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(r, size), r}, nil
	}
}
