package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// mail is one mail to send. Its text has LF lines and ends with one; SMTP gets CRLF lines.
type mail struct {
	shape    string
	from     string
	to       []string
	text     []byte
	sendmail bool // it goes by sendmail, else by SMTP
	smtpOnly bool // sendmail would complete it
	extract  bool // sendmail -t: the recipients are those of the header
}

// shape makes one kind of mail. n numbers the mails of a run.
type shape struct {
	name string
	make func(r *rand.Rand, n int) mail
}

// shapes are what a mailbox of some years holds, as far as it can hurt a program that carries mail.
var shapes = []shape{
	{"plain text", plain},
	{"Latin-1, eight bits", latin1},
	{"UTF-8 addresses", utf8Addresses},
	{"newsletter, two alternatives", newsletter},
	{"attachment", attachment},
	{"lines of 20,000 characters", longLines},
	{"leading dots and From", dots},
	{"empty body", emptyBody},
	{"header only", headerOnly},
	{"patch, white space everywhere", patch},
	{"several recipients", severalRecipients},
	{"passed on by three servers", relayed},
}

const (
	here  = "camp.example"
	there = "hub.example"
)

// mails makes rounds mails of each shape, by turns for SMTP and for sendmail, and one of five megabytes. The seed
// decides every byte.
func mails(seed uint64, rounds int) []mail {
	r := rand.New(rand.NewPCG(seed, 20))
	var out []mail
	for round := range rounds {
		for _, s := range shapes {
			m := s.make(r, len(out))
			m.shape = s.name
			m.sendmail = round%2 == 1 && !m.smtpOnly
			out = append(out, m)
		}
	}
	big := film(r, len(out))
	big.shape = "five megabytes"
	return append(out, big)
}

// header is the usual beginning: everything that a mail should have, so that sendmail has nothing to add.
func header(n int, from, to, subject string) *bytes.Buffer {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Date: Mon, 2 Mar 2026 %02d:%02d:00 +0100\nFrom: %s\nTo: %s\nSubject: %s\nMessage-ID: <demo.%d@%s>\n",
		8+n/60%12, n%60, from, to, subject, n, here)
	return &b
}

func one(from, to string, b *bytes.Buffer) mail {
	return mail{from: from, to: []string{to}, text: b.Bytes()}
}

var vocabulary = strings.Fields(`the pump of well three is back since noon and gives eleven litres a minute please send filters
	with the next boat we have two left no wind until friday batteries at sixty percent the new antenna stands the cook asks for onions
	sample forty is in the cold box label it north ridge second transect water is clear temperature four degrees regards`)

// prose writes n lines of words.
func prose(r *rand.Rand, b *bytes.Buffer, n int) {
	for range n {
		for width := 0; width < 60; {
			w := vocabulary[r.IntN(len(vocabulary))]
			b.WriteString(w)
			b.WriteByte(' ')
			width += len(w) + 1
		}
		b.Truncate(b.Len() - 1)
		b.WriteByte('\n')
	}
}

func plain(r *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "bo@"+there, "daily report")
	b.WriteByte('\n')
	prose(r, b, 5+r.IntN(30))
	return one("ana@"+here, "bo@"+there, b)
}

func latin1(r *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "bo@"+there, "=?iso-8859-1?Q?Gr=FC=DFe?=")
	b.WriteString("MIME-Version: 1.0\nContent-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: 8bit\n\n")
	for range 5 + r.IntN(20) {
		for range 12 {
			b.WriteByte(byte(0xA0 + r.IntN(0x60)))
			b.WriteByte(byte('a' + r.IntN(26)))
		}
		b.WriteByte('\n')
	}
	return one("ana@"+here, "bo@"+there, b)
}

func utf8Addresses(r *rand.Rand, n int) mail {
	from, to := "åse@"+here, "jörg@"+there
	b := header(n, "Åse <"+from+">", "Jörg <"+to+">", "Ölstand — 油 — نفط")
	b.WriteString("MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße. Приветствия. ご挨拶.\n")
	prose(r, b, 2+r.IntN(5))
	return one(from, to, b)
}

func newsletter(r *rand.Rand, n int) mail {
	b := header(n, `"The News" <news@`+here+">", "bo@"+there, "What happened\n\tthis week,\n and what did not")
	b.WriteString("List-Unsubscribe: <mailto:off@" + here + ">\nMIME-Version: 1.0\nContent-Type: multipart/alternative;\n\tboundary=\"=_b\"\n\n--=_b\nContent-Type: text/plain\n\n")
	prose(r, b, 20)
	b.WriteString("--=_b\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n<html><body style=3D\"margin:0\">=\n")
	for range 20 {
		b.WriteString("<p class=3D\"x\">")
		prose(r, b, 2)
		b.WriteString("=E2=80=94</p>=\n")
	}
	b.WriteString("</body></html>\n--=_b--\n")
	return one("news-bounces+bo="+there+"@"+here, "bo@"+there, b)
}

