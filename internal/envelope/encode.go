package envelope

import (
	"strings"
	"time"
)

// Field numbers of docs/format.md, "Envelope". One list per record; a number is never used again for another thing.
const (
	envID       = 1
	envCreated  = 2
	envExpires  = 3
	envPriority = 4
	envSize     = 5
	envSum      = 6
	envHops     = 7
	envOrigin   = 8 // stored form only
	envMail     = 9
	envJob      = 10
	envReport   = 11
	envTransit  = 12 // stored form only
	envResult   = 13
	envAge      = 14

	mailSender     = 1
	mailRecipient  = 2
	mailRet        = 3
	mailEnvID      = 4
	mailBody       = 5
	mailSMTPUTF8   = 6
	mailRequireTLS = 7
	mailBy         = 8
	mailHoldUntil  = 9
	mailAuth       = 10
	mailClient     = 11
	mailPriority   = 12

	rcptAddr   = 1
	rcptNotify = 2
	rcptORcpt  = 3

	byDeadline = 1
	byReturn   = 2
	byTrace    = 3

	clientProto  = 1
	clientName   = 2
	clientAddr   = 3
	clientPort   = 4
	clientHelo   = 5
	clientIdent  = 6
	clientSource = 7
	clientUser   = 8
	clientUID    = 9
	clientTLS    = 10

	reportRef     = 1
	reportNode    = 2
	reportOutcome = 3

	outAddr   = 1
	outAction = 2
	outMTA    = 3
	outAt     = 4
	outCode   = 5
	outEnh    = 6
	outText   = 7
	outDSN    = 8
)

// Text limits in bytes, for the texts that Append makes fit by OneLine.
const (
	MaxStatusText = 1000 // Status.Text
	MaxMTA        = 255  // Outcome.MTA
	MaxNodeName   = 64   // Report.Node, Greeting.Name
)

// AppendEnvelope appends the form of e that travels in a bundle: without Origin, without content. What Check
// refuses is encoded too, but ParseEnvelope will refuse it.
func AppendEnvelope(b []byte, e *Envelope) []byte {
	w := Enc{B: b}
	e.fields(&w, false)
	return w.B
}

// AppendStored appends the form that the spool keeps: with Origin, and KindTransit is allowed. ParseStored reads
// back whatever it wrote, also most of what Check refuses (not more than MaxRecipients), save that times are rounded
// down to the millisecond (Expires to the second) and the texts of outcomes are made one line.
func AppendStored(b []byte, e *Envelope) []byte {
	w := Enc{B: b}
	e.fields(&w, true)
	return w.B
}

func (e *Envelope) fields(w *Enc, stored bool) {
	w.Item(envID, e.ID[:])
	if at := e.ID.Time().UnixMilli(); !e.Created.IsZero() && e.Created.UnixMilli() != at && milli(e.Created) != at {
		w.Time(envCreated, e.Created)
	}
	if !e.Expires.IsZero() {
		w.Uint(envExpires, uint64(max(milli(e.Expires)/1000, 1)))
	}
	w.Int(envPriority, int64(e.Priority))
	w.Uint(envSize, uint64(max(e.Size, 0)))
	if e.Sum != [32]byte{} {
		w.Item(envSum, e.Sum[:])
	}
	w.Uint(envHops, uint64(max(e.Hops, 0)))
	if stored && !e.Origin.IsZero() {
		w.Item(envOrigin, e.Origin[:])
	}
	switch e.Kind {
	case KindMail:
		m := w.Begin(envMail)
		if e.Mail != nil {
			e.Mail.fields(w)
		}
		w.End(m)
	case KindJob:
		m := w.Begin(envJob)
		if e.Job != nil {
			e.Job.fields(w)
		}
		w.End(m)
	case KindReport:
		r := e.Report
		if r == nil {
			r = new(Report)
		}
		m := w.Begin(envReport)
		r.fields(w)
		w.End(m)
	case KindTransit:
		if stored {
			w.Item(envTransit, nil)
		}
	case KindResult:
		m := w.Begin(envResult)
		if e.Result != nil {
			e.Result.fields(w)
		}
		w.End(m)
	}
	w.Uint(envAge, uint64(min(max(e.Age, 0), MaxAge)/time.Second))
}

