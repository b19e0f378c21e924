package envelope

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the vectors of testdata anew (only when the format changes)")

// The vectors are files testdata/KIND/NAME.hex: hexadecimal bytes, broken anywhere, after lines that begin with "#".
// Names that begin with "ok-" parse and give the same bytes again; all others are named after their defect.

// parsers read one kind of vector and write it again.
var parsers = map[string]func(b []byte) ([]byte, error){
	"envelope": func(b []byte) ([]byte, error) {
		e, err := ParseEnvelope(b)
		if err != nil {
			return nil, err
		}
		return AppendEnvelope(nil, e), nil
	},
	"stored": func(b []byte) ([]byte, error) {
		e, err := ParseStored(b)
		if err != nil {
			return nil, err
		}
		return AppendStored(nil, e), nil
	},
	"held":         func(b []byte) ([]byte, error) { v, err := ParseHeld(b); return again(v, err) },
	"refused":      func(b []byte) ([]byte, error) { v, err := ParseRefused(b); return again(v, err) },
	"close":        func(b []byte) ([]byte, error) { v, err := ParseClose(b); return again(v, err) },
	"reset":        func(b []byte) ([]byte, error) { v, err := ParseReset(b); return again(v, err) },
	"fork":         func(b []byte) ([]byte, error) { v, err := ParseFork(b); return again(v, err) },
	"greeting":     func(b []byte) ([]byte, error) { v, err := ParseGreeting(b); return again(v, err) },
	"channel":      func(b []byte) ([]byte, error) { v, err := ParseChannelReport(b); return again(v, err) },
	"resume":       func(b []byte) ([]byte, error) { v, err := ParseResume(b); return again(v, err) },
	"invite-proof": func(b []byte) ([]byte, error) { v, err := ParseInviteProof(b); return again(v, err) },
}

func again[T interface{ Append([]byte) []byte }](v T, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return v.Append(nil), nil
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	seen := 0
	for kind, parse := range parsers {
		files, err := filepath.Glob(filepath.Join("testdata", kind, "*.hex"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no vectors of %s: %v", kind, err)
		}
		for _, f := range files {
			seen++
			b := readVector(t, f)
			out, err := parse(b)
			switch ok := strings.HasPrefix(filepath.Base(f), "ok-"); {
			case ok && err != nil:
				t.Errorf("%s: %v", f, err)
			case ok && !bytes.Equal(out, b):
				t.Errorf("%s: is written again as\n%x, not\n%x", f, out, b)
			case !ok && !errors.Is(err, ErrFormat):
				t.Errorf("%s: got %v, want ErrFormat", f, err)
			case !ok && !strings.Contains(err.Error(), reason(t, f)):
				t.Errorf("%s: got %q, want %q", f, err, reason(t, f))
			}
		}
	}
	want := 0
	for _, v := range vectors() {
		want++
		if got := readVector(t, v.file()); !bytes.Equal(got, v.b) {
			t.Errorf("%s: the encoding has changed to\n%x, from\n%x", v.file(), v.b, got)
		}
	}
	if seen != want {
		t.Errorf("%d vectors on disk, %d in the table", seen, want)
	}
}

func readVector(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			digits.WriteString(strings.Join(strings.Fields(line), ""))
		}
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return b
}

// reason is what the first line of a vector says about the error.
func reason(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	r, ok := strings.CutPrefix(first, "# error: ")
	if !ok {
		t.Fatalf("%s: no \"# error: \" in front", file)
	}
	return r
}

// vector is one entry of the table that the files came from.
type vector struct {
	kind, name string
	b          []byte
	err        string // part of the error
}

func (v vector) file() string { return filepath.Join("testdata", v.kind, v.name+".hex") }

