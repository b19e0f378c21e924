package e2e

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
)

// corpusMail is one mail of the corpus, CRLF lines.
type corpusMail struct {
	name, text string
}

// corpus is a few hundred mails, all different, that stretch what a mail may be: the files of testdata/mails, the Go
// distribution's own nested MIME, one of 30 MB, two that are signed by DKIM, and what a generator with a fixed seed makes
// of odd headers, MIME trees and lines.
func corpus(t *testing.T) (list []corpusMail) {
	t.Helper()
	files, err := filepath.Glob("testdata/mails/*.eml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d files in testdata/mails, %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if text != "" && !strings.HasSuffix(text, "\r\n") {
			text += "\r\n" // SMTP knows no last line without an end
		}
		list = append(list, corpusMail{filepath.Base(f), text})
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "src/mime/multipart/testdata/nested-mime")); err == nil {
		list = append(list, corpusMail{"nested-mime of Go", crlf(string(b))})
	}
	g := generator{rand.New(rand.NewPCG(1860, 1861))}
	for i := range 180 {
		list = append(list, corpusMail{fmt.Sprintf("generated %d", i), g.mail(i)})
	}
	list = append(list, corpusMail{"30 MB", "Subject: large\r\nContent-Transfer-Encoding: base64\r\n\r\n" + g.base64(30<<20)})
	for _, canon := range []dkim.Canonicalization{dkim.CanonicalizationSimple, dkim.CanonicalizationRelaxed} {
		list = append(list, corpusMail{"signed, " + string(canon), sign(t, canon, g.mail(3))})
	}
	return list
}

// crlf makes canonical lines of any text.
func crlf(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n")
	if !strings.HasSuffix(s, "\r\n") {
		s += "\r\n"
	}
	return s
}

// dkimSeed makes the key of all DKIM signatures of the corpus.
var dkimSeed = bytes.Repeat([]byte{7}, ed25519.SeedSize)

