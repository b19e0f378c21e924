package envelope

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestRecordsRoundTrip(t *testing.T) {
	s := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
	inc := [8]byte{8, 7}
	check := func(name string, want any, body []byte, limit int, got any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, want)
		}
		if len(body) > limit {
			t.Errorf("%s: %d bytes, more than %d", name, len(body), limit)
		}
	}
	for _, v := range []*Held{
		{Session: s, Ranges: Ranges{{First: 0, Count: 1}}},
		{Ranges: Ranges{{First: 1, Count: 5, Check: Check{1}}, {First: 7, Count: 1, Check: Check{2}}, {First: MaxSeq, Count: 1}}},
	} {
		b := v.Append(nil)
		got, err := ParseHeld(b)
		check("held", v, b, RecordHeld.MaxBody(), got, err)
	}
	for _, v := range []*Refused{
		{Session: s, Seq: 0, Reason: ReasonWindow},
		{Session: s, Seq: MaxSeq, Salt: [8]byte{1}, Reason: ReasonQuota, Serial: 1<<64 - 1, Text: strings.Repeat("t", MaxRefusedText)},
		{Packet: [32]byte{5}, Reason: 255, Text: "not mine"},
	} {
		b := v.Append(nil)
		got, err := ParseRefused(b)
		check("refused", v, b, RecordRefused.MaxBody(), got, err)
	}
	for _, v := range []*Close{
		{Session: s},
		{Session: s, Next: 100, Check: Check{9}, Void: Ranges{{First: 0, Count: 3}, {First: 99, Count: 1}}},
	} {
		b := v.Append(nil)
		got, err := ParseClose(b)
		check("close", v, b, RecordClose.MaxBody(), got, err)
	}
	r := &Reset{Session: s, Incarnation: inc}
	gotR, err := ParseReset(r.Append(nil))
	check("reset", r, r.Append(nil), RecordReset.MaxBody(), gotR, err)
	for _, v := range []*Fork{{Session: s, Salt: [16]byte{1}, Incarnation: inc}, {Seq: 5}} {
		b := v.Append(nil)
		got, err := ParseFork(b)
		check("fork", v, b, RecordFork.MaxBody(), got, err)
	}
	for _, v := range []*Greeting{
		{Nonce: [16]byte{1}},
		{Name: strings.Repeat("n", MaxNodeName), Nonce: [16]byte{1}, Echo: [16]byte{2}},
	} {
		b := v.Append(nil)
		got, err := ParseGreeting(b)
		check("greeting", v, b, RecordGreeting.MaxBody(), got, err)
	}
	p := InviteProof{1, 2, 3}
	gotP, err := ParseInviteProof(p.Append(nil))
	check("invite proof", p, p.Append(nil), RecordInviteProof.MaxBody(), gotP, err)
}

// TestAppendKeepsWhatIsThere appends behind other bytes.
func TestAppendKeepsWhatIsThere(t *testing.T) {
	h := &Held{Session: [8]byte{1}, Ranges: Ranges{{First: 3, Count: 4}}}
	if got := h.Append([]byte("ab")); !bytes.Equal(got, append([]byte("ab"), h.Append(nil)...)) {
		t.Errorf("got %x", got)
	}
	if got := AppendEnvelope([]byte("ab"), fullMail()); !bytes.Equal(got, append([]byte("ab"), AppendEnvelope(nil, fullMail())...)) {
		t.Errorf("got %x", got)
	}
}

func TestHostileTextsAreMadeFit(t *testing.T) {
	e := report()
	o := &e.Report.Recipients[0]
	o.Status = Status{Code: 5500, Enhanced: "5.1.1 or so", Text: "line\r\nRCPT TO:<x>\r\n" + strings.Repeat("y", 5000)}
	o.MTA = "mx\x00" + strings.Repeat("z", 500)
	e.Report.Node = "h\nub"
	got, err := ParseEnvelope(AppendEnvelope(nil, e))
	if err != nil {
		t.Fatal(err)
	}
	s := got.Report.Recipients[0].Status
	if s.Code != 999 || s.Enhanced != "" || len(s.Text) != MaxStatusText || strings.ContainsAny(s.Text, "\r\n") {
		t.Errorf("got %+v", s)
	}
	if got.Report.Node != "h ub" || len(got.Report.Recipients[0].MTA) > MaxMTA {
		t.Errorf("got %q from %q", got.Report.Recipients[0].MTA, got.Report.Node)
	}
}

func TestOutcomeAndStatus(t *testing.T) {
	for _, o := range report().Report.Recipients {
		got, err := ParseOutcome(AppendOutcome(nil, &o))
		if err != nil || got != o {
			t.Errorf("got %+v, %v, want %+v", got, err, o)
		}
		s, err := ParseStatus(AppendStatus(nil, &o.Status))
		if err != nil || s != o.Status {
			t.Errorf("got %+v, %v, want %+v", s, err, o.Status)
		}
	}
	for s, want := range map[string]bool{"2.0.0": true, "5.123.999": true, "4.7.1": true, "": false, "3.0.0": false, "5.1": false,
		"5.01.1": false, "5.1.": false, "5.1.1000": false, "5.1.1.1": false, "5..1": false, "5,1.1": false} {
		if enhanced(s) != want {
			t.Errorf("enhanced(%q) is %v", s, !want)
		}
	}
}
