package spool

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// table is a destination table for tests.
func table(dests ...Dest) *destTable {
	t := &destTable{}
	for i, d := range dests {
		t.set(uint32(i+1), d)
	}
	return t
}

func (t *destTable) must(d Dest) (uint32, error) {
	no, _ := t.number(d)
	return no, nil
}

// fullItem uses every field.
func fullItem() *Item {
	it := mail([]byte("content"), "node:a", "via:b", DeadDest)
	at := epoch()
	it.Env.Origin = envelope.NodeID{7}
	it.Env.Priority = -3
	it.Legs[0] = Leg{Dest: "node:a", Rcpts: []int{0, 2, 1000}, State: Travelling, At: at, Attempts: 3, Last: envelope.Status{Code: 451, Enhanced: "4.4.1", Text: "later"}, Carrier: "dir:/media/usb"}
	it.Legs[1] = Leg{Dest: "via:b", Rcpts: []int{1}, State: Deferred, At: at.Add(time.Hour)}
	it.Legs[2] = Leg{Dest: DeadDest, State: Held}
	it.Outcomes[0] = envelope.Outcome{Addr: it.Env.Mail.Recipients[0].Addr, Action: envelope.ActionFailed, Status: envelope.Status{Code: 550, Enhanced: "5.1.1", Text: "no"}, MTA: "mx", At: at, DSN: true}
	it.Outcomes[1].Addr = "else@where"
	it.Delayed, it.NoReport, it.ExpirySeen = true, true, true
	it.Transit = &Transit{Dest: envelope.Label{1, 2}, Class: 3, HopsLeft: 4, From: envelope.NodeID{5}}
	it.Log = []LogEntry{{at, "accepted", "from somewhere"}, {at, "", ""}}
	it.Parent = envelope.ID{9}
	it.Problem = "its content is missing"
	return it
}

func encode(t testing.TB, it *Item, ref bodyRef, tab *destTable) []byte {
	t.Helper()
	b, err := appendRecord(nil, it, ref, tab.must)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordRoundTrip(t *testing.T) {
	tab := table("node:a", "via:b", DeadDest)
	refs := []bodyRef{
		{},
		{flags: flagInline, size: 7},
		{flags: flagFile, size: 1 << 40, file: fileName{1, 2, 3}, sum: [32]byte{4}},
	}
	for _, it := range []*Item{fullItem(), mail(nil, "node:a")} {
		for _, ref := range refs {
			if ref.flags == flagInline {
				ref.sum = it.Env.Sum
			}
			it.BodySize = ref.size
			b := encode(t, it, ref, tab)
			got, h, err := parseRecord(b, tab.dest)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, it) {
				t.Errorf("got\n%+v\n%+v\nwant\n%+v\n%+v", got, got.Env, it, it.Env)
			}
			if r := h.body(got.Env.Sum); ref.flags != 0 && r != ref {
				t.Errorf("content %+v, want %+v", r, ref)
			}
			if again := encode(t, got, ref, tab); !bytes.Equal(again, b) {
				t.Errorf("encoding again gives other bytes")
			}
		}
	}
}

func TestRecordKeepsNewestLog(t *testing.T) {
	tab := table("node:a")
	it := mail(nil, "node:a")
	for i := range 3 * MaxLog {
		it.AddLog(epoch().Add(time.Duration(i)*time.Second), "tried", "")
	}
	got, _, err := parseRecord(encode(t, it, bodyRef{}, tab), tab.dest)
	if err != nil || len(got.Log) != MaxLog || !got.Log[0].At.Equal(epoch().Add(2*MaxLog*time.Second)) {
		t.Errorf("%d entries from %v, %v", len(got.Log), got.Log[0].At, err)
	}
}

// TestRecordCut: no prefix of a record is a record, and no flipped byte crashes.
func TestRecordCut(t *testing.T) {
	tab := table("node:a", "via:b", DeadDest)
	b := encode(t, fullItem(), bodyRef{flags: flagFile, size: 9, sum: [32]byte{1}}, tab)
	for n := range b {
		if _, _, err := parseRecord(b[:n], tab.dest); err == nil {
			t.Fatalf("%d of %d bytes were accepted", n, len(b))
		}
	}
	for i := range b {
		for _, x := range []byte{1, 0x80, 0xff} {
			c := bytes.Clone(b)
			c[i] ^= x
			parseRecord(c, tab.dest)
		}
	}
}

func FuzzRecord(f *testing.F) {
	tab := table("node:a", "via:b", DeadDest)
	f.Add(encode(f, fullItem(), bodyRef{flags: flagFile, size: 9, sum: [32]byte{1}}, tab))
	f.Add(encode(f, mail(nil, "node:a"), bodyRef{flags: flagInline}, tab))
	f.Fuzz(func(t *testing.T, b []byte) {
		it, h, err := parseRecord(b, tab.dest)
		if err != nil {
			return
		}
		// Reading what was written must give the same item, even where b itself was not written by us.
		again := encode(t, it, h.body(it.Env.Sum), tab)
		got, _, err := parseRecord(again, tab.dest)
		if err != nil || !reflect.DeepEqual(got, it) {
			t.Fatalf("%v\n%+v\n%+v", err, got, it)
		}
	})
}
