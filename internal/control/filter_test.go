package control

import (
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "anything", true}, {"a", "a", true}, {"a", "b", false},
		{"*@x.org", "ana@x.org", true}, {"*@x.org", "ana@x.orgy", false}, {"ana@*", "ana@x.org", true}, {"a?a@x", "ana@x", true},
		{"a?a@x", "aa@x", false}, {"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"**", "x", true}, {"a*", "a", true},
		{"*ab", "aab", true}, {"*aab", "aaab", true}, {"a/*", "a/b/c", true}, {"[a]", "a", false}, {"[a]", "[a]", true},
	} {
		if got := glob(c.pattern, c.s); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// TestQueueFilter: every condition alone leaves out what it must, and all together keep what fits.
func TestQueueFilter(t *testing.T) {
	now := time.Now()
	it := &spool.Item{Entered: now.Add(-2 * time.Hour), BodySize: 3000, Legs: []spool.Leg{{Dest: "node:x", State: spool.Due}},
		Env: &envelope.Envelope{Kind: envelope.KindMail, Mail: &envelope.Mail{Sender: "Ana@Camp.example",
			Recipients: []envelope.Recipient{{Addr: "bob@hub.example"}, {Addr: "Eve@far.example"}}}}}
	null := &spool.Item{Entered: now, Legs: it.Legs, Env: &envelope.Envelope{Kind: envelope.KindMail, Mail: &envelope.Mail{}}}
	bundle := &spool.Item{Entered: now, Legs: it.Legs, Env: &envelope.Envelope{Kind: envelope.KindTransit}}
	n := &Node{}
	for _, c := range []struct {
		where              map[string]string
		mail, null, bundle bool
	}{
		{nil, true, true, true},
		{map[string]string{"from": "*@camp.EXAMPLE"}, true, false, false},
		{map[string]string{"from": "*@far.example"}, false, false, false},
		{map[string]string{"from": "<>"}, false, true, false},
		{map[string]string{"to": "eve@*"}, true, false, false},
		{map[string]string{"to": "ana@*"}, false, false, false},
		{map[string]string{"match": "CAMP"}, true, false, false},
		{map[string]string{"match": "hub."}, true, false, false},
		{map[string]string{"older": "1h"}, true, false, false},
		{map[string]string{"older": "3h"}, false, false, false},
		{map[string]string{"newer": "1h"}, false, true, true},
		{map[string]string{"larger": "2k"}, true, false, false},
		{map[string]string{"smaller": "2k"}, false, true, true},
		{map[string]string{"from": "ana@*", "to": "bob@*", "match": "far", "older": "1h", "newer": "1d", "larger": "1k", "smaller": "1MiB"}, true, false, false},
		{map[string]string{"from": "ana@*", "to": "carl@*"}, false, false, false},
	} {
		f, err := n.filterOf(func(key string) string { return c.where[key] })
		if err != nil {
			t.Errorf("%v: %v", c.where, err)
			continue
		}
		match := f.query().Match
		if got := [3]bool{match(it), match(null), match(bundle)}; got != [3]bool{c.mail, c.null, c.bundle} {
			t.Errorf("%v: %v", c.where, got)
		}
		if f.plain() != (c.where == nil) {
			t.Errorf("%v: plain is %v", c.where, f.plain())
		}
	}
	for _, bad := range []map[string]string{{"older": "soon"}, {"larger": "big"}, {"state": "lost"}, {"uid": "root"}} {
		if _, err := n.filterOf(func(key string) string { return bad[key] }); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// TestShape: ages fall into the classes of qshape, and places are counted once for each recipient.
func TestShape(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := shaper{now: now, total: ShapeRow{Ages: make([]int, 10)}, rows: map[string]*ShapeRow{}}
	for _, c := range []struct {
		minutes int64
		class   int
	}{{0, 0}, {5, 0}, {6, 1}, {10, 1}, {11, 2}, {80, 4}, {1280, 8}, {1281, 9}, {100_000, 9}, {-3, 0}} {
		before := s.total.Ages[c.class]
		s.count("x", now.Unix()-c.minutes*60, 1)
		if s.total.Ages[c.class] != before+1 {
			t.Errorf("%d minutes: %v", c.minutes, s.total.Ages)
		}
	}
	q := QueueItem{ArrivalTime: now.Unix(), Legs: []QueueLeg{{Dest: "far", Via: "hub"}, {Dest: "smtp:a", State: "deferred"}, {Dest: "old", State: "done"}},
		Recipients: []QueueRecipient{{Address: "a@X.org", Link: "far"}, {Address: "b@x.org", Link: "far"}, {Address: "c@y.org", Link: "smtp:a"}}}
	for by, want := range map[string]map[string]int{
		"neighbour": {"hub": 2, "smtp:a": 1}, "domain": {"x.org": 2, "y.org": 1},
	} {
		s := shaper{now: now, total: ShapeRow{Ages: make([]int, 10)}, rows: map[string]*ShapeRow{}}
		s.item(&q, by)
		for name, n := range want {
			if s.rows[name] == nil || s.rows[name].Total != n || s.total.Total != 3 || len(s.rows) != 2 {
				t.Errorf("by %s: %v, total %v", by, s.rows, s.total)
			}
		}
	}
}
