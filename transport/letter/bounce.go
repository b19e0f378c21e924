package letter

import (
	"bufio"
	"errors"
	"io"
	"mime"
	"strings"
)

// idMark begins the Message-ID of a letter: "mochila.NAME.OFFSET.TIME@domain".
const idMark = "mochila."

// maxBounce is how much of a bounce is read: what it returns of the letter itself stands at its end.
const maxBounce = 4 << 20

// Bounce is what another mail server says about a letter of ours.
type Bounce struct {
	Packet [32]byte // of the letter; zero when it does not say which
	Failed bool     // false: it is only late, or was delivered
	Text   string   // one line: why
}

// IsBounce reports whether a mail is about another mail, and not a letter, even when a letter is in it. sender is the
// envelope sender where it is known: the null sender is "<>".
func (m *Message) IsBounce(sender string) bool {
	kind, _, _ := mime.ParseMediaType(m.header.Get("Content-Type"))
	auto, _, _ := strings.Cut(m.header.Get("Auto-Submitted"), ";")
	return sender == "<>" || m.header.Get("Return-Path") == "<>" || kind == "multipart/report" || strings.EqualFold(strings.TrimSpace(auto), "auto-replied")
}

// Bounce reads what a mail for which IsBounce is true says. It understands RFC 3464 and, as far as the returned header
// goes, every other form.
func (m *Message) Bounce() (Bounce, error) {
	b := Bounce{Failed: true}
	br := bufio.NewReaderSize(io.LimitReader(m.body, maxBounce), 4096)
	var status, diagnostic string
	named, folded := false, false
	for {
		raw, err := br.ReadSlice('\n')
		line := strings.TrimRight(string(raw), "\r\n")
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		more := folded && line != "" && (line[0] == ' ' || line[0] == '\t')
		folded = false
		switch {
		case more && len(diagnostic) < 500:
			diagnostic, folded = diagnostic+" "+strings.TrimSpace(line), true
		case strings.EqualFold(key, "Action"):
			b.Failed = strings.EqualFold(value, "failed")
		case strings.EqualFold(key, "Status") && status == "":
			status = value
		case strings.EqualFold(key, "Diagnostic-Code") && diagnostic == "":
			diagnostic, folded = value, true
		}
		if i := strings.Index(line, idMark); i >= 0 && !named {
			if rest := line[i+len(idMark):]; len(rest) > nameSize && rest[nameSize] == '.' {
				if n, err := nameText.Decode(b.Packet[:], []byte(rest[:nameSize])); err == nil && n == len(b.Packet) {
					named = true
				} else {
					b.Packet = [32]byte{}
				}
			}
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue // the rest of an overlong line is looked at as a line of its own
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return b, err
		}
	}
	if _, text, ok := strings.Cut(diagnostic, ";"); ok {
		diagnostic = strings.TrimSpace(text)
	}
	switch {
	case diagnostic != "":
		b.Text = diagnostic
	case status != "":
		b.Text = "status " + status
	default:
		b.Text = m.header.Get("Subject")
	}
	b.Text = strings.Join(strings.FieldsFunc(b.Text, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(b.Text) > 300 {
		b.Text = b.Text[:300]
	}
	b.Text = strings.ToValidUTF8(b.Text, "?")
	return b, nil
}
