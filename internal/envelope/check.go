package envelope

import (
	"fmt"
	"time"
)

// Limits that Check enforces, in front of every wire and behind every listener.
const (
	MaxRecipients = 10000   // of one mail, or outcomes of one report; the configured limit is lower
	MaxAddr       = 1000    // bytes of an address or parameter, far above RFC 5321 section 4.5.3.1
	MaxHeader     = 4 << 20 // bytes of an encoded envelope without its content
	MaxHops       = 255
	MaxAge        = 100 * 365 * 24 * time.Hour // of Envelope.Age; more is written as that
)

// lastAction is the highest Action there is.
const lastAction = ActionDelayed

// Check reports whether the envelope may travel: whatever accepts mail or makes reports asks it before it stores,
// because what Check refuses no other node will take. Errors wrap ErrFormat.
func (e *Envelope) Check() error {
	switch {
	case e.ID.IsZero():
		return fmt.Errorf("%w: envelope without id", ErrFormat)
	case e.Expires.IsZero():
		return fmt.Errorf("%w: envelope that never expires", ErrFormat)
	case e.Priority < -9 || e.Priority > 9:
		return fmt.Errorf("%w: priority %d is not within -9 and 9", ErrFormat, e.Priority)
	case e.Hops < 0 || e.Hops > MaxHops:
		return fmt.Errorf("%w: %d hops, more than %d", ErrFormat, e.Hops, MaxHops)
	case e.Age < 0:
		return fmt.Errorf("%w: age %s", ErrFormat, e.Age)
	case e.Size < 0:
		return fmt.Errorf("%w: size %d", ErrFormat, e.Size)
	case e.Size > 0 && e.Sum == [32]byte{}:
		return fmt.Errorf("%w: content without sum", ErrFormat)
	}
	switch {
	case e.Kind == KindMail && e.Mail != nil && e.Report == nil:
		return e.Mail.Check()
	case e.Kind == KindReport && e.Report != nil && e.Mail == nil:
		return e.Report.check()
	case e.Kind == KindJob && e.Job != nil:
		return e.Job.Check()
	case e.Kind == KindResult && e.Result != nil:
		return e.Result.check(e.Size)
	}
	return fmt.Errorf("%w: envelope of kind %d without its record", ErrFormat, e.Kind)
}

// Check reports whether the mail may travel. It looks at form only; what the words of ESMTP mean is the
// listener's business.
func (m *Mail) Check() error {
	total := 0
	text := func(what, s string) error {
		total += len(s) + 16
		return checkText(what, s, MaxAddr)
	}
	texts := [...]struct{ what, s string }{
		{"sender", m.Sender}, {"ENVID", m.EnvID},
		{"client protocol", m.Client.Proto}, {"client name", m.Client.Name}, {"client address", m.Client.Addr},
		{"client port", m.Client.Port}, {"client HELO", m.Client.Helo}, {"client queue id", m.Client.Ident},
		{"client source", m.Client.Source}, {"client user", m.Client.User}, {"client TLS", m.Client.TLS},
	}
	for i := range texts {
		if err := text(texts[i].what, texts[i].s); err != nil {
			return err
		}
	}
	if m.Auth != nil {
		if err := text("AUTH", *m.Auth); err != nil {
			return err
		}
	}
	if m.Priority < -9 || m.Priority > 9 {
		return fmt.Errorf("%w: MT-PRIORITY=%d", ErrFormat, m.Priority)
	}
	switch m.Ret {
	case "", "FULL", "HDRS":
	default:
		return fmt.Errorf("%w: RET=%q", ErrFormat, m.Ret)
	}
	switch m.Body {
	case "", "7BIT", "8BITMIME", "BINARYMIME":
	default:
		return fmt.Errorf("%w: BODY=%q", ErrFormat, m.Body)
	}
	if n := len(m.Recipients); n == 0 || n > MaxRecipients {
		return fmt.Errorf("%w: %d recipients, not between 1 and %d", ErrFormat, n, MaxRecipients)
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		if r.Addr == "" {
			return fmt.Errorf("%w: recipient without address", ErrFormat)
		}
		if err := text("recipient", r.Addr); err != nil {
			return err
		}
		if err := text("ORCPT", r.ORcpt); err != nil {
			return err
		}
		if r.Notify > NotifyNever|NotifySuccess|NotifyFailure|NotifyDelay ||
			r.Notify&NotifyNever != 0 && r.Notify != NotifyNever {
			return fmt.Errorf("%w: NOTIFY set %#x", ErrFormat, uint8(r.Notify))
		}
	}
	if total += 256; total > MaxHeader {
		return fmt.Errorf("%w: recipients of %d bytes, more than %d", ErrFormat, total, MaxHeader)
	}
	return nil
}

func (r *Report) check() error {
	if r.Ref.IsZero() {
		return fmt.Errorf("%w: a report about nothing", ErrFormat)
	}
	if n := len(r.Recipients); n == 0 || n > MaxRecipients {
		return fmt.Errorf("%w: report on %d recipients, not between 1 and %d", ErrFormat, n, MaxRecipients)
	}
	total := 256
	for i := range r.Recipients {
		o := &r.Recipients[i]
		if o.Addr == "" {
			return fmt.Errorf("%w: outcome without address", ErrFormat)
		}
		if err := checkText("outcome", o.Addr, MaxAddr); err != nil {
			return err
		}
		if o.Action == ActionPending || o.Action > lastAction {
			return fmt.Errorf("%w: outcome with action %d", ErrFormat, o.Action)
		}
		total += len(o.Addr) + len(o.MTA) + len(o.Status.Text) + 48
	}
	if total > MaxHeader {
		return fmt.Errorf("%w: report of %d bytes, more than %d", ErrFormat, total, MaxHeader)
	}
	return nil
}
