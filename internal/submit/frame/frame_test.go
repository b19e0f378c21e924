package frame

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
	"mochila/internal/submit"
)

// build makes a whole SUBMIT frame by docs/submission.md, in chunks of n bytes.
func build(m *submit.Mail, content string, n int) []byte {
	b := submit.AppendRequest(nil, submit.VerbSubmit, m)
	size := uint64(len(content))
	for len(content) > 0 {
		k := min(n, len(content))
		b = binary.BigEndian.AppendUint32(b, uint32(k))
		b = append(b, content[:k]...)
		content = content[k:]
	}
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, size)
	return sign(b)
}

func sign(b []byte) []byte {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum(b)
}

var full = &submit.Mail{
	Sender: "a@b.c", Ret: "HDRS", EnvID: "x+3D", Body: "8BITMIME", SMTPUTF8: true, RequireTLS: true, Proto: "bsmtp",
	By: &submit.By{Deadline: 1700000000000, Return: true, Trace: true}, Auth: text("<>"),
	Recipients: []submit.Recipient{{Addr: "d@e.f", Notify: 6, ORcpt: "rfc822;x@y"}, {Addr: `"q u"@e.f`}},
}

func text(s string) *string { return &s }

func read(b []byte, limit int64) (*Request, string, *Content, error) {
	r := NewReader(bufio.NewReader(bytes.NewReader(b)))
	q, err := r.Request()
	if err != nil {
		return nil, "", nil, err
	}
	c := r.Content(limit)
	if q.Verb != submit.VerbSubmit {
		return q, "", c, nil
	}
	content, err := io.ReadAll(c)
	return q, string(content), c, err
}

