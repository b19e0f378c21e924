package route

import (
	"fmt"
	"strings"
)

// Step is what one rule says to a pair of addresses.
type Step struct {
	Rule    *Rule
	Deliver bool   // a rule of Table.Deliver; else of Table.Route
	Index   int    // its place in that list
	Matches bool   // To and From both match
	Decides bool   // it is the first that does: Lookup ends here
	Why     string // one clause for people
}

// Explain goes through every rule in the order of Lookup and tells why each does or does not take the mail. The
// rules after the one that decides are listed too: that is where misplaced rules are found.
func (t *Table) Explain(sender, rcpt string, size int64) []Step {
	steps := make([]Step, 0, len(t.Deliver)+len(t.Route))
	decided := false
	for _, deliver := range []bool{true, false} {
		rules := t.Route
		if deliver {
			rules = t.Deliver
		}
		for i := range rules {
			s := Step{Rule: &rules[i], Deliver: deliver, Index: i}
			s.Matches, s.Why = rules[i].explain(sender, rcpt, size)
			if s.Matches && decided {
				s.Why += ", but a rule before it has decided"
			} else if s.Matches {
				s.Decides, decided = true, true
				if refusal := rules[i].tooLarge(size); refusal != nil {
					s.Why += "; refused: " + refusal.Error()
				}
				switch {
				case rules[i].Known == nil || rules[i].Known.Has(rcpt):
				case rules[i].CatchAll != "":
					s.Why += "; it is not in recipients: " + rules[i].CatchAll + " gets it"
				default:
					s.Why += "; refused: it is not in recipients"
				}
			}
			steps = append(steps, s)
		}
	}
	return steps
}

func (r *Rule) explain(sender, rcpt string, size int64) (bool, string) {
	if _, domain := Split(rcpt); domain == "" {
		return false, fmt.Sprintf("%q has no domain", rcpt)
	}
	to, ok := matchAny(r.To, rcpt)
	if !ok {
		return false, fmt.Sprintf("%q is not in to = %s", rcpt, list(r.To))
	}
	if !fromMatches(r.From, sender) {
		return false, fmt.Sprintf("to matches %q, but the sender <%s> is not in from = %s", to, sender, list(r.From))
	}
	if r.UpTo > 0 && size > r.UpTo {
		return false, fmt.Sprintf("to matches %q, but the mail of %d bytes is above up_to = %d", to, size, r.UpTo)
	}
	if len(r.From) > 0 {
		return true, fmt.Sprintf("to matches %q and the sender <%s> is in from", to, sender)
	}
	return true, fmt.Sprintf("to matches %q", to)
}

// list shows patterns as the configuration has them, long lists cut short.
func list(patterns []string) string {
	const most = 6
	var b strings.Builder
	b.WriteByte('[')
	for i, p := range patterns {
		if i > 0 {
			b.WriteString(", ")
		}
		if i == most {
			fmt.Fprintf(&b, "… %d more", len(patterns)-most)
			break
		}
		fmt.Fprintf(&b, "%q", p)
	}
	return b.String() + "]"
}