// file writes n random bytes as base64.
func file(r *rand.Rand, b *bytes.Buffer, n int) {
	raw := make([]byte, 57)
	for ; n > 0; n -= len(raw) {
		for i := range raw {
			raw[i] = byte(r.Uint32())
		}
		line := raw[:min(n, len(raw))]
		b.WriteString(base64.StdEncoding.EncodeToString(line))
		b.WriteByte('\n')
	}
}

func withFile(r *rand.Rand, n, size int, subject, kind, name string) mail {
	b := header(n, "ana@"+here, "carla@"+there, subject)
	b.WriteString("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=cut\n\nThis is a message in MIME format.\n--cut\nContent-Type: text/plain\n\n")
	prose(r, b, 3)
	fmt.Fprintf(b, "\n--cut\nContent-Type: %s\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"%s\"\n\n", kind, name)
	file(r, b, size)
	b.WriteString("--cut--\n\n")
	return one("ana@"+here, "carla@"+there, b)
}

func attachment(r *rand.Rand, n int) mail {
	return withFile(r, n, 40_000+r.IntN(160_000), "the drawing", "application/pdf", "well-3.pdf")
}

func film(r *rand.Rand, n int) mail {
	return withFile(r, n, 5_000_000*57/77, "the film", "video/mp4", "ridge.mp4")
}

func longLines(r *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "bo@"+there, "an export")
	b.WriteString("MIME-Version: 1.0\nContent-Type: application/json\n\n")
	for range 3 {
		b.WriteString(`{"series":[`)
		for end := b.Len() + 20_000; b.Len() < end; {
			fmt.Fprintf(b, "%d,", r.IntN(100_000))
		}
		b.WriteString("0]}\n")
	}
	return one("ana@"+here, "bo@"+there, b)
}

func dots(r *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "bo@"+there, ". is where it ends")
	b.WriteString("\n.\n..\n...\n.hidden\n . \nFrom here on it is easy\n>From there, too\n.\n\n.\n")
	prose(r, b, 1+r.IntN(3))
	b.WriteString("QUIT\n.\n")
	return one("ana@"+here, "bo@"+there, b)
}

func emptyBody(_ *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "bo@"+there, "call me (nothing else)")
	b.WriteByte('\n')
	return one("ana@"+here, "bo@"+there, b)
}

func headerOnly(_ *rand.Rand, n int) mail {
	m := one("ana@"+here, "bo@"+there, header(n, "ana@"+here, "bo@"+there, ""))
	m.smtpOnly = true // sendmail adds the empty line
	return m
}

func patch(r *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "o'neil+git@"+there, "[PATCH 1/1] pump: keep \t the tabs  ")
	b.WriteString("X-Empty:\nX-Twice: 1\nX-Twice: 2\nDKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=" + here + ";\n\tb=AAAA\n\t BBBB==\n\n---\n pump.c | 2 +-\n\n")
	for range 5 + r.IntN(10) {
		b.WriteString("-\tif (x)  \n+\tif (x && !y) \t\n \t\t\n")
	}
	b.WriteString("-- \n2.39.5\n\n\n")
	return one("ana@"+here, "o'neil+git@"+there, b)
}

func severalRecipients(r *rand.Rand, n int) mail {
	b := header(n, "ana@"+here, "bo@"+there+",\n\tcarla@"+there, "to all of you")
	b.WriteString("Cc: \"the hut\" <\"the hut\"@" + there + ">\n\n")
	prose(r, b, 4)
	m := one("ana@"+here, "bo@"+there, b)
	m.to = append(m.to, "carla@"+there, `"the hut"@`+there)
	m.extract = true
	return m
}

func relayed(r *rand.Rand, n int) mail {
	var b bytes.Buffer
	for i := range 3 {
		fmt.Fprintf(&b, "Received: from mx%d.%s (mx%d.%s [192.0.2.%d])\n\tby relay.%s (Postfix) with ESMTPS id %08X\n\tfor <bo@%s>; Mon,  2 Mar 2026 0%d:00:00 +0100 (CET)\n",
			i, here, i, here, i+1, here, r.Uint32(), there, 9-i)
	}
	b.Write(header(n, "ana@"+here, "bo@"+there, "came a long way").Bytes())
	b.WriteString("\n> earlier text\n>> older text\n\nyes.\n")
	return one("ana@"+here, "bo@"+there, &b)
}
