package envelope

import (
	"fmt"
	"math"
	"time"
)

// ParseEnvelope reads what AppendEnvelope wrote, and only that: any other encoding of the same envelope, an
// unknown field, or a value that Check refuses is an error that wraps ErrFormat. Origin is left empty: the
// session in which the envelope came names it.
func ParseEnvelope(b []byte) (*Envelope, error) {
	if len(b) > MaxHeader {
		return nil, fmt.Errorf("%w: envelope header of %d bytes, more than %d", ErrFormat, len(b), MaxHeader)
	}
	e, err := parse(b, false)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if err := e.Check(); err != nil {
		return nil, err
	}
	return e, nil
}

// ParseStored reads what AppendStored wrote.
func ParseStored(b []byte) (*Envelope, error) {
	e, err := parse(b, true)
	if err != nil {
		return nil, fmt.Errorf("stored envelope: %w", err)
	}
	return e, nil
}

func parse(b []byte, stored bool) (*Envelope, error) {
	e := new(Envelope)
	d := Dec{B: b}
	if !d.Next() || d.Tag != envID {
		d.Fail("no envelope id in front")
		return nil, d.Err
	}
	d.Fixed(e.ID[:])
	e.Created = e.ID.Time().UTC()
	for d.Next() {
		switch d.Tag {
		case envCreated:
			t := d.Time()
			if t.Equal(e.Created) {
				d.Fail("creation time that the id tells already")
			}
			e.Created = t
		case envExpires:
			e.Expires = time.Unix(int64(d.Max(maxMilli/1000)), 0).UTC()
		case envPriority:
			e.Priority = int(d.Int())
		case envSize:
			e.Size = int64(d.Max(math.MaxInt64))
		case envSum:
			d.Fixed(e.Sum[:])
			if e.Sum == [32]byte{} {
				d.Fail("sum of zeros")
			}
		case envHops:
			e.Hops = int(d.Max(math.MaxInt32))
		case envMail:
			e.kind(&d, KindMail)
			e.Mail = new(Mail)
			d.Sub(e.Mail.parse)
		case envJob:
			e.kind(&d, KindJob)
			e.Job = new(Job)
			d.Sub(e.Job.parse)
		case envReport:
			e.kind(&d, KindReport)
			e.Report = new(Report)
			d.Sub(e.Report.parse)
		case envResult:
			e.kind(&d, KindResult)
			e.Result = new(Result)
			d.Sub(e.Result.parse)
		case envAge:
			e.Age = time.Duration(d.Max(uint64(MaxAge/time.Second))) * time.Second
		case envOrigin, envTransit:
			if !stored {
				d.Unknown()
			} else if d.Tag == envOrigin {
				d.Fixed(e.Origin[:])
				if e.Origin.IsZero() {
					d.Fail("origin of zeros")
				}
			} else {
				e.kind(&d, KindTransit)
				d.Fixed(nil)
			}
		default:
			d.Unknown()
		}
	}
	return e, d.Err
}

// kind notes what the envelope is; two kinds in one are refused.
func (e *Envelope) kind(d *Dec, k Kind) {
	if e.Kind != 0 {
		d.Fail("an envelope of two kinds")
	}
	e.Kind = k
}

func (m *Mail) parse(d *Dec) {
	for d.Next() {
		switch d.Tag {
		case mailSender:
			m.Sender = d.String()
		case mailRecipient:
			d.List()
			if len(m.Recipients) >= MaxRecipients {
				d.Fail("more than %d recipients", MaxRecipients)
				return
			}
			m.Recipients = append(m.Recipients, Recipient{})
			d.Sub(m.Recipients[len(m.Recipients)-1].parse)
		case mailRet:
			m.Ret = d.String()
		case mailEnvID:
			m.EnvID = d.String()
		case mailBody:
			m.Body = d.String()
		case mailSMTPUTF8:
			m.SMTPUTF8 = d.Bool()
		case mailRequireTLS:
			m.RequireTLS = d.Bool()
		case mailBy:
			m.By = new(By)
			d.Sub(m.By.parse)
		case mailHoldUntil:
			m.HoldUntil = d.Time()
		case mailAuth:
			s := string(d.V)
			m.Auth = &s
		case mailClient:
			d.Bytes()
			d.Sub(m.Client.parse)
		case mailPriority:
			m.Priority = int(d.Int())
		default:
			d.Unknown()
		}
	}
}

