package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// errPipe is what a closed pipe gives: `mochila queue list | head` is no failure.
var errPipe = syscall.EPIPE

// screen is the standard output, buffered.
type screen struct {
	w   *os.File
	buf *bufio.Writer
	err error
}

func (s *screen) Write(p []byte) (int, error) {
	if s.buf == nil {
		s.buf = bufio.NewWriterSize(s.w, 32<<10)
	}
	n, err := s.buf.Write(p)
	if err != nil && s.err == nil {
		s.err = err
	}
	return n, err
}

func (s *screen) flush() error {
	if s.buf == nil {
		return nil
	}
	return errors.Join(s.err, s.buf.Flush())
}

// printf prints one or more lines; text that came from elsewhere goes through safe.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// note prints to standard error what is said beside the result.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.env.Stderr, format+"\n", args...) }

// asJSON prints v as indented JSON, or as one line.
func (a *app) asJSON(v any, line bool) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if !line {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err := io.WriteString(a.out, quietJSON(b.String()))
	return err
}

// quietJSON escapes what JSON lets pass but a terminal may obey: DEL and the C1 controls, which occur in strings only.
func quietJSON(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r >= 0x7f && r < 0xa0 }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r >= 0x7f && r < 0xa0 {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// safe makes text from elsewhere safe to show on one line of a terminal: controls, bytes that are no UTF-8 and
// invisible characters become \ooo or \uXXXX.
func safe(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < ' ', r == 0x7f:
			fmt.Fprintf(&b, `\%03o`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += n
	}
	return b.String()
}

// isTerminal says whether a person looks at f, and how wide it is.
func isTerminal(f *os.File) (width int, ok bool) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if size.Col == 0 {
		return 80, true
	}
	return int(size.Col), true
}

// bytesText is a size as people read it: powers of 1000, three digits.
func bytesText(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB"} {
		v /= 1000
		if v < 9.95 {
			return fmt.Sprintf("%.1f %s", v, unit)
		}
		if v < 999.5 {
			return fmt.Sprintf("%.0f %s", v, unit)
		}
	}
	return fmt.Sprintf("%.0f EB", v/1000)
}

// count is "1 packet", "2 packets".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// clock is a time as people read it, in local time; "never" when it is zero.
func clock(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format("2006-01-02 15:04")
}

// age is how long ago t was, in one unit: "5m", "3d".
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(a.now.Sub(t))
}

func span(d time.Duration) string {
	switch d = max(d, -d); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// ago is "3h ago", "in 5m", or "never".
func (a *app) ago(t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case t.After(a.now):
		return "in " + span(t.Sub(a.now))
	}
	return span(a.now.Sub(t)) + " ago"
}

// table prints rows in columns; the first row is the heading. Columns whose heading starts with > are set right.
func (a *app) table(rows [][]string) {
	if len(rows) == 0 {
		return
	}
	width := make([]int, len(rows[0]))
	right := make([]bool, len(width))
	for i, h := range rows[0] {
		rows[0][i], right[i] = strings.CutPrefix(h, ">")
	}
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			b.WriteString(cell + "  ")
		}
		a.printf("%s\n", strings.TrimRight(b.String(), " "))
	}
}
