// Package route decides where a recipient's mail goes: it ends here (Deliver), travels to a node (Node), or is
// refused. It is a pure function of the configuration: it never touches the network, the spool or a clock.
//
// A Table has two lists of rules. Deliver rules are tried before route rules, each list in its order; the first rule
// whose To matches the recipient and whose From matches the sender decides, also when it then refuses the mail for
// its size. Nothing falls through to a later rule.
package route

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// Rule is one [[route]] or [[deliver]] table of the configuration.
type Rule struct {
	To       []string          // patterns: "user@domain", "domain", "*.domain" (not the domain itself), "*"
	From     []string          // sender patterns; empty matches all; "<>" the null sender
	MaxSize  int64             // bytes; larger mail is refused (552 5.3.4) at this rule; 0 no limit
	Via      string            // deliver rules: "smtp:127.0.0.1:10026" …
	Node     envelope.NodeID   // route rules
	NodeName string            // its local name
	Path     []envelope.NodeID // relay chain to Node; empty means Node is a neighbour, or its contact's own path
	Lifetime time.Duration     // 0: the default
	KeepHop  bool              // keep = "hop"
	OneWay   int               // sends, after which the mail counts as sent; 0: the path answers
	UpTo     int64             // bytes; larger mail is not for this rule, but for a later one; 0: any size
	Known    Addresses         // the recipients that exist; nil: not known here
	CatchAll string            // with Known: who gets the mail of those that do not exist; "" refuses it
	Summary  Summary           // what goes ahead of large mail
}

// Summary says of what mail a summary goes ahead, while the mail itself is held until a reader asks. The zero value says of
// none.
type Summary struct {
	Above  int64 // bytes; larger mail, and what goes of it
	Signed bool  // also of signed and encrypted mail, which goes whole else
	Anyone bool  // at the node may ask for the mail, not its recipients alone
}

// Addresses is a set of addresses, made by NewAddresses.
type Addresses map[string]bool

// NewAddresses makes a set. Each member is an address, or a local part that exists in every domain of its rule.
func NewAddresses(list []string) Addresses {
	set := Addresses{}
	for _, a := range list {
		set[foldAddress(a)] = true
	}
	return set
}

// Has reports whether an address is in the set. Case does not matter.
func (a Addresses) Has(addr string) bool {
	local, _ := Split(addr)
	return a[foldAddress(addr)] || a[strings.ToLower(Unquote(local))]
}

func foldAddress(addr string) string {
	local, domain := Split(addr)
	if domain == "" {
		return strings.ToLower(Unquote(addr))
	}
	return strings.ToLower(Unquote(local)) + "@" + Fold(domain)
}

// target names where the rule leads, for people.
func (r *Rule) target() string {
	switch {
	case r.Via != "":
		return r.Via
	case r.NodeName != "":
		return r.NodeName
	}
	return r.Node.String()
}

// Table holds the rules in the order they are tried: deliver rules first, then route rules, each in file order.
// New makes one that looks rules up by domain; one written as a literal works too, but reads its patterns at every
// call, and a pattern in it that ParsePattern refuses matches nothing. A Table must not be changed once it is used;
// it may then be copied and used by several goroutines.
type Table struct {
	Deliver []Rule
	Route   []Rule

	deliver, route *index
}

// Decision says which rule takes a recipient.
type Decision struct {
	Rule    *Rule  // points into the Table
	Deliver bool   // a rule of Table.Deliver; else of Table.Route
	Index   int    // its place in that list
	Pattern string // the To pattern that matched
	Rcpt    string // the rule's CatchAll, which gets the mail instead; "" = the recipient itself
}

// New checks every rule and returns a table that finds them fast. The error names the rule by list and number,
// counting from 1.
func New(deliver, route []Rule) (Table, error) {
	t := Table{Deliver: deliver, Route: route}
	var err error
	if t.deliver, err = compile(deliver); err != nil {
		return Table{}, fmt.Errorf("deliver rule %w", err)
	}
	if t.route, err = compile(route); err != nil {
		return Table{}, fmt.Errorf("route rule %w", err)
	}
	return t, nil
}