func (r *Recipient) parse(d *Dec) {
	for d.Next() {
		switch d.Tag {
		case rcptAddr:
			r.Addr = d.String()
		case rcptNotify:
			r.Notify = Notify(d.Max(math.MaxUint8))
		case rcptORcpt:
			r.ORcpt = d.String()
		default:
			d.Unknown()
		}
	}
}

func (y *By) parse(d *Dec) {
	for d.Next() {
		switch d.Tag {
		case byDeadline:
			y.Deadline = d.Time()
		case byReturn:
			y.Return = d.Bool()
		case byTrace:
			y.Trace = d.Bool()
		default:
			d.Unknown()
		}
	}
}

func (c *Client) parse(d *Dec) {
	for d.Next() {
		switch d.Tag {
		case clientProto:
			c.Proto = d.String()
		case clientName:
			c.Name = d.String()
		case clientAddr:
			c.Addr = d.String()
		case clientPort:
			c.Port = d.String()
		case clientHelo:
			c.Helo = d.String()
		case clientIdent:
			c.Ident = d.String()
		case clientSource:
			c.Source = d.String()
		case clientUser:
			c.User = d.String()
		case clientUID:
			c.UID = d.Int()
		case clientTLS:
			c.TLS = d.String()
		default:
			d.Unknown()
		}
	}
}

func (r *Report) parse(d *Dec) {
	ref := false
	for d.Next() {
		switch d.Tag {
		case reportRef:
			d.Fixed(r.Ref[:])
			ref = true
		case reportNode:
			r.Node = d.oneLine(MaxNodeName)
		case reportOutcome:
			d.List()
			if len(r.Recipients) >= MaxRecipients {
				d.Fail("more than %d outcomes", MaxRecipients)
				return
			}
			r.Recipients = append(r.Recipients, Outcome{})
			d.Sub(r.Recipients[len(r.Recipients)-1].parse)
		default:
			d.Unknown()
		}
	}
	if !ref {
		d.Fail("a report about nothing")
	}
}

// ParseOutcome reads what AppendOutcome wrote.
func ParseOutcome(b []byte) (Outcome, error) {
	var o Outcome
	d := Dec{B: b}
	o.parse(&d)
	return o, d.Err
}

func (o *Outcome) parse(d *Dec) {
	for d.Next() {
		switch d.Tag {
		case outAddr:
			o.Addr = d.String()
		case outAction:
			o.Action = Action(d.Max(math.MaxUint8))
		case outMTA:
			o.MTA = d.oneLine(MaxMTA)
		case outAt:
			o.At = d.Time()
		case outCode, outEnh, outText:
			o.Status.field(d, outCode)
		case outDSN:
			o.DSN = d.Bool()
		default:
			d.Unknown()
		}
	}
}

// ParseStatus reads what AppendStatus wrote.
func ParseStatus(b []byte) (Status, error) {
	var s Status
	d := Dec{B: b}
	for d.Next() {
		s.field(&d, 1)
	}
	return s, d.Err
}

// field takes one of the three fields from number first on.
func (s *Status) field(d *Dec, first uint64) {
	switch d.Tag - first {
	case 0:
		s.Code = int(d.Max(maxCode))
	case 1:
		if s.Enhanced = d.String(); !enhanced(s.Enhanced) {
			d.Fail("%q is not an enhanced status code", s.Enhanced)
		}
	case 2:
		s.Text = d.oneLine(MaxStatusText)
	default:
		d.Unknown()
	}
}

// oneLine is a text that OneLine has passed.
func (d *Dec) oneLine(limit int) string {
	s := d.String()
	if !clean(s, limit) {
		d.Fail("field %d is not one line of at most %d bytes", d.Tag, limit)
	}
	return s
}