func TestFrameCarriesEverything(t *testing.T) {
	content := "Subject: x\r\n\r\n" + strings.Repeat("line\r\n", 1000)
	for _, n := range []int{1, 7, 1000, 1 << 20} {
		q, got, c, err := read(build(full, content, n), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		want := &envelope.Mail{
			Sender: "a@b.c", Ret: "HDRS", EnvID: "x+3D", Body: "8BITMIME", SMTPUTF8: true, RequireTLS: true,
			By: &envelope.By{Deadline: time.UnixMilli(1700000000000).UTC(), Return: true, Trace: true}, Auth: text("<>"),
			Recipients: []envelope.Recipient{{Addr: "d@e.f", Notify: envelope.NotifySuccess | envelope.NotifyFailure, ORcpt: "rfc822;x@y"}, {Addr: `"q u"@e.f`}},
			Client:     envelope.Client{Proto: "bsmtp"},
		}
		if !reflect.DeepEqual(q.Mail, want) || got != content || c.Size() != int64(len(content)) || c.Binary() {
			t.Fatalf("chunks of %d: %+v, %d bytes", n, q.Mail, len(got))
		}
	}
}

// TestVector holds the format still: the file is the example of docs/submission.md.
func TestVector(t *testing.T) {
	m := &submit.Mail{Owner: true, Recipients: []submit.Recipient{{Addr: "root"}}}
	got := build(m, "Subject: hi\r\n\r\nhello\r\n", 1<<20)
	want, err := os.ReadFile(filepath.Join("testdata", "submit.frame"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("the frame of docs/submission.md changed:\n%x\nwant\n%x", got, want)
	}
}

func TestNumbersAgreeWithEnvelope(t *testing.T) {
	for i, n := range []envelope.Notify{envelope.NotifyNever, envelope.NotifySuccess, envelope.NotifyFailure, envelope.NotifyDelay} {
		if n != 1<<i {
			t.Errorf("bit %d of NOTIFY is %d", i, n)
		}
	}
	// The mail record of docs/format.md is the one in a frame, as far as both go.
	b := submit.AppendRequest(nil, submit.VerbSubmit, &submit.Mail{
		Sender: full.Sender, Recipients: full.Recipients, Ret: full.Ret, EnvID: full.EnvID, Body: full.Body,
		SMTPUTF8: true, RequireTLS: true, By: full.By, Auth: full.Auth,
	})
	q, err := NewReader(bufio.NewReader(bytes.NewReader(b))).Request()
	if err != nil {
		t.Fatal(err)
	}
	q.Mail.Client = envelope.Client{}
	e := envelope.AppendEnvelope(nil, &envelope.Envelope{ID: envelope.ID{1}, Kind: envelope.KindMail, Mail: q.Mail})
	if !bytes.Contains(e, b[10:]) {
		t.Errorf("the record of a frame %x is not in the envelope %x", b[10:], e)
	}
	if submit.MaxAddr != envelope.MaxAddr || submit.MaxRecord != envelope.MaxHeader {
		t.Error("limits differ from those of an envelope")
	}
}

func edit(b []byte, f func([]byte) []byte) []byte { return f(bytes.Clone(b)) }

func TestDefects(t *testing.T) {
	good := build(&submit.Mail{Owner: true, Recipients: []submit.Recipient{{Addr: "root"}}}, "a: b\r\n\r\n", 100)
	record := len(submit.AppendRequest(nil, submit.VerbSubmit, &submit.Mail{Owner: true, Recipients: []submit.Recipient{{Addr: "root"}}}))
	to := func(addr string) *submit.Mail {
		return &submit.Mail{Sender: "a@b", Recipients: []submit.Recipient{{Addr: addr}}}
	}
	cases := map[string][]byte{
		"empty":             {},
		"wrong magic":       edit(good, func(b []byte) []byte { b[0] = 'X'; return b }),
		"version 2":         edit(good, func(b []byte) []byte { b[4] = 2; return b }),
		"verb 0":            edit(good, func(b []byte) []byte { b[5] = 0; return b }),
		"verb 7":            edit(good, func(b []byte) []byte { b[5] = 7; return b }),
		"record of 4 GiB":   edit(good, func(b []byte) []byte { copy(b[6:], "\xff\xff\xff\xff"); return b }),
		"chunk of 4 GiB":    edit(good, func(b []byte) []byte { copy(b[record:], "\xff\xff\xff\xff"); return b }),
		"chunk too big":     edit(good, func(b []byte) []byte { copy(b[record:], "\x00\x10\x00\x01"); return b }),
		"wrong size":        edit(good, func(b []byte) []byte { b[len(b)-9]++; return sign(b[:len(b)-8]) }),
		"wrong sum":         edit(good, func(b []byte) []byte { b[len(b)-1]++; return b }),
		"changed byte":      edit(good, func(b []byte) []byte { b[record+4] = 'A'; return b }),
		"zeroed tail":       edit(good, func(b []byte) []byte { clear(b[record+6:]); return b }),
		"all zeros":         make([]byte, 4096),
		"bare LF":           build(to("c@d"), "a: b\n\r\n", 100),
		"bare LF at a seam": build(to("c@d"), "a: b\n\r\n", 4),
		"no final CRLF":     build(to("c@d"), "a: b\r\n\r\nc", 100),
		"no recipient":      build(&submit.Mail{Sender: "a@b"}, "", 1),
		"owner and sender":  build(&submit.Mail{Owner: true, Sender: "a@b", Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"rcpt with newline": build(to("c@d\r\nDATA"), "", 1),
		"rcpt injection":    build(to("c@d> NOTIFY=NEVER"), "", 1),
		"rcpt latin-1":      build(to("c\xe9@d"), "", 1),
		"empty rcpt":        build(to(""), "", 1),
		"sender injection":  build(&submit.Mail{Sender: "a@b> X", Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"wrong RET":         build(&submit.Mail{Ret: "ALL", Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"wrong BODY":        build(&submit.Mail{Body: "9BIT", Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"ENVID with blank":  build(&submit.Mail{EnvID: "a b", Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"AUTH with blank":   build(&submit.Mail{Auth: text("a b"), Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"ORCPT with blank":  build(&submit.Mail{Recipients: []submit.Recipient{{Addr: "c", ORcpt: "rfc822;a b"}}}, "", 1),
		"NEVER and DELAY":   build(&submit.Mail{Recipients: []submit.Recipient{{Addr: "c", Notify: 9}}}, "", 1),
		"proto with blank":  build(&submit.Mail{Proto: "a b", Recipients: []submit.Recipient{{Addr: "c"}}}, "", 1),
		"unknown field":     sign(append([]byte("MSUB\x01\x01\x00\x00\x00\x03\x63\x01\x01"), make([]byte, 12)...)),
	}
	for i := range good[:len(good)-1] {
		if _, _, _, err := read(good[:i], 1<<20); !errors.Is(err, ErrFormat) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
	for name, b := range cases {
		if _, _, _, err := read(b, 1<<20); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, _, err := read(build(to("c@d"), strings.Repeat("x\r\n", 100), 64), 299); !errors.Is(err, ErrTooBig) {
		t.Errorf("too big: %v", err)
	}
	if _, _, _, err := read(good, 1<<20); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestBinary(t *testing.T) {
	for content, want := range map[string]bool{
		"a\r\n": false, "a\x00\r\n": true, "a\rb\r\n": true, "a\r\r\n": true, "\r\n\r\n": false, "\xff\r\n": false, "": false,
	} {
		for _, n := range []int{1, 2, 100} {
			_, _, c, err := read(build(&submit.Mail{Recipients: []submit.Recipient{{Addr: "a"}}}, content, n), 100)
			if err != nil || c.Binary() != want {
				t.Errorf("%q: binary %v, %v", content, c.Binary(), err)
			}
		}
	}
}

// basket is an intake that notes how it ended.
type basket struct {
	bytes.Buffer
	committed, aborted int
	fail               error
}

func (b *basket) Write(p []byte) (int, error) {
	if b.fail != nil {
		return 0, b.fail
	}
	return b.Buffer.Write(p)
}
func (b *basket) Commit(context.Context) (string, error) { b.committed++; return "ID", nil }
func (b *basket) Abort()                                 { b.aborted++ }

func TestIntoCommitsOnlyTheWhole(t *testing.T) {
	good := build(full, "a: b\r\n\r\nhello\r\n", 5)
	for n := range len(good) + 1 {
		r := NewReader(bufio.NewReader(bytes.NewReader(good[:n])))
		q, err := r.Request()
		if err != nil {
			continue
		}
		in := &basket{}
		id, err := r.Content(100).Into(context.Background(), in, q.Mail)
		if whole := n == len(good); whole != (err == nil) || whole != (in.committed == 1) || whole == (in.aborted == 1) {
			t.Fatalf("%d of %d bytes: %q, %v, %+v", n, len(good), id, err, in)
		}
	}
	in := &basket{fail: io.ErrShortWrite}
	r := NewReader(bufio.NewReader(bytes.NewReader(good)))
	q, _ := r.Request()
	if _, err := r.Content(100).Into(context.Background(), in, q.Mail); !errors.Is(err, io.ErrShortWrite) || in.aborted != 1 {
		t.Errorf("full disk: %v, %+v", err, in)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	in = &basket{}
	r = NewReader(bufio.NewReader(bytes.NewReader(good)))
	q, _ = r.Request()
	if _, err := r.Content(100).Into(ctx, in, q.Mail); !errors.Is(err, context.Canceled) || in.aborted != 1 {
		t.Errorf("cancelled: %v, %+v", err, in)
	}
}

func TestStamp(t *testing.T) {
	for _, c := range []struct {
		proto   string
		trusted bool
		want    string
	}{{"", false, "local"}, {"bsmtp", false, "bsmtp"}, {"rmail", false, "rmail"}, {"ESMTPS", false, "local"}, {"ESMTPS", true, "ESMTPS"}} {
		q := &Request{Owner: true, Mail: &envelope.Mail{Client: envelope.Client{Proto: c.proto}}}
		q.Stamp(Submitter{UID: 1000, Name: "ann", Trusted: c.trusted})
		if want := (envelope.Client{Proto: c.want, User: "ann", UID: 1001}); q.Mail.Client != want || q.Mail.Sender != "ann" {
			t.Errorf("%+v: %+v", c, q.Mail)
		}
	}
}

// FuzzFrame: no input makes trouble, and what is accepted has one encoding only.
func FuzzFrame(f *testing.F) {
	f.Add(build(full, "a: b\r\n\r\n", 3))
	f.Add(submit.AppendRequest(nil, submit.VerbFlush, &submit.Mail{Site: "x.y"}))
	f.Add(submit.AppendRequest(nil, submit.VerbVerify, &submit.Mail{Recipients: []submit.Recipient{{Addr: "a"}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, content, c, err := read(b, 1<<16)
		if err != nil {
			return
		}
		m := &submit.Mail{
			Owner: q.Owner, Sender: q.Mail.Sender, Ret: q.Mail.Ret, EnvID: q.Mail.EnvID, Body: q.Mail.Body,
			SMTPUTF8: q.Mail.SMTPUTF8, RequireTLS: q.Mail.RequireTLS, Auth: q.Mail.Auth, Proto: q.Mail.Client.Proto, Site: q.Site,
		}
		for _, r := range q.Mail.Recipients {
			m.Recipients = append(m.Recipients, submit.Recipient{Addr: r.Addr, Notify: uint8(r.Notify), ORcpt: r.ORcpt})
		}
		if by := q.Mail.By; by != nil {
			m.By = &submit.By{Deadline: by.Deadline.UnixMilli(), Return: by.Return, Trace: by.Trace}
		}
		again := submit.AppendRequest(nil, q.Verb, m)
		if n := binary.BigEndian.Uint32(b[6:]); q.Size == 0 && !bytes.Equal(again, b[:10+n]) && !impliedUTF8(q, b[10:10+n]) {
			t.Fatalf("%x was read, but written as %x", b[:10+n], again)
		}
		if c.Size() != int64(len(content)) {
			t.Fatalf("size %d of %d bytes", c.Size(), len(content))
		}
	})
}

// impliedUTF8 reports whether SMTPUTF8 was set for the addresses, not by the record.
func impliedUTF8(q *Request, record []byte) bool {
	return q.Mail.SMTPUTF8 && !ascii(string(record))
}