// milli is t in the units and bounds of Enc.Time.
func milli(t time.Time) int64 { return min(max(t.UnixMilli(), 1), maxMilli) }

func (m *Mail) fields(w *Enc) {
	w.String(mailSender, m.Sender)
	for i := range m.Recipients {
		r := &m.Recipients[i]
		mark := w.Begin(mailRecipient)
		w.String(rcptAddr, r.Addr)
		w.Uint(rcptNotify, uint64(r.Notify))
		w.String(rcptORcpt, r.ORcpt)
		w.End(mark)
	}
	w.String(mailRet, m.Ret)
	w.String(mailEnvID, m.EnvID)
	w.String(mailBody, m.Body)
	w.Bool(mailSMTPUTF8, m.SMTPUTF8)
	w.Bool(mailRequireTLS, m.RequireTLS)
	if m.By != nil {
		mark := w.Begin(mailBy)
		w.Time(byDeadline, m.By.Deadline)
		w.Bool(byReturn, m.By.Return)
		w.Bool(byTrace, m.By.Trace)
		w.End(mark)
	}
	w.Time(mailHoldUntil, m.HoldUntil)
	if m.Auth != nil {
		mark := w.Begin(mailAuth)
		w.B = append(w.B, *m.Auth...)
		w.End(mark)
	}
	if m.Client != (Client{}) {
		mark := w.Begin(mailClient)
		m.Client.fields(w)
		w.End(mark)
	}
	w.Int(mailPriority, int64(m.Priority))
}

func (c *Client) fields(w *Enc) {
	w.String(clientProto, c.Proto)
	w.String(clientName, c.Name)
	w.String(clientAddr, c.Addr)
	w.String(clientPort, c.Port)
	w.String(clientHelo, c.Helo)
	w.String(clientIdent, c.Ident)
	w.String(clientSource, c.Source)
	w.String(clientUser, c.User)
	w.Int(clientUID, c.UID)
	w.String(clientTLS, c.TLS)
}

func (r *Report) fields(w *Enc) {
	w.Item(reportRef, r.Ref[:])
	w.String(reportNode, OneLine(r.Node, MaxNodeName))
	for i := range r.Recipients {
		mark := w.Begin(reportOutcome)
		r.Recipients[i].fields(w)
		w.End(mark)
	}
}

// AppendOutcome appends one outcome as it stands in a report.
func AppendOutcome(b []byte, o *Outcome) []byte {
	w := Enc{B: b}
	o.fields(&w)
	return w.B
}

func (o *Outcome) fields(w *Enc) {
	w.String(outAddr, o.Addr)
	w.Uint(outAction, uint64(o.Action))
	w.String(outMTA, OneLine(o.MTA, MaxMTA))
	w.Time(outAt, o.At)
	o.Status.fields(w, outCode)
	w.Bool(outDSN, o.DSN)
}

// AppendStatus appends a reply as a record of its own.
func AppendStatus(b []byte, s *Status) []byte {
	w := Enc{B: b}
	s.fields(&w, 1)
	return w.B
}

// fields writes three fields from number first on. An enhanced code that is none is left out, rather than
// keep a report from travelling.
func (s *Status) fields(w *Enc, first uint64) {
	w.Uint(first, uint64(min(max(s.Code, 0), maxCode)))
	if enhanced(s.Enhanced) {
		w.String(first+1, s.Enhanced)
	}
	w.String(first+2, OneLine(s.Text, MaxStatusText))
}

const maxCode = 999

// enhanced reports whether s is a code of RFC 3463 section 2: class 2, 4 or 5, then two numbers of up to 3 digits.
func enhanced(s string) bool {
	if len(s) < 5 || s[1] != '.' || s[0] != '2' && s[0] != '4' && s[0] != '5' {
		return false
	}
	subject, detail, ok := strings.Cut(s[2:], ".")
	return ok && number3(subject) && number3(detail)
}

func number3(s string) bool {
	if len(s) == 0 || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