// Lookup finds the rule for one recipient of a mail of size bytes (0 or less: not known yet). Both addresses are
// wire text; sender "" is the null sender; an unqualified recipient must have got this node's domain before. The
// error is always an *envelope.Status: 550 5.1.2 when no rule matches, 550 5.1.1 when deliver rules name other users of
// its domain or the rule does not know this one, 501 5.1.3 for a recipient without a domain, 552 5.3.4 when the rule that
// matches has a smaller size limit.
func (t *Table) Lookup(sender, rcpt string, size int64) (Decision, error) {
	_, domain := Split(rcpt)
	if domain == "" {
		return Decision{}, envelope.NewStatus(501, "5.1.3", fmt.Sprintf("recipient address %q has no domain", rcpt))
	}
	for _, list := range [2]struct {
		rules   []Rule
		index   *index
		deliver bool
	}{{t.Deliver, t.deliver, true}, {t.Route, t.route, false}} {
		i, pattern, ok := find(list.rules, list.index, sender, rcpt, size)
		if !ok {
			continue
		}
		d := Decision{Rule: &list.rules[i], Deliver: list.deliver, Index: i, Pattern: pattern}
		if s := d.Rule.tooLarge(size); s != nil {
			return d, s
		}
		if d.Rule.Known != nil && !d.Rule.Known.Has(rcpt) {
			if d.Rule.CatchAll == "" {
				return d, envelope.NewStatus(550, "5.1.1", fmt.Sprintf("no such recipient at %q", domain))
			}
			d.Rcpt = d.Rule.CatchAll
		}
		return d, nil
	}
	if t.knows(domain) {
		return Decision{}, envelope.NewStatus(550, "5.1.1", fmt.Sprintf("no such recipient at %q", domain))
	}
	return Decision{}, envelope.NewStatus(550, "5.1.2", fmt.Sprintf("no route for %q", domain))
}

// knows tells whether mail for single users of a domain ends here: then it is the user who is unknown, not the domain.
func (t *Table) knows(domain string) bool {
	for i := range t.Deliver {
		for _, to := range t.Deliver[i].To {
			if user, d := Split(to); user != "" && strings.EqualFold(d, domain) {
				return true
			}
		}
	}
	return false
}

// tooLarge is the refusal of a mail above the rule's limit, nil below it.
func (r *Rule) tooLarge(size int64) *envelope.Status {
	if r.MaxSize <= 0 || size <= r.MaxSize {
		return nil
	}
	return envelope.NewStatus(552, "5.3.4", "message of "+strconv.FormatInt(size, 10)+" bytes is larger than the "+
		strconv.FormatInt(r.MaxSize, 10)+" bytes allowed on the way to "+r.target())
}

// find returns the first rule of a list for a pair of addresses.
func find(rules []Rule, x *index, sender, rcpt string, size int64) (i int, pattern string, ok bool) {
	if x != nil && len(x.rules) == len(rules) {
		return x.find(sender, rcpt, size)
	}
	for i := range rules {
		if p, ok := matchAny(rules[i].To, rcpt); ok && fromMatches(rules[i].From, sender) && (rules[i].UpTo == 0 || size <= rules[i].UpTo) {
			return i, p, true
		}
	}
	return 0, "", false
}

// matchAny returns the first of the patterns that addr falls under.
func matchAny(patterns []string, addr string) (string, bool) {
	for _, s := range patterns {
		if p, err := ParsePattern(s); err == nil && p.Match(addr) {
			return s, true
		}
	}
	return "", false
}

func fromMatches(from []string, sender string) bool {
	if len(from) == 0 {
		return true
	}
	_, ok := matchAny(from, sender)
	return ok
}