func writeVectors(t *testing.T) {
	t.Helper()
	for _, v := range vectors() {
		var out strings.Builder
		if v.err == "" {
			fmt.Fprintf(&out, "# %d bytes\n", len(v.b))
		} else {
			fmt.Fprintf(&out, "# error: %s\n", v.err)
		}
		for line := range slices.Chunk(v.b, 32) {
			fmt.Fprintf(&out, "%x\n", line)
		}
		if err := os.MkdirAll(filepath.Dir(v.file()), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(v.file(), []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// fields joins raw fields: a tag, a length and a value each, given as tag and value.
func fields(tagsAndValues ...any) []byte {
	var e Enc
	for i := 0; i < len(tagsAndValues); i += 2 {
		tag := uint64(tagsAndValues[i].(int))
		switch v := tagsAndValues[i+1].(type) {
		case string:
			e.Item(tag, []byte(v))
		case []byte:
			e.Item(tag, v)
		case int:
			e.Uint(tag, uint64(v))
		}
	}
	return e.B
}

// with is a good envelope of one mail, changed.
func with(change func(*Envelope)) []byte {
	e := fullMail()
	e.Mail.Recipients = e.Mail.Recipients[:2]
	change(e)
	return AppendEnvelope(nil, e)
}

func withReport(change func(*Report)) []byte {
	e := report()
	change(e.Report)
	return AppendEnvelope(nil, e)
}

func vectors() []vector {
	return slices.Concat(envelopeVectors(), jobVectors(), storedVectors(), recordVectors(), channelVectors())
}

func envelopeVectors() []vector {
	id := string(bytes.Repeat([]byte{7}, 16))
	expires := []byte{0x90, 0x9c, 0x82, 0xd3, 0x06}
	rcpt := string(fields(1, "bob@hub.example"))
	simple := string(fields(2, rcpt))
	mail := func(m string) []byte { return fields(1, id, 3, expires, 9, m) }
	long := strings.Repeat("x", MaxAddr+1)
	auth := ""
	return []vector{
		{"envelope", "ok-one-recipient", AppendEnvelope(nil, simpleMail()), ""},
		{"envelope", "ok-everything", AppendEnvelope(nil, fullMail()), ""},
		{"envelope", "ok-report", AppendEnvelope(nil, report()), ""},
		{"envelope", "ok-null-sender-no-content", mail(simple), ""},
		{"envelope", "ok-deliverby-without-deadline", mail(simple + string(fields(8, ""))), ""},
		{"envelope", "ok-age", with(func(e *Envelope) { e.Age = 40 * 24 * time.Hour }), ""},
		{"envelope", "age-above-a-hundred-years", append(mail(simple), fields(14, string(binary.AppendUvarint(nil, 3153600001)))...), "more than 3153600000"},
		{"envelope", "age-zero", append(mail(simple), fields(14, "\x00")...), "field 14"},
		{"envelope", "ok-empty-auth", with(func(e *Envelope) { e.Mail.Auth = &auth }), ""},

		{"envelope", "empty", nil, "no envelope id"},
		{"envelope", "id-missing", fields(3, expires, 9, simple), "no envelope id"},
		{"envelope", "id-short", fields(1, id[:15], 3, expires, 9, simple), "15 bytes, not 16"},
		{"envelope", "id-zero", with(func(e *Envelope) { e.ID = ID{} }), "without id"},
		{"envelope", "fields-out-of-order", fields(1, id, 5, 9, 3, expires, 9, simple), "field 3 after field 5"},
		{"envelope", "field-twice", fields(1, id, 3, expires, 3, expires, 9, simple), "field 3 after field 3"},
		{"envelope", "field-unknown", fields(1, id, 3, expires, 9, simple, 15, "x"), "unknown field 15"},
		{"envelope", "length-past-the-end", append(fields(1, id, 3, expires), 9, 40, 1), "says 40 bytes, 1 are left"},
		{"envelope", "length-not-minimal", append([]byte{1, 0x90, 0}, id...), "broken number"},
		{"envelope", "length-of-11-bytes", append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...), "broken number"},
		{"envelope", "cut-inside-a-tag", append(fields(1, id, 3, expires, 9, simple), 0x80), "broken number"},
		{"envelope", "number-not-minimal", fields(1, id, 3, []byte{0x81, 0}, 9, simple), "not a minimal number"},
		{"envelope", "number-zero", fields(1, id, 3, []byte{0}, 9, simple), "not a minimal number"},
		{"envelope", "number-empty", fields(1, id, 3, "", 9, simple), "not a minimal number"},
		{"envelope", "created-as-in-the-id", fields(1, id, 2, int(ID([]byte(id)).Time().UnixMilli()), 3, expires, 9, simple), "the id tells already"},
		{"envelope", "created-after-the-year-9999", fields(1, id, 2, maxMilli+1, 3, expires, 9, simple), "more than 253402300799999"},
		{"envelope", "expires-missing", fields(1, id, 9, simple), "never expires"},
		{"envelope", "priority-10", with(func(e *Envelope) { e.Priority = 10 }), "priority 10"},
		{"envelope", "sum-of-zeros", fields(1, id, 3, expires, 6, string(make([]byte, 32)), 9, simple), "sum of zeros"},
		{"envelope", "sum-missing", with(func(e *Envelope) { e.Sum = [32]byte{} }), "content without sum"},
		{"envelope", "size-negative", fields(1, id, 3, expires, 5, []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, 9, simple), "more than 9223372036854775807"},
		{"envelope", "hops-256", with(func(e *Envelope) { e.Hops = 256 }), "256 hops"},
		{"envelope", "origin-on-the-wire", fields(1, id, 3, expires, 8, string(make([]byte, 31))+"x", 9, simple), "unknown field 8"},
		{"envelope", "transit-on-the-wire", fields(1, id, 3, expires, 12, ""), "unknown field 12"},
		{"envelope", "kind-missing", fields(1, id, 3, expires), "without its record"},
		{"envelope", "two-kinds", fields(1, id, 3, expires, 9, simple, 11, string(fields(1, id))), "two kinds"},
		{"envelope", "mail-empty", mail(""), "0 recipients"},
		{"envelope", "mail-field-unknown", mail(simple + string(fields(13, "x"))), "unknown field 13"},
		{"envelope", "sender-empty", mail(string(fields(1, "")) + simple), "field 1 is empty"},
		{"envelope", "sender-with-line-break", with(func(e *Envelope) { e.Mail.Sender = "a@b\r\nRCPT TO:<c@d>" }), "control character 0x0d"},
		{"envelope", "recipient-empty", mail(string(fields(2, ""))), "without address"},
		{"envelope", "recipient-field-unknown", mail(string(fields(2, fields(1, "x", 4, "y")))), "unknown field 4"},
		{"envelope", "recipient-with-nul", with(func(e *Envelope) { e.Mail.Recipients[1].Addr = "a\x00@b" }), "control character 0x00"},
		{"envelope", "recipient-with-delete", with(func(e *Envelope) { e.Mail.Recipients[1].Addr = "a\x7f@b" }), "control character 0x7f"},
		{"envelope", "recipient-too-long", with(func(e *Envelope) { e.Mail.Recipients[0].Addr = long }), "1001 bytes, more than 1000"},
		{"envelope", "orcpt-with-tab", with(func(e *Envelope) { e.Mail.Recipients[0].ORcpt = "rfc822;\t" }), "control character 0x09"},
		{"envelope", "notify-never-and-delay", with(func(e *Envelope) { e.Mail.Recipients[0].Notify = NotifyNever | NotifyDelay }), "NOTIFY set 0x9"},
		{"envelope", "notify-unknown-bit", with(func(e *Envelope) { e.Mail.Recipients[0].Notify = 16 }), "NOTIFY set 0x10"},
		{"envelope", "ret-unknown", with(func(e *Envelope) { e.Mail.Ret = "full" }), "RET="},
		{"envelope", "body-unknown", with(func(e *Envelope) { e.Mail.Body = "9BIT" }), "BODY="},
		{"envelope", "bool-of-2", mail(simple + string(fields(6, 2))), "is 2, more than 1"},
		{"envelope", "deliverby-field-unknown", mail(simple + string(fields(8, fields(4, 1)))), "unknown field 4"},
		{"envelope", "auth-with-line-feed", with(func(e *Envelope) { s := "a\n"; e.Mail.Auth = &s }), "AUTH has the control character"},
		{"envelope", "client-empty", mail(simple + string(fields(11, ""))), "field 11 is empty"},
		{"envelope", "client-field-unknown", mail(simple + string(fields(11, fields(11, "x")))), "unknown field 11"},
		{"envelope", "client-helo-with-line-feed", with(func(e *Envelope) { e.Mail.Client.Helo = "a\nb" }), "HELO has the control character"},
		{"envelope", "mt-priority-minus-10", with(func(e *Envelope) { e.Mail.Priority = -10 }), "MT-PRIORITY=-10"},
		{"envelope", "report-empty", fields(1, id, 3, expires, 11, ""), "about nothing"},
		{"envelope", "report-about-id-zero", withReport(func(r *Report) { r.Ref = ID{} }), "about nothing"},
		{"envelope", "report-without-recipients", withReport(func(r *Report) { r.Recipients = nil }), "report on 0 recipients"},
		{"envelope", "report-field-unknown", fields(1, id, 3, expires, 11, fields(1, id, 4, "x")), "unknown field 4"},
		{"envelope", "outcome-pending", withReport(func(r *Report) { r.Recipients[0].Action = ActionPending }), "action 0"},
		{"envelope", "outcome-action-6", withReport(func(r *Report) { r.Recipients[0].Action = 6 }), "action 6"},
		{"envelope", "outcome-without-address", withReport(func(r *Report) { r.Recipients[0].Addr = "" }), "outcome without address"},
		{"envelope", "outcome-address-with-line-break", withReport(func(r *Report) { r.Recipients[0].Addr = "a\r\nb" }), "control character 0x0d"},
		{"envelope", "outcome-text-of-two-lines", fields(1, id, 3, expires, 11, fields(1, id, 3, fields(1, "a@b", 2, 1, 7, "a\nb"))), "not one line"},
		{"envelope", "outcome-code-1000", fields(1, id, 3, expires, 11, fields(1, id, 3, fields(1, "a@b", 2, 1, 5, 1000))), "1000, more than 999"},
		{"envelope", "outcome-enhanced-3-1-1", fields(1, id, 3, expires, 11, fields(1, id, 3, fields(1, "a@b", 2, 1, 6, "3.1.1"))), "not an enhanced status code"},
	}
}

func storedVectors() []vector {
	id := string(bytes.Repeat([]byte{7}, 16))
	own := simpleMail()
	own.Origin = NodeID{1, 2, 3}
	transit := &Envelope{ID: ID([]byte(id)), Kind: KindTransit, Origin: NodeID{5}, Size: 5000, Sum: [32]byte{8}}
	return []vector{
		{"stored", "ok-mail", AppendStored(nil, own), ""},
		{"stored", "ok-transit", AppendStored(nil, transit), ""},
		{"stored", "ok-nothing-but-an-id", fields(1, id), ""},
		{"stored", "origin-short", fields(1, id, 8, "x", 12, ""), "1 bytes, not 32"},
		{"stored", "origin-of-zeros", fields(1, id, 8, string(make([]byte, 32)), 12, ""), "origin of zeros"},
		{"stored", "transit-with-value", fields(1, id, 12, "x"), "1 bytes, not 0"},
		{"stored", "ok-job", AppendStored(nil, fullJob()), ""},
	}
}

func recordVectors() []vector {
	s, salt := "\x01\x02\x03\x04\x05\x06\x07\x08", "saltsalt"
	check := "checked!"
	seq := func(v ...byte) string { return string(v) }
	full := func(n int) string {
		return strings.Repeat(seq(1, 0)+check, n)
	}
	session := [8]byte([]byte(s))
	return []vector{
		{"held", "ok-three-ranges", (&Held{session, Ranges{{0, 7, Check{1}}, {9, 1, Check{2}}, {1 << 40, 300, Check{3}}}}).Append(nil), ""},
		{"held", "ok-1024-ranges", fields(1, s, 2, full(MaxRanges)), ""},
		{"held", "session-missing", fields(2, full(1)), "field 1 is missing"},
		{"held", "session-short", fields(1, s[:7], 2, full(1)), "7 bytes, not 8"},
		{"held", "ranges-missing", fields(1, s), "without ranges"},
		{"held", "ranges-empty", fields(1, s, 2, ""), "field 2 is empty"},
		{"held", "ranges-1025", fields(1, s, 2, full(MaxRanges+1)), "more than 1024 ranges"},
		{"held", "ranges-touching", fields(1, s, 2, full(1)+seq(0, 0)+check), "two ranges that are one"},
		{"held", "range-past-48-bits", fields(1, s, 2, seq(0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)+check), "past the last number"},
		{"held", "range-past-64-bits", fields(1, s, 2, seq(1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)+check), "past the last number"},
		{"held", "check-cut", fields(1, s, 2, seq(1, 0)+check[:7]), "range without check"},
		{"held", "number-not-minimal", fields(1, s, 2, seq(0x81, 0, 0)+check), "broken number"},
		{"held", "field-unknown", fields(1, s, 2, full(1), 3, "x"), "unknown field 3"},

		{"refused", "ok-item", (&Refused{Session: session, Seq: 77, Salt: [8]byte([]byte(salt)), Reason: ReasonQuota, Text: "1 GiB is used up"}).Append(nil), ""},
		{"refused", "ok-packet", (&Refused{Packet: [32]byte{1}, Reason: ReasonKeyErased, Serial: 1790000000}).Append(nil), ""},
		{"refused", "reason-missing", fields(1, s, 3, salt), "no reason"},
		{"refused", "reason-256", fields(1, s, 3, salt, 5, 256), "256, more than 255"},
		{"refused", "names-nothing", fields(5, 1), "neither one number"},
		{"refused", "names-both", fields(1, s, 3, salt, 4, string(make([]byte, 31))+"x", 5, 1), "neither one number"},
		{"refused", "packet-of-zeros", fields(4, string(make([]byte, 32)), 5, 1), "neither one number"},
		{"refused", "number-of-a-packet", fields(2, 5, 4, string(make([]byte, 31))+"x", 5, 1), "neither one number"},
		{"refused", "salt-missing", fields(1, s, 5, 1), "neither one number"},
		{"refused", "text-with-line-break", fields(1, s, 3, salt, 5, 1, 7, "a\nb"), "not one line"},
		{"refused", "text-of-201-bytes", fields(1, s, 3, salt, 5, 1, 7, strings.Repeat("x", 201)), "not one line"},
		{"refused", "field-unknown", fields(1, s, 3, salt, 5, 1, 8, "x"), "unknown field 8"},

		{"close", "ok-nothing-sent", (&Close{Session: session}).Append(nil), ""},
		{"close", "ok-with-void", (&Close{Session: session, Next: 9, Check: Check{1}, Void: Ranges{{2, 2, Check{}}, {8, 1, Check{}}}}).Append(nil), ""},
		{"close", "void-never-used", (&Close{Session: session, Next: 8, Void: Ranges{{8, 1, Check{}}}}).Append(nil), "never used"},
		{"close", "check-of-zeros", fields(1, s, 2, 9, 3, string(make([]byte, 8))), "check of zeros"},
		{"close", "session-missing", fields(2, 9), "field 1 is missing"},
		{"close", "field-unknown", fields(1, s, 5, "x"), "unknown field 5"},

		{"reset", "ok-all", (&Reset{Session: session, Incarnation: [8]byte{1}}).Append(nil), ""},
		{"reset", "incarnation-missing", fields(1, s), "field 2 is missing"},
		{"reset", "field-unknown", fields(1, s, 2, s, 3, "x"), "unknown field 3"},

		{"fork", "ok-all", (&Fork{Session: session, Seq: 4, Salt: [16]byte{2}, Incarnation: [8]byte{1}}).Append(nil), ""},
		{"fork", "salt-missing", fields(1, s, 4, s), "salt or incarnation is missing"},
		{"fork", "incarnation-missing", fields(1, s, 3, s+s), "salt or incarnation is missing"},
		{"fork", "field-unknown", fields(1, s, 3, s+s, 4, s, 5, "x"), "unknown field 5"},

		{"greeting", "ok-first", (&Greeting{Name: "camp", Nonce: [16]byte{1}}).Append(nil), ""},
		{"greeting", "ok-answer", (&Greeting{Name: "hub", Nonce: [16]byte{1}, Echo: [16]byte{2}}).Append(nil), ""},
		{"greeting", "nonce-missing", fields(1, "camp"), "no nonce"},
		{"greeting", "echo-of-zeros", fields(2, s+s, 3, string(make([]byte, 16))), "echo of zeros"},
		{"greeting", "name-of-65-bytes", fields(1, strings.Repeat("x", 65), 2, s+s), "not one line"},
		{"greeting", "name-with-escape", fields(1, "\x1b[2J", 2, s+s), "not one line"},
		{"greeting", "field-unknown", fields(2, s+s, 4, "x"), "unknown field 4"},

		{"invite-proof", "ok-all", InviteProof{1, 2, 3}.Append(nil), ""},
		{"invite-proof", "31-bytes", make([]byte, 31), "31 bytes, not 32"},
		{"invite-proof", "33-bytes", make([]byte, 33), "33 bytes, not 32"},
	}
}
