package bridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"mochila/bridge/deliver"
	"mochila/bridge/route"
	"mochila/internal/envelope"
	"mochila/spool"
)

// Local is what becomes of addresses at this node's border (docs/config.md). The zero value changes nothing.
type Local struct {
	Aliases map[string][]string // by lower-case local part, of Domain and of NAME.mochila
	Archive string              // gets a copy of each mail that enters here; "" nobody
	Rewrite []Rewrite           // the first that matches an address changes it
}

// Rewrite changes addresses: a whole one, or its domain.
type Rewrite struct {
	From    route.Pattern
	To      string // user@domain, or a domain
	Out     bool   // recipients of mail that ends here; else senders of mail that enters
	Headers bool   // with senders, also those in the header (package control)
}

// Apply returns what becomes of an address.
func (r *Rewrite) Apply(addr string) (string, bool) {
	if addr == "" || !r.From.Match(addr) {
		return addr, false
	}
	if strings.Contains(r.To, "@") {
		return r.To, true
	}
	return addr[:strings.LastIndexByte(addr, '@')+1] + r.To, true
}

// rewrite changes an address by the first rule that matches.
func (l *Local) rewrite(addr string, out bool) string {
	for i := range l.Rewrite {
		if r := &l.Rewrite[i]; r.Out == out {
			if a, ok := r.Apply(addr); ok {
				return a
			}
		}
	}
	return addr
}

// viaAliases is where a recipient goes that stands for several.
const viaAliases = "aliases:"

// maxAliasDepth bounds aliases of aliases.
const maxAliasDepth = 20

// expand returns the addresses behind an alias, itself among them where the list says so; nil when it is none.
func (p *Policy) expand(addr string) []string {
	if len(p.Local.Aliases) == 0 {
		return nil
	}
	var out []string
	seen := map[string]bool{}
	found := false
	var walk func(addr string, depth int)
	walk = func(addr string, depth int) {
		addr = p.qualify(addr)
		key := strings.ToLower(addr)
		targets, ok := p.alias(addr)
		if !ok || seen[key] || depth > maxAliasDepth {
			for _, x := range out {
				if strings.EqualFold(x, addr) {
					return
				}
			}
			out = append(out, addr)
			return
		}
		found, seen[key] = true, true
		for _, t := range targets {
			walk(t, depth+1)
		}
	}
	walk(addr, 0)
	if !found {
		return nil
	}
	return out
}

func (p *Policy) alias(addr string) ([]string, bool) {
	local, domain := route.Split(addr)
	if !strings.EqualFold(domain, p.Domain) && !strings.EqualFold(domain, p.Name+".mochila") {
		return nil, false
	}
	t, ok := p.Local.Aliases[strings.ToLower(route.Unquote(local))]
	return t, ok
}

// place finds where mail of size bytes (0: not known yet) for a recipient goes. addr is what the next system is told.
// expanded: the mail came out of an alias, and its recipients are nobody's aliases any more.
func (p *Policy) place(sender, rcpt string, size int64, expanded bool) (addr string, d route.Decision, err error) {
	rcpt = p.Local.rewrite(rcpt, true)
	if !expanded {
		switch targets := p.expand(rcpt); len(targets) {
		case 0:
		case 1:
			rcpt = targets[0]
		default:
			return rcpt, route.Decision{Rule: &route.Rule{Via: viaAliases}, Deliver: true}, nil
		}
	}
	if d, err = p.Routes.Lookup(sender, rcpt, size); err != nil || d.Rcpt == "" {
		return rcpt, d, err
	}
	// whoever takes the mail of unknown users may be anywhere, but is taken as known
	rcpt = p.qualify(d.Rcpt)
	d, err = p.Routes.Lookup(sender, rcpt, size)
	d.Rcpt = ""
	return rcpt, d, err
}

// Place says where a mail would go that enters here, for people: the address after rewriting and aliases, and the rule.
func (p *Policy) Place(sender, rcpt string, size int64) (addr string, d route.Decision, err error) {
	return p.place(sender, rcpt, size, false)
}

// archive adds the archive to the recipients of a mail, if it is not one already. It hears of no failure but its own
// administrator's.
func (p *Policy) archive(m *envelope.Mail) {
	if p.Local.Archive == "" {
		return
	}
	for i := range m.Recipients {
		if strings.EqualFold(m.Recipients[i].Addr, p.Local.Archive) {
			return
		}
	}
	m.Recipients = append(m.Recipients, envelope.Recipient{Addr: p.Local.Archive, Notify: envelope.NotifyNever})
}

