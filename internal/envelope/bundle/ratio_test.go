package bundle

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// generated is a mail as people and machines write them, with words, names and numbers of its own; none of its
// sentences is in the dictionary.
func generated(n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	token := func(k int) string {
		b := make([]byte, k)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return hex.EncodeToString(b)
	}
	words := strings.Fields(`pump filter engine water diesel valve antenna battery solar panel rope anchor harbour island
		clinic vaccine bandage nurse village road bridge rain storm school radio generator tractor seed harvest goat net boat
		fish price letter parcel stamp ticket photo map north south east west cold warm broken new old small heavy late early
		we need got sent fixed lost found carried sold bought waited painted measured and but then when if because near`)
	sentence := func() string {
		var w []string
		for range 5 + rng.IntN(10) {
			w = append(w, words[rng.IntN(len(words))])
		}
		return strings.Join(w, " ")
	}
	at := t0.Add(time.Duration(n) * 977 * time.Second)
	from := pick("jan", "ines", "tomas", "ruth", "olu", "mei") + "@" + pick("harbour", "mission", "station7", "coop") + ".example"
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\r\n", a...) }
	switch n % 3 {
	case 0: // a person with a desktop program
		line("Received: from [192.168.%d.%d] (unknown [10.1.%d.9])", rng.IntN(256), rng.IntN(256), rng.IntN(256))
		line("\tby mx.%s (Postfix) with ESMTPSA id %s", from[strings.IndexByte(from, '@')+1:], strings.ToUpper(token(5)))
		line("\tfor <bob@hub.example>; %s", at.Format(time.RFC1123Z))
		line("Message-ID: <%s-%s@%s>", token(4), token(6), from[strings.IndexByte(from, '@')+1:])
		line("Date: %s\r\nMIME-Version: 1.0\r\nUser-Agent: Mozilla Thunderbird", at.Format(time.RFC1123Z))
		line("Content-Language: en-US\r\nTo: bob@hub.example\r\nFrom: %s\r\nSubject: %s", from, sentence())
		line("Content-Type: text/plain; charset=UTF-8; format=flowed\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHi Bob,\r\n")
		for range 2 + rng.IntN(6) {
			line("%s.", sentence())
		}
		line("\r\nBest regards\r\n%s", from[:3])
	case 1: // cron
		line("From: root@%s (Cron Daemon)\r\nTo: root@hub.example", from[strings.IndexByte(from, '@')+1:])
		line("Subject: Cron <root@camp> /usr/local/bin/%s --%s", words[rng.IntN(40)], words[rng.IntN(40)])
		line("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Transfer-Encoding: 8bit")
		line("X-Cron-Env: <SHELL=/bin/sh>\r\nX-Cron-Env: <HOME=/root>\r\nX-Cron-Env: <LOGNAME=root>")
		line("Message-Id: <%s.%s@camp.example>\r\nDate: %s\r\n", at.Format("20060102150405"), strings.ToUpper(token(5)), at.Format(time.RFC1123Z))
		for range 1 + rng.IntN(4) {
			line("%s %s[%d]: %s", at.Format(time.Stamp), words[rng.IntN(40)], rng.IntN(30000), sentence())
		}
	default: // a web mailer with two parts
		boundary := "000000000000" + token(8)
		body := sentence() + ". " + sentence() + "."
		line("MIME-Version: 1.0\r\nFrom: %s\r\nDate: %s", from, at.Format(time.RFC1123Z))
		line("Message-ID: <CA%s@mail.gmail.com>\r\nSubject: Re: %s\r\nTo: bob@hub.example", token(20), sentence())
		line("Content-Type: multipart/alternative; boundary=\"%s\"\r\n\r\n--%s", boundary, boundary)
		line("Content-Type: text/plain; charset=\"UTF-8\"\r\n\r\n%s\r\n\r\n--%s", body, boundary)
		line("Content-Type: text/html; charset=\"UTF-8\"\r\n\r\n<div dir=\"ltr\">%s<div><br></div></div>\r\n\r\n--%s--", body, boundary)
	}
	return []byte(b.String())
}

// TestRatio states what a bundle makes of small mail: one by one (the dictionary's doing) and many together.
func TestRatio(t *testing.T) {
	c := newCodec(t)
	var raw, single, plain int
	var all []item
	for n := range 300 {
		content := generated(n)
		x := item{"uid:1", envelope.RecordEnvelope, nil, content}
		all = append(all, x)
		raw += len(content)
		single += len(write(t, c, Options{}, []item{x}))
		plain += len(c.plain.EncodeAll(content, nil))
	}
	together := len(write(t, c, Options{}, all))
	t.Logf("%d mails of %d bytes on average: alone without dictionary %.2f, alone in a bundle %.2f, together %.2f of their size",
		len(all), raw/len(all), float64(plain)/float64(raw), float64(single)/float64(raw), float64(together)/float64(raw))
	// The bundles hold the envelopes too: ids and sums, 50 bytes of each, are noise.
	if single*100 > raw*62 {
		t.Errorf("alone, mails shrink to %d of %d bytes only", single, raw)
	}
	if together*100 > raw*36 {
		t.Errorf("together, mails shrink to %d of %d bytes only", together, raw)
	}
	if small := len(write(t, c, Options{}, all[:1])) - len(write(t, c, Options{}, nil)); small > len(all[0].content) {
		t.Errorf("a bundle of one mail of %d bytes has %d", len(all[0].content), small)
	}
}

func BenchmarkWriteSmall(b *testing.B) {
	c := newCodec(b)
	content := generated(0)
	e := mail(0, content)
	b.ReportAllocs()
	b.SetBytes(int64(len(content)))
	for range b.N {
		w := c.NewWriter(io.Discard, Header{Expires: t0}, Options{})
		if err := w.Envelope(e, bytes.NewReader(content)); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBatch(b *testing.B) {
	c := newCodec(b)
	var items []item
	var size int64
	for n := range 500 {
		items = append(items, item{"a", envelope.RecordEnvelope, nil, generated(n)})
		size += int64(len(items[n].content))
	}
	packed := write(b, c, Options{}, items)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			write(b, c, Options{}, items)
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			if _, err := readAll(c, bytes.NewReader(packed), Limits{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
