package control

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"mochila/bridge/jobs"
	"mochila/internal/config"
	"mochila/internal/envelope"
	"mochila/spool"
)

// queueFilter chooses items.
type queueFilter struct {
	after           envelope.ID
	limit           int
	state           spool.State
	dest            spool.Dest
	uid             int64     // uid + 1
	match           string    // text in an address, lower case
	from, to        string    // patterns for addresses, lower case
	before, since   time.Time // of the entry; zero: any
	larger, smaller int64     // bytes of content; 0: any
}

// plain reports whether everything is meant.
func (f queueFilter) plain() bool {
	return f.state == 0 && f.dest == "" && f.uid == 0 && f.match == "" && f.from == "" && f.to == "" && f.before.IsZero() &&
		f.since.IsZero() && f.larger == 0 && f.smaller == 0
}

// query is the filter in the spool's terms. Results that have come home wait for nothing: mochila jobs shows them.
func (f queueFilter) query() spool.Query {
	q := spool.Query{Dest: f.dest, State: f.state, After: f.after, Limit: f.limit}
	q.Match = func(it *spool.Item) bool {
		if f.dest != jobs.ResultDest && it.Legs[0].Dest == jobs.ResultDest {
			return false
		}
		return f.aboutItem(it) && f.aboutMail(it.Env.Mail)
	}
	return q
}

func (f queueFilter) aboutItem(it *spool.Item) bool {
	// the uid in an envelope is of the node where it was written: the trust class is this node's own
	if f.uid != 0 && it.Trust != fmt.Sprintf("uid:%d", f.uid-1) {
		return false
	}
	return (f.before.IsZero() || it.Entered.Before(f.before)) && (f.since.IsZero() || !it.Entered.Before(f.since)) &&
		(f.larger == 0 || it.BodySize > f.larger) && (f.smaller == 0 || it.BodySize < f.smaller)
}

func (f queueFilter) aboutMail(m *envelope.Mail) bool {
	if f.match == "" && f.from == "" && f.to == "" {
		return true
	}
	if m == nil {
		return false
	}
	sender := strings.ToLower(m.Sender)
	if f.from != "" && !glob(f.from, sender) && !(f.from == "<>" && sender == "") {
		return false
	}
	found, meant := f.match == "" || strings.Contains(sender, f.match), f.to == ""
	for i := range m.Recipients {
		a := strings.ToLower(m.Recipients[i].Addr)
		found = found || strings.Contains(a, f.match)
		meant = meant || glob(f.to, a)
	}
	return found && meant
}

// glob reports whether s is what pattern says: * stands for any text, ? for one byte.
func glob(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// filterOf reads a filter whose parameters get returns, "" for those that are not there.
func (n *Node) filterOf(get func(string) string) (f queueFilter, err error) {
	if s := get("after"); s != "" {
		if f.after, err = envelope.ParseID(s); err != nil {
			return f, &Error{Message: err.Error(), Exit: ExitUsage}
		}
	}
	f.limit, _ = strconv.Atoi(get("limit"))
	f.match, f.from, f.to = strings.ToLower(get("match")), strings.ToLower(get("from")), strings.ToLower(get("to"))
	if s := get("state"); s != "" {
		st, ok := spool.ParseState(s)
		if !ok {
			return f, &Error{Message: fmt.Sprintf("there is no state %q", s), Hint: "due, deferred, held, sealed, travelling or arrived", Exit: ExitUsage}
		}
		f.state = st
	}
	if s := get("uid"); s != "" {
		uid, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return f, &Error{Message: fmt.Sprintf("%q is not a uid", s), Exit: ExitUsage}
		}
		f.uid = uid + 1
	}
	if s := get("dest"); s != "" {
		f.dest = n.destOf(s)
	}
	now := time.Now()
	for key, at := range map[string]*time.Time{"older": &f.before, "newer": &f.since} {
		if s := get(key); s != "" {
			d, err := config.ParseDuration(s)
			if err != nil {
				return f, &Error{Message: fmt.Sprintf("%s: %v", key, err), Hint: "90s, 5m, 4h, 60d or 8w", Exit: ExitUsage}
			}
			*at = now.Add(-time.Duration(d))
		}
	}
	for key, size := range map[string]*int64{"larger": &f.larger, "smaller": &f.smaller} {
		if s := get(key); s != "" {
			z, err := config.ParseSize(s)
			if err != nil {
				return f, &Error{Message: fmt.Sprintf("%s: %v", key, err), Hint: "20k or 10MiB", Exit: ExitUsage}
			}
			*size = int64(z)
		}
	}
	return f, nil
}

// destOf is the queue that a node's name, a delivery URL or "dead" means.
func (n *Node) destOf(s string) spool.Dest {
	if s == "dead" {
		return spool.DeadDest
	}
	for _, p := range n.bridge.Policy().Peers {
		if p.Name == s {
			return spool.NodeDest(p.ID)
		}
	}
	return spool.ViaDest(s)
}
