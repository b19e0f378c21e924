package deliver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"mochila/internal/envelope"
)

const (
	maxReplyLine  = 4096 // bytes; RFC 5321 section 4.5.3.1.5 says 512, some servers know no limit
	maxReplyLines = 256
	maxText       = 1000 // bytes of reply text that are kept
)

// errProtocol is wrapped by errors about replies that are none.
var errProtocol = errors.New("protocol error")

// readReply reads one reply of any number of lines. lines are the texts after the code.
func readReply(r *bufio.Reader) (code int, lines []string, err error) {
	for size := 0; ; {
		line, err := readLine(r)
		if err != nil {
			return 0, nil, err
		}
		if size += len(line); size > maxReplyLine*16 || len(lines) == maxReplyLines {
			return 0, nil, fmt.Errorf("%w: endless reply", errProtocol)
		}
		c, more, text, ok := splitReply(line)
		if !ok || code != 0 && c != code {
			return 0, nil, fmt.Errorf("%w: unexpected reply %q", errProtocol, cleanText(line))
		}
		code = c
		lines = append(lines, text)
		if !more {
			return code, lines, nil
		}
	}
}

// readLine reads one line without its end. What is too long is an error, not a cut line.
func readLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("%w: reply line longer than %d bytes", errProtocol, maxReplyLine)
	}
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func splitReply(line string) (code int, more bool, text string, ok bool) {
	if len(line) < 3 {
		return 0, false, "", false
	}
	for i := range 3 {
		if line[i] < '0' || line[i] > '9' {
			return 0, false, "", false
		}
		code = code*10 + int(line[i]-'0')
	}
	if code < 200 || code > 599 {
		return 0, false, "", false
	}
	if len(line) == 3 {
		return code, false, "", true
	}
	if line[3] != ' ' && line[3] != '-' {
		return 0, false, "", false
	}
	return code, line[3] == '-', line[4:], true
}

// status makes a Status of a reply: the enhanced code of the first line that has one of the reply's class, the
// texts in one line, controls replaced.
func status(code int, lines []string) envelope.Status {
	s := envelope.Status{Code: code}
	var b strings.Builder
	for _, l := range lines {
		if e, rest, ok := cutEnhanced(l); ok && int(e[0]-'0') == code/100 {
			if s.Enhanced == "" {
				s.Enhanced = e
			}
			l = rest
		}
		if l = strings.TrimSpace(l); l == "" || b.Len() > maxText {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(l)
	}
	s.Text = cleanText(b.String())
	return s
}

// cutEnhanced takes a code like "5.1.1" (RFC 3463) off the front of a text.
func cutEnhanced(s string) (code, rest string, ok bool) {
	code, rest, _ = strings.Cut(s, " ")
	part := strings.Split(code, ".")
	if len(part) != 3 || len(part[0]) != 1 || !strings.Contains("245", part[0]) {
		return "", s, false
	}
	for _, p := range part[1:] {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return "", s, false
		}
	}
	return code, rest, true
}

// cleanText makes text of a stranger fit for one line of a log or DSN: valid UTF-8, no controls, not long.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029':
			return ' '
		case r == utf8.RuneError || unicode.Is(unicode.C, r):
			return '?'
		}
		return r
	}, s)
	if len(s) > maxText {
		s = s[:maxText]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return strings.TrimSpace(s)
}
