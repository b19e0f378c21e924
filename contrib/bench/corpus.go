package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// corpus is English prose for the bodies of mails, so that compression has what it has in life: the comments of the Go
// distribution, which is on every machine that builds this.
type corpus struct {
	lines []string
}

const corpusLines = 60_000

func readCorpus() (*corpus, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	c := &corpus{}
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(out)), "src"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		if len(c.lines) >= corpusLines {
			return fs.SkipAll
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			text, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "// ")
			// prose: some words, and not the licence at the top of each file
			if ok && len(text) > 40 && len(text) < 80 && isASCII(text) && !strings.HasPrefix(text, "Copyright") && !strings.Contains(text, "license") {
				c.lines = append(c.lines, text)
			}
		}
		return nil
	})
	if err == nil && len(c.lines) < 1000 {
		err = fmt.Errorf("found only %d lines of prose in GOROOT", len(c.lines))
	}
	return c, err
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// prose appends about size bytes of neighbouring lines.
func (c *corpus) prose(b *bytes.Buffer, r *rand.Rand, size int) {
	i := r.IntN(len(c.lines))
	for end := b.Len() + size; b.Len() < end; i++ {
		line := c.lines[i%len(c.lines)]
		if line[0] == '.' {
			b.WriteByte('.')
		}
		b.WriteString(line)
		b.WriteString("\r\n")
	}
}

// bodies makes up to n messages with a body of size bytes, ready for DATA; fewer when they would take much memory.
func (c *corpus) bodies(n, size int) [][]byte {
	r := rand.New(rand.NewPCG(uint64(size), 1))
	out := make([][]byte, max(1, min(n, 32<<20/size)))
	for i := range out {
		var b bytes.Buffer
		fmt.Fprintf(&b, "From: from@camp.example\r\nTo: to@hub.example\r\nSubject: message %d\r\nDate: Mon, 5 Jan 2026 10:00:00 +0000\r\nMessage-ID: <%x@camp.example>\r\n\r\n", i, r.Uint64())
		c.prose(&b, r, size)
		b.WriteString(".\r\n")
		out[i] = b.Bytes()
	}
	return out
}

var (
	first = strings.Fields("Ana Bo Carla Dmitri Elif Femi Grace Hugo Inés Jonas Kaya Liam Maya Noor Olga Pavel Quim Rosa Sven Tariq Uma Vera Wim Xenia Yusuf Zoe")
	last  = strings.Fields("Abara Berg Castillo Dupont Eriksen Fischer Garcia Haddad Ivanova Jensen Kim Lopez Mwangi Novak Okafor Petrov Quispe Rossi Silva Tanaka")
)

// mailbox makes n mails as people write them: a header with the usual dozen fields, some hundred to some thousand bytes
// of text, answers that quote, signatures. They are ready for DATA.
func (c *corpus) mailbox(n int) [][]byte {
	r := rand.New(rand.NewPCG(uint64(n), 2))
	pick := func(words []string) string { return words[r.IntN(len(words))] }
	var out [][]byte
	var previous []byte
	for i := range n {
		from, to := pick(first)+" "+pick(last), pick(first)+" "+pick(last)
		addr := func(name, domain string) string {
			return strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(name, "é", "e"), " ", ".")) + "@" + domain
		}
		words := strings.Fields(pick(c.lines))
		subject := strings.Join(words[:min(4, len(words))], " ")
		var b bytes.Buffer
		fmt.Fprintf(&b, "Received: from pc%d.camp.example (pc%d.camp.example [192.0.2.%d])\r\n\tby mail.camp.example (Postfix) with ESMTPS id 4%09X\r\n\tfor <%s>; Mon, %2d Jan 2026 %02d:%02d:%02d +0000 (UTC)\r\n",
			i%30, i%30, 1+i%30, r.Uint32(), addr(to, "hub.example"), 1+i/100%28, i/60%24, i%60, r.IntN(60))
		fmt.Fprintf(&b, "Date: Mon, %2d Jan 2026 %02d:%02d:%02d +0000\r\nFrom: =?utf-8?Q?%s?= <%s>\r\nTo: %s\r\n", 1+i/100%28, i/60%24, i%60, r.IntN(60),
			strings.ReplaceAll(strings.ReplaceAll(from, "é", "=C3=A9"), " ", "_"), addr(from, "camp.example"), addr(to, "hub.example"))
		fmt.Fprintf(&b, "Subject: %s\r\nMessage-ID: <%016x%08x@camp.example>\r\nUser-Agent: Mutt/2.2.12 (2023-09-09)\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: inline\r\n", subject, r.Uint64(), r.Uint32())
		answer := previous != nil && r.IntN(4) == 0
		if answer {
			fmt.Fprintf(&b, "In-Reply-To: <%016x%08x@hub.example>\r\n", r.Uint64(), r.Uint32())
		}
		b.WriteString("\r\n")
		if answer {
			for line := range bytes.Lines(previous) {
				b.WriteString("> ")
				b.Write(line)
			}
		}
		text := b.Len()
		c.prose(&b, r, 200+r.IntN(1+r.IntN(3000)))
		previous = bytes.Clone(b.Bytes()[text:])
		if r.IntN(3) == 0 {
			fmt.Fprintf(&b, "\r\n-- \r\n%s, camp.example, +47 %08d\r\n", strings.ReplaceAll(from, "é", "e"), r.IntN(1e8))
		}
		b.WriteString(".\r\n")
		out = append(out, b.Bytes())
	}
	return out
}

// raw is the size of messages without the dot that ends DATA.
func raw(bodies [][]byte) (n int) {
	for _, b := range bodies {
		n += len(b) - len(".\r\n")
	}
	return n
}