// sign signs a mail that has a From.
func sign(t *testing.T, canon dkim.Canonicalization, text string) string {
	t.Helper()
	var out bytes.Buffer
	err := dkim.Sign(&out, strings.NewReader("From: Ana <ana@camp.example>\r\nSubject:  signed   as it\r\n\tis \r\n"+text), &dkim.SignOptions{
		Domain: "camp.example", Selector: "s", Signer: ed25519.NewKeyFromSeed(dkimSeed), Hash: crypto.SHA256,
		HeaderCanonicalization: canon, BodyCanonicalization: canon, HeaderKeys: []string{"From", "Subject"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// verified reports whether the DKIM signature of a mail is good.
func verified(text string) error {
	pub := ed25519.NewKeyFromSeed(dkimSeed).Public().(ed25519.PublicKey)
	checks, err := dkim.VerifyWithOptions(strings.NewReader(text), &dkim.VerifyOptions{LookupTXT: func(string) ([]string, error) {
		return []string{"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(pub)}, nil
	}})
	if err == nil && len(checks) != 1 {
		err = fmt.Errorf("%d signatures", len(checks))
	}
	if err == nil {
		err = checks[0].Err
	}
	return err
}

// generator makes mails; the same seed makes the same.
type generator struct{ *rand.Rand }

func (g generator) pick(list ...string) string { return list[g.IntN(len(list))] }

// bytes are n octets of a line: no CR, LF or NUL, which SMTP does not carry, and 8-bit only if eight.
func (g generator) bytes(n int, eight bool) string {
	b := make([]byte, n)
	for i := range b {
		c := byte(1 + g.IntN(126))
		if eight && g.IntN(3) == 0 {
			c = byte(128 + g.IntN(128))
		}
		if c == '\r' || c == '\n' {
			c = '.'
		}
		b[i] = c
	}
	return string(b)
}

// base64 is n octets, encoded in lines.
func (g generator) base64(n int) string {
	raw := make([]byte, n*3/4)
	for i := 0; i+8 <= len(raw); i += 8 {
		for k, v := 0, g.Uint64(); k < 8; k++ {
			raw[i+k] = byte(v >> (8 * k))
		}
	}
	text := base64.StdEncoding.EncodeToString(raw)
	var b strings.Builder
	for len(text) > 0 {
		k := min(76, len(text))
		b.WriteString(text[:k] + "\r\n")
		text = text[k:]
	}
	return b.String()
}

// text is some lines of some kind.
func (g generator) text(lines int, eight bool) string {
	var b strings.Builder
	for range lines {
		switch g.IntN(9) {
		case 0:
			b.WriteString(strings.Repeat(".", g.IntN(5)))
		case 1:
			b.WriteString("From " + g.bytes(10, false))
		case 2:
			b.WriteString(g.bytes(g.IntN(40), eight) + g.pick(" ", "\t", "  \t ", ""))
		case 3:
			b.WriteString(g.bytes(g.IntN(3000), eight))
		case 4:
		default:
			b.WriteString(g.pick("Hello,", "the ship arrives tomorrow", "> quoted", "-- ", "--", "QUIT", "DATA", "EHLO x", "=20=", "<html>", "&amp;"))
		}
		b.WriteString("\r\n")
	}
	return b.String()
}

// header is a header, often not a good one.
func (g generator) header(eight bool) string {
	var b strings.Builder
	for range g.IntN(14) {
		name := g.pick("From", "to", "SUBJECT", "Date", "Message-Id", "X-"+strings.Repeat("y", g.IntN(70)), "Received", "Return-Path", "Sender", "Bcc", "DKIM-Signature", "MIME-Version")
		sep := g.pick(": ", ":", " : ", ":\t", ":\r\n ", "", ":  ")
		b.WriteString(name + sep + strings.TrimLeft(g.bytes(g.IntN(120), eight), " \t"))
		for range g.IntN(3) {
			b.WriteString("\r\n" + g.pick(" ", "\t", "        ") + g.bytes(g.IntN(200), eight))
		}
		b.WriteString("\r\n")
	}
	return b.String()
}

// part is a MIME part with whatever is in it.
func (g generator) part(depth int, eight bool) string {
	if depth == 0 || g.IntN(3) == 0 {
		switch g.IntN(3) {
		case 0:
			return "Content-Type: application/octet-stream; name=\"" + g.bytes(8, eight) + "\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" + g.base64(g.IntN(4000))
		case 1:
			return "Content-Type: text/plain; charset=" + g.pick("utf-8", "iso-8859-1", "x-unknown", "\"") + "\r\n\r\n" + g.text(g.IntN(20), eight)
		}
		return "\r\n" + g.text(g.IntN(10), eight)
	}
	boundary := g.pick("b", "=_x", "----=_NextPart_000", strings.Repeat("z", 70)) + fmt.Sprint(depth)
	var b strings.Builder
	b.WriteString("Content-Type: multipart/" + g.pick("mixed", "alternative", "related", "signed", "report", "x") + ";\r\n boundary=\"" + boundary + "\"\r\n\r\n")
	if g.IntN(4) == 0 {
		b.WriteString("preamble\r\n")
	}
	for range 1 + g.IntN(3) {
		b.WriteString("--" + boundary + g.pick("", " ", "\t") + "\r\n" + g.part(depth-1, eight))
	}
	b.WriteString(g.pick("--"+boundary+"--\r\n", "--"+boundary+"--\r\nepilogue\r\n", ""))
	return b.String()
}

// mail is the n-th mail.
func (g generator) mail(n int) string {
	eight := n%2 == 1
	switch n % 6 {
	case 0:
		return g.header(eight) + "\r\n" + g.text(g.IntN(60), eight)
	case 1:
		return g.header(eight) + g.text(g.IntN(9), eight) // no empty line between
	case 2:
		var many strings.Builder
		for i := range 200 + g.IntN(800) {
			fmt.Fprintf(&many, "X-%d: %s\r\n", i, g.bytes(g.IntN(30), eight))
		}
		return many.String() + "\r\n" + g.text(2, eight)
	case 3:
		return "Subject: " + g.pick("=?utf-8?B?w7Fh?=", "plain", "=?broken") + "\r\n\r\n" + g.bytes(g.IntN(200_000), eight) + "\r\n"
	}
	return g.header(eight) + g.part(1+g.IntN(4), eight)
}
