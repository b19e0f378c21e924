package envelope

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

func TestRecipientBounds(t *testing.T) {
	e := simpleMail()
	e.Mail.Recipients = nil
	for i := range MaxRecipients {
		e.Mail.Recipients = append(e.Mail.Recipients, Recipient{Addr: "u" + strconv.Itoa(i) + "@hub.example"})
	}
	got, err := ParseEnvelope(AppendEnvelope(nil, e))
	if err != nil || len(got.Mail.Recipients) != MaxRecipients {
		t.Fatalf("%d recipients: %v", MaxRecipients, err)
	}
	e.Mail.Recipients = append(e.Mail.Recipients, Recipient{Addr: "one@more.example"})
	if err := e.Check(); !errors.Is(err, ErrFormat) {
		t.Errorf("Check of %d recipients: %v", MaxRecipients+1, err)
	}
	if _, err := ParseEnvelope(AppendEnvelope(nil, e)); !errors.Is(err, ErrFormat) {
		t.Errorf("parse of %d recipients: %v", MaxRecipients+1, err)
	}
}

// TestWhatCheckAcceptsFits builds headers around MaxHeader: what Check lets pass must parse.
func TestWhatCheckAcceptsFits(t *testing.T) {
	e := simpleMail()
	long := strings.Repeat("x", MaxAddr)
	accepted, refused := 0, 0
	for n := 1900; n <= 2300; n += 50 {
		e.Mail.Recipients = make([]Recipient, n)
		for i := range e.Mail.Recipients {
			e.Mail.Recipients[i] = Recipient{Addr: long, ORcpt: "rfc822;" + long[:MaxAddr-7], Notify: NotifyFailure}
		}
		b := AppendEnvelope(nil, e)
		if err := e.Check(); err != nil {
			refused++
			if len(b) < MaxHeader*9/10 {
				t.Errorf("a header of %d bytes is refused: %v", len(b), err)
			}
			continue
		}
		accepted++
		if _, err := ParseEnvelope(b); err != nil {
			t.Errorf("accepted, but a header of %d bytes does not parse: %v", len(b), err)
		}
	}
	if accepted == 0 || refused == 0 {
		t.Errorf("%d accepted, %d refused: the bound was not met", accepted, refused)
	}
	if _, err := ParseEnvelope(make([]byte, MaxHeader+1)); !errors.Is(err, ErrFormat) {
		t.Errorf("a header above MaxHeader: %v", err)
	}
}

// TestReportBounds does the same for reports, whose texts are cut rather than refused.
func TestReportBounds(t *testing.T) {
	e := report()
	o := e.Report.Recipients[1]
	o.Status.Text = strings.Repeat("y", MaxStatusText)
	for _, n := range []int{1000, 3900, 5000, MaxRecipients, MaxRecipients + 1} {
		e.Report.Recipients = make([]Outcome, n)
		for i := range e.Report.Recipients {
			e.Report.Recipients[i] = o
		}
		if e.Check() != nil {
			continue
		}
		if _, err := ParseEnvelope(AppendEnvelope(nil, e)); err != nil {
			t.Errorf("%d outcomes are accepted, but %v", n, err)
		}
	}
}

// TestParseTakesLittleMemory feeds the input that buys most memory per byte.
func TestParseTakesLittleMemory(t *testing.T) {
	e := simpleMail()
	e.Mail.Recipients = make([]Recipient, MaxRecipients)
	b := AppendEnvelope(nil, e) // refused, but only after the walk
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ParseEnvelope(b)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrFormat) {
		t.Fatalf("recipients without address: %v", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
		t.Errorf("%d bytes of input take %d bytes of memory", len(b), got)
	}
}

func BenchmarkAppend(b *testing.B) {
	e := fullMail()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for range b.N {
		buf = AppendStored(buf[:0], e)
	}
}

func BenchmarkParse(b *testing.B) {
	for name, e := range map[string]*Envelope{"simple": simpleMail(), "full": fullMail()} {
		buf := AppendStored(nil, e)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := ParseStored(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
