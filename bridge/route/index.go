package route

import (
	"errors"
	"fmt"
	"strings"
)

// index finds the rules of one list by what their patterns name, so that a hub with thousands of domains asks a few
// maps instead of every rule.
type index struct {
	rules     []compiled
	mailboxes map[[2]string][]entry // {local, domain}
	domains   map[string][]entry
	below     map[string][]entry // by the domain under the asterisk
	any       []entry
}

// compiled is what is left to check of a rule that an entry leads to.
type compiled struct {
	from []Pattern
	upTo int64
}

// entry is one To pattern: lists of entries are in the order of the rules.
type entry struct {
	rule    int
	pattern string
}

func compile(rules []Rule) (*index, error) {
	x := &index{
		mailboxes: map[[2]string][]entry{}, domains: map[string][]entry{}, below: map[string][]entry{},
		rules: make([]compiled, len(rules)),
	}
	for i, r := range rules {
		if err := x.add(i, r); err != nil {
			return nil, fmt.Errorf("%d: %w", i+1, err)
		}
	}
	return x, nil
}

func (x *index) add(i int, r Rule) error {
	if len(r.To) == 0 {
		return errors.New(`to is empty (for everything write to = ["*"])`)
	}
	for _, s := range r.To {
		p, err := ParsePattern(s)
		if err != nil {
			return fmt.Errorf("to: %w", err)
		}
		e := entry{i, s}
		switch p.Kind {
		case Null:
			return errors.New("to: <> is no recipient (it belongs into from)")
		case Any:
			x.any = append(x.any, e)
		case Exact:
			x.domains[p.Domain] = append(x.domains[p.Domain], e)
		case Below:
			x.below[p.Domain] = append(x.below[p.Domain], e)
		case Mailbox:
			k := [2]string{mailboxLocal(p.Local), p.Domain}
			x.mailboxes[k] = append(x.mailboxes[k], e)
		}
	}
	x.rules[i].upTo = r.UpTo
	for _, s := range r.From {
		p, err := ParsePattern(s)
		if err != nil {
			return fmt.Errorf("from: %w", err)
		}
		x.rules[i].from = append(x.rules[i].from, p)
	}
	return nil
}

// find returns the first rule whose To and From match.
func (x *index) find(sender, rcpt string, size int64) (rule int, pattern string, ok bool) {
	local, domain := Split(rcpt)
	domain = Fold(domain)
	rule = len(x.rules)
	try := func(list []entry) {
		for _, e := range list {
			if e.rule >= rule {
				return // one before it is found already
			}
			if x.rules[e.rule].allows(sender, size) {
				rule, pattern, ok = e.rule, e.pattern, true
				return
			}
		}
	}
	if len(x.mailboxes) > 0 {
		try(x.mailboxes[[2]string{mailboxLocal(Unquote(local)), domain}])
	}
	try(x.domains[domain])
	if len(x.below) > 0 {
		for d := domain; ; {
			i := strings.IndexByte(d, '.')
			if i < 0 {
				break
			}
			if d = d[i+1:]; len(d) < len(domain)-1 { // an empty label in front is no subdomain
				try(x.below[d])
			}
		}
	}
	try(x.any)
	return rule, pattern, ok
}

func (c compiled) allows(sender string, size int64) bool {
	if c.upTo > 0 && size > c.upTo {
		return false
	}
	if len(c.from) == 0 {
		return true
	}
	for _, p := range c.from {
		if p.Match(sender) {
			return true
		}
	}
	return false
}
