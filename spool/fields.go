package spool

import (
	"encoding/binary"
	"math"

	"mochila/internal/envelope"
)

// appendRest writes the fields of a record that follow its head.
func appendRest(b []byte, it *Item) ([]byte, error) {
	w := envelope.Enc{B: b}
	w.String(recTrust, it.Trust)
	for i := range it.Legs {
		m := w.Begin(recLeg)
		putLeg(&w, &it.Legs[i])
		w.End(m)
	}
	for i := range it.Outcomes {
		m := w.Begin(recOutcome)
		putOutcome(&w, &it.Outcomes[i], recipient(it.Env, i))
		w.End(m)
	}
	w.Bool(recDelayed, it.Delayed)
	w.Bool(recNoReport, it.NoReport)
	if t := it.Transit; t != nil {
		m := w.Begin(recTransit)
		w.Item(1, t.Dest[:])
		w.Uint(2, uint64(t.Class))
		w.Uint(3, uint64(t.HopsLeft))
		w.Item(4, t.From[:])
		w.Uint(5, uint64(math.MaxUint16-t.Left))
		w.End(m)
	}
	log := it.Log
	if n := len(log) - MaxLog; n > 0 {
		log = log[n:]
	}
	for i := range log {
		m := w.Begin(recLog)
		w.Time(1, log[i].At)
		w.String(2, log[i].What)
		w.String(3, log[i].Detail)
		w.End(m)
	}
	if !it.Parent.IsZero() {
		w.Item(recParent, it.Parent[:])
	}
	w.String(recProblem, it.Problem)
	m := w.Begin(recEnv)
	w.B = envelope.AppendStored(w.B, it.Env)
	w.End(m)
	if !it.Done() {
		w.Bytes(recHeader, it.Header)
	}
	return w.B, nil
}

// recipient is the address of the i-th recipient, "" when there is none.
func recipient(e *envelope.Envelope, i int) string {
	if e == nil || e.Mail == nil || i >= len(e.Mail.Recipients) {
		return ""
	}
	return e.Mail.Recipients[i].Addr
}

// putLeg writes what the head does not hold of a leg. Recipients are a run of uvarint steps from one index to the next.
func putLeg(w *envelope.Enc, l *Leg) {
	if len(l.Rcpts) > 0 {
		m := w.Begin(1)
		prev := 0
		for _, r := range l.Rcpts {
			w.B = binary.AppendVarint(w.B, int64(r)-int64(prev))
			prev = r
		}
		w.End(m)
	}
	w.Uint(2, uint64(max(l.Attempts, 0)))
	w.Int(3, int64(l.Last.Code))
	w.String(4, l.Last.Enhanced)
	w.String(5, l.Last.Text)
	w.String(6, l.Carrier)
	w.Bool(7, l.KeepHop)
}

// takeLeg reads what putLeg wrote.
func takeLeg(b []byte, l *Leg) error {
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			v := d.Bytes()
			prev := int64(0)
			for len(v) > 0 {
				step, n := binary.Varint(v)
				prev += step
				if n <= 0 || prev < 0 || prev > math.MaxInt32 {
					d.Fail("broken recipient list")
					break
				}
				l.Rcpts = append(l.Rcpts, int(prev))
				v = v[n:]
			}
		case 2:
			l.Attempts = int(d.Max(math.MaxInt32))
		case 3:
			l.Last.Code = int(d.Int())
		case 4:
			l.Last.Enhanced = d.String()
		case 5:
			l.Last.Text = d.String()
		case 6:
			l.Carrier = d.String()
		case 7:
			l.KeepHop = d.Bool()
		default:
			d.Unknown()
		}
	}
	return d.Err
}

// putOutcome writes an outcome; the address only when it is not the recipient's own.
func putOutcome(w *envelope.Enc, o *envelope.Outcome, rcpt string) {
	if o.Addr != rcpt {
		w.String(1, o.Addr)
	}
	w.Uint(2, uint64(o.Action))
	w.Int(3, int64(o.Status.Code))
	w.String(4, o.Status.Enhanced)
	w.String(5, o.Status.Text)
	w.String(6, o.MTA)
	w.Time(7, o.At)
	w.Bool(8, o.DSN)
}

// takeOutcome reads what putOutcome wrote.
func takeOutcome(b []byte, o *envelope.Outcome) error {
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			o.Addr = d.String()
		case 2:
			o.Action = envelope.Action(d.Max(uint64(envelope.ActionDelayed)))
		case 3:
			o.Status.Code = int(d.Int())
		case 4:
			o.Status.Enhanced = d.String()
		case 5:
			o.Status.Text = d.String()
		case 6:
			o.MTA = d.String()
		case 7:
			o.At = d.Time()
		case 8:
			o.DSN = d.Bool()
		default:
			d.Unknown()
		}
	}
	return d.Err
}

// parseRest reads what appendRest wrote into it, whose legs are made already.
func parseRest(b []byte, it *Item) error {
	d := envelope.Dec{B: b}
	leg := 0
	for d.Next() {
		switch d.Tag {
		case recTrust:
			it.Trust = d.String()
		case recLeg:
			if leg == len(it.Legs) {
				d.Fail("more legs than the head says")
				break
			}
			if err := takeLeg(d.List(), &it.Legs[leg]); err != nil {
				return err
			}
			leg++
		case recOutcome:
			var o envelope.Outcome
			if err := takeOutcome(d.List(), &o); err != nil {
				return err
			}
			it.Outcomes = append(it.Outcomes, o)
		case recDelayed:
			it.Delayed = d.Bool()
		case recNoReport:
			it.NoReport = d.Bool()
		case recTransit:
			it.Transit = new(Transit)
			if err := takeTransit(d.Bytes(), it.Transit); err != nil {
				return err
			}
		case recLog:
			var e LogEntry
			if err := takeLog(d.List(), &e); err != nil {
				return err
			}
			if len(it.Log) == MaxLog {
				d.Fail("more than %d log entries", MaxLog)
				break
			}
			it.Log = append(it.Log, e)
		case recParent:
			d.Fixed(it.Parent[:])
		case recProblem:
			it.Problem = d.String()
		case recEnv:
			env, err := envelope.ParseStored(d.Bytes())
			if err != nil {
				return err
			}
			it.Env = env
		case recHeader:
			it.Header = clone(d.Bytes())
		default:
			d.Unknown()
		}
	}
	if d.Err == nil && (it.Env == nil || leg != len(it.Legs)) {
		d.Fail("no envelope, or a leg is missing")
	}
	if d.Err != nil {
		return d.Err
	}
	for i := range it.Outcomes {
		if it.Outcomes[i].Addr == "" {
			it.Outcomes[i].Addr = recipient(it.Env, i)
		}
	}
	return nil
}

func takeTransit(b []byte, t *Transit) error {
	t.Left = math.MaxUint16
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			d.Fixed(t.Dest[:])
		case 2:
			t.Class = uint8(d.Max(math.MaxUint8))
		case 3:
			t.HopsLeft = uint8(d.Max(math.MaxUint8))
		case 4:
			d.Fixed(t.From[:])
		case 5:
			t.Left = math.MaxUint16 - uint16(d.Max(math.MaxUint16))
		default:
			d.Unknown()
		}
	}
	return d.Err
}

func takeLog(b []byte, e *LogEntry) error {
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			e.At = d.Time()
		case 2:
			e.What = d.String()
		case 3:
			e.Detail = d.String()
		default:
			d.Unknown()
		}
	}
	return d.Err
}