// archives reports whether an address is the archive's: it asked for no report, but its loss is not silent.
func (p *Policy) archives(addr string) bool {
	return p.Local.Archive != "" && strings.EqualFold(addr, p.Local.Archive)
}

// redirect changes a recipient's address, and keeps what it was for reports (RFC 3461 section 4.2).
func redirect(r *envelope.Recipient, to string) {
	if r.Addr == to {
		return
	}
	if r.ORcpt == "" {
		r.ORcpt = orcpt(r.Addr)
	}
	r.Addr = to
}

// orcpt writes an address as RFC 3461 and RFC 6533 have it.
func orcpt(addr string) string {
	kind := "rfc822;"
	var b strings.Builder
	for i := 0; i < len(addr); i++ {
		switch c := addr[i]; {
		case c >= 0x80:
			kind = "utf-8;"
			b.WriteByte(c)
		case c <= ' ' || c == '+' || c == '=' || c == 0x7f:
			fmt.Fprintf(&b, "+%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return kind + b.String()
}

// expander is the place of recipients that stand for several: each becomes a mail of its own, with the same sender.
type expander struct{ b *Bridge }

// Deliver is deliver.Transport's.
func (x expander) Deliver(ctx context.Context, m *deliver.Message) []deliver.Result {
	var out []deliver.Result
	for _, i := range m.Rcpts {
		r := deliver.Result{Rcpt: i, MTA: "aliases"}
		n, err := x.one(ctx, m, i)
		if err != nil {
			r.Action, r.Status = envelope.ActionPending, statusOf(err)
			if r.Status.Enhanced == "" || r.Status.Code >= 500 {
				r.Action = envelope.ActionFailed
			}
		} else {
			r.Action, r.Status = envelope.ActionExpanded, envelope.Status{Code: 250, Enhanced: "2.0.0", Text: fmt.Sprintf("expanded to %d recipients", n)}
		}
		out = append(out, r)
	}
	return out
}

// Close is deliver.Transport's.
func (expander) Close() error { return nil }

// one makes the mail for one recipient. Its id follows from the first one's, so that a crash in between makes no second.
func (x expander) one(ctx context.Context, m *deliver.Message, i int) (int, error) {
	b := x.b
	old := m.Env.Mail
	r := old.Recipients[i]
	targets := b.Policy().expand(r.Addr)
	if len(targets) == 0 {
		targets = []string{r.Addr} // the alias went away meanwhile
	}
	mail := &envelope.Mail{Sender: old.Sender, Ret: old.Ret, EnvID: old.EnvID, Body: old.Body, SMTPUTF8: old.SMTPUTF8, RequireTLS: old.RequireTLS,
		By: old.By, Priority: old.Priority, Auth: old.Auth, Client: old.Client}
	mail.Client.Proto, mail.Client.User, mail.Client.UID = "local", "", 0 // nobody's rights and quota here
	notify := withoutSuccess(r.Notify)                                    // "expanded" is the answer to that (RFC 3461 section 5.2.7.3)
	for _, t := range targets {
		to := envelope.Recipient{Addr: r.Addr, ORcpt: r.ORcpt, Notify: notify}
		redirect(&to, t)
		mail.Recipients = append(mail.Recipients, to)
		mail.SMTPUTF8 = mail.SMTPUTF8 || !isASCII(t)
	}
	w, err := b.Data(ctx, mail)
	if err != nil {
		return 0, err
	}
	in := w.(*intake)
	sum := sha256.Sum256(fmt.Appendf(nil, "mochila alias v1\x00%s\x00%d", m.Env.ID, i))
	copy(in.id[:], sum[:])
	content, err := m.Open()
	if err != nil {
		in.Abort()
		return 0, err
	}
	defer content.Close()
	in.expanded = true
	in.limit = 1 << 62 // it was accepted before
	if _, err := io.Copy(struct{ io.Writer }{in}, content); err != nil {
		in.Abort()
		return 0, err
	}
	if _, err := in.Commit(ctx); err != nil && !errors.Is(err, spool.ErrExists) {
		return 0, err
	}
	return len(targets), nil
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
