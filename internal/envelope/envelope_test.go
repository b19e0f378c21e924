package envelope

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 5, 4, 3, 2, 1, 987e6, time.UTC)

// fixedID is an ID of a known time and known random part.
func fixedID(n byte) ID {
	id := NewID(t0)
	for i := 6; i < len(id); i++ {
		id[i] = n + byte(i)
	}
	return id
}

func simpleMail() *Envelope {
	return &Envelope{
		ID: fixedID(1), Kind: KindMail, Created: fixedID(1).Time().UTC(), Expires: time.Unix(1785000000, 0).UTC(),
		Size: 1234, Sum: SumOf([]byte("content")),
		Mail: &Mail{Sender: "ana@camp.example", Recipients: []Recipient{{Addr: "bob@hub.example"}}},
	}
}

func fullMail() *Envelope {
	auth := "ana+40camp.example"
	return &Envelope{
		ID: fixedID(2), Kind: KindMail, Created: t0.Add(5 * time.Millisecond), Expires: time.Unix(1785000000, 0).UTC(),
		Priority: -4, Size: 1 << 40, Sum: SumOf([]byte("full")), Hops: 3, Age: 90 * time.Minute,
		Mail: &Mail{
			Sender: `"odd sender"@camp.example`,
			Recipients: []Recipient{
				{Addr: "bob@hub.example", Notify: NotifySuccess | NotifyDelay, ORcpt: "rfc822;bob+2Bx@hub.example"},
				{Addr: "käte@hub.example", Notify: NotifyNever},
				{Addr: strings.Repeat("x", 900) + "@long.example", Notify: NotifyFailure},
			},
			Ret: "HDRS", EnvID: "QQ314159", Body: "8BITMIME", SMTPUTF8: true, RequireTLS: true,
			By:        &By{Deadline: t0.Add(time.Hour), Return: true, Trace: true},
			HoldUntil: t0.Add(time.Minute), Auth: &auth, Priority: 6,
			Client: Client{Proto: "ESMTPSA", Name: "pc.camp.example", Addr: "192.0.2.7", Port: "4711", Helo: "pc",
				Ident: "4XqZ", Source: "LOCAL", User: "ana", UID: 1001, TLS: "TLSv1.3 TLS_AES_128_GCM_SHA256"},
		},
	}
}

func report() *Envelope {
	return &Envelope{
		ID: fixedID(3), Kind: KindReport, Created: fixedID(3).Time().UTC(), Expires: time.Unix(1785000000, 0).UTC(),
		Report: &Report{Ref: fixedID(1), Node: "hub", Recipients: []Outcome{
			{Addr: "bob@hub.example", Action: ActionDelivered, Status: Status{250, "2.0.0", "ok"}, MTA: "127.0.0.1:10026", At: t0, DSN: true},
			{Addr: "eve@hub.example", Action: ActionFailed, Status: Status{550, "5.1.1", "no such user"}},
		}},
	}
}

func TestRoundTrip(t *testing.T) {
	for name, e := range map[string]*Envelope{"simple": simpleMail(), "full": fullMail(), "report": report()} {
		b := AppendEnvelope(nil, e)
		got, err := ParseEnvelope(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, e) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, e)
		}
		if again := AppendEnvelope(nil, got); !bytes.Equal(again, b) {
			t.Errorf("%s: second encoding differs", name)
		}
		e.Origin = NodeID{1, 2, 3}
		if got, err = ParseStored(AppendStored(nil, e)); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%s stored: got %+v, %v\nwant %+v", name, got, err, e)
		}
	}
}

func TestSizeOfSmallHeader(t *testing.T) {
	if n := len(AppendEnvelope(nil, simpleMail())); n > 110 {
		t.Errorf("a one-recipient mail's header has %d bytes, want at most 110", n)
	}
}

func TestStoredKeepsWhatCheckRefuses(t *testing.T) {
	for name, e := range map[string]*Envelope{
		"transit":  {ID: fixedID(4), Kind: KindTransit, Origin: NodeID{9}, Size: 77},
		"controls": {ID: fixedID(5), Kind: KindMail, Mail: &Mail{Sender: "a\r\nb", Recipients: []Recipient{{}}}},
		"bounds":   {ID: fixedID(6), Kind: KindMail, Priority: 99, Hops: 1000, Mail: &Mail{EnvID: strings.Repeat("x", 5000)}},
		"empty":    {ID: fixedID(7), Kind: KindReport, Report: &Report{}},
		"no kind":  {ID: fixedID(8)},
	} {
		if e.Check() == nil {
			t.Errorf("%s: Check accepts it", name)
		}
		e.Created = e.ID.Time().UTC()
		got, err := ParseStored(AppendStored(nil, e))
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, e)
		}
		if _, err := ParseEnvelope(AppendStored(nil, e)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: on the wire: got %v, want ErrFormat", name, err)
		}
	}
}
