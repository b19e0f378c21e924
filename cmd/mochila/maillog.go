package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	logDelay = 200 * time.Millisecond // a line is written this much later at most
	logBatch = 32 << 10               // or as soon as so much waits
)

// logOptions say how a mailLog writes.
type logOptions struct {
	level   slog.Level
	journal bool   // <N> priorities and no time, for systemd
	syslog  bool   // priorities of facility mail, and no host: the form of local syslog sockets
	short   bool   // neither time nor host nor process: for a person who asked to see it
	program string // default mochila
	host    string // default: the machine's
	pid     int    // default: the process's
}

// mailLog is a slog.Handler in the grammar of Postfix's log, which log tools know:
//
//	Nov 23 10:00:00 host mochila/smtp[123]: QUEUEID: to=<…>, …
//
// The attribute "service" chooses the word after the slash (default "bridge"); others follow the message as key=value.
// Messages of warnings and errors that do not begin with a queue id get "warning: " or "error: " in front. Lines are
// gathered for a moment, but written at once from warnings on. It may be used from many goroutines.
type mailLog struct {
	*logSink
	service string
	group   string // prefix of keys
	attrs   string // formatted
}

// logSink is what all handlers made from one mailLog share.
type logSink struct {
	w    io.Writer
	opt  logOptions
	tail string // "[pid]: "

	mu     sync.Mutex
	buf    []byte
	timer  *time.Timer
	armed  bool
	closed bool
	second int64  // that stamp is of
	stamp  []byte // "Nov 23 10:00:00 host "
}

// newMailLog makes a log on w. Close it to write what waits.
func newMailLog(w io.Writer, o logOptions) *mailLog {
	if o.host == "" {
		name, err := os.Hostname()
		o.host, _, _ = strings.Cut(name, ".")
		if err != nil || o.host == "" {
			o.host = "localhost"
		}
	}
	if o.program == "" {
		o.program = "mochila"
	}
	if o.pid == 0 {
		o.pid = os.Getpid()
	}
	s := &logSink{w: w, opt: o, tail: "[" + strconv.Itoa(o.pid) + "]: ", second: -1}
	s.timer = time.AfterFunc(time.Hour, s.tick)
	s.timer.Stop()
	return &mailLog{logSink: s}
}

// toJournal reports whether standard error is systemd's journal, as $JOURNAL_STREAM says (systemd.exec(5)): the
// variable is inherited even where standard error has been redirected.
func toJournal(env *Env) bool {
	v, _ := env.Getenv("JOURNAL_STREAM")
	if v == "" {
		return false
	}
	fi, err := env.Stderr.Stat()
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && v == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// Enabled is part of slog.Handler.
func (l *mailLog) Enabled(_ context.Context, level slog.Level) bool { return level >= l.opt.level }

// WithGroup is part of slog.Handler.
func (l *mailLog) WithGroup(name string) slog.Handler {
	if name == "" {
		return l
	}
	n := *l
	n.group += name + "."
	return &n
}

// WithAttrs is part of slog.Handler.
func (l *mailLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *l
	b := []byte(n.attrs)
	for _, a := range attrs {
		b, n.service = n.attr(b, n.group, a, n.service)
	}
	n.attrs = string(b)
	return &n
}

// Handle is part of slog.Handler. An error is that of writing some line.
func (l *mailLog) Handle(_ context.Context, r slog.Record) error {
	// Attributes first: one of them is the service.
	var space [256]byte
	attrs, service := append(space[:0], l.attrs...), l.service
	r.Attrs(func(a slog.Attr) bool {
		attrs, service = l.attr(attrs, l.group, a, service)
		return true
	})
	s := l.logSink
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buf
	switch {
	case s.opt.short:
	case s.opt.journal:
		b = append(b, '<', priority(r.Level), '>')
	case s.opt.syslog:
		b = append(b, '<')
		b = strconv.AppendInt(b, facilityMail+int64(priority(r.Level)-'0'), 10)
		b = append(append(b, '>'), s.stampOf(r.Time)...)
	default:
		b = append(b, s.stampOf(r.Time)...)
	}
	b = append(append(b, l.opt.program...), '/')
	if service == "" {
		service = "bridge"
	}
	b = append(b, service...)
	if s.opt.short {
		b = append(b, ": "...)
	} else {
		b = append(b, s.tail...)
	}
	if r.Level >= slog.LevelWarn && !beginsWithID(r.Message) {
		word := "warning: "
		if r.Level >= slog.LevelError {
			word = "error: "
		}
		b = append(b, word...)
	}
	b = escape(b, r.Message)
	b = append(b, attrs...)
	s.buf = append(b, '\n')
	if r.Level >= slog.LevelWarn || len(s.buf) >= logBatch || s.closed {
		return s.write()
	}
	if !s.armed {
		s.armed = true
		s.timer.Reset(logDelay)
	}
	return nil
}

// Close writes what waits. Later lines are written at once.
func (s *logSink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.write()
}

func (s *logSink) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.write() // there is nobody to tell
}

// write empties the buffer; s.mu is held. What cannot be written is dropped: mail goes on.
func (s *logSink) write() error {
	if s.armed {
		s.armed = false
		s.timer.Stop()
	}
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	if cap(s.buf) > 4*logBatch {
		s.buf = nil
	}
	return err
}

// stampOf formats a time once a second; s.mu is held.
func (s *logSink) stampOf(t time.Time) []byte {
	if t.IsZero() {
		t = time.Now()
	}
	if sec := t.Unix(); sec != s.second {
		s.second = sec
		s.stamp = t.Local().AppendFormat(s.stamp[:0], "Jan _2 15:04:05")
		s.stamp = append(s.stamp, ' ')
		if !s.opt.syslog {
			s.stamp = append(s.stamp, s.opt.host...)
			s.stamp = append(s.stamp, ' ')
		}
	}
	return s.stamp
}

// facilityMail is LOG_MAIL of syslog(3).
const facilityMail = 2 << 3

// priority is the digit of syslog(3) for a level.
func priority(l slog.Level) byte {
	switch {
	case l >= slog.LevelError:
		return '3'
	case l >= slog.LevelWarn:
		return '4'
	case l >= slog.LevelInfo:
		return '6'
	}
	return '7'
}

// beginsWithID reports whether a message is one about an envelope: "QUEUEID: …" or "NOQUEUE: …".
func beginsWithID(msg string) bool {
	for i := 0; i < len(msg); i++ {
		c := msg[i]
		if c == ':' {
			return i >= 6
		}
		if !('A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return false
		}
	}
	return false
}

// attr appends " key=value", or takes the service.
func (l *mailLog) attr(b []byte, prefix string, a slog.Attr, service string) ([]byte, string) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, x := range v.Group() {
			b, service = l.attr(b, prefix, x, service)
		}
		return b, service
	}
	if a.Key == "" {
		return b, service
	}
	if a.Key == "service" && prefix == "" {
		return b, v.String()
	}
	b = append(b, ' ')
	b = append(b, prefix...)
	b = append(b, a.Key...)
	b = append(b, '=')
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10), service
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10), service
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool()), service
	case slog.KindTime:
		return v.Time().AppendFormat(b, time.RFC3339), service
	}
	return quote(b, v.String()), service
}

// quote appends a value; in quotes when it is empty or has a space, a quote or an equals sign.
func quote(b []byte, s string) []byte {
	if s != "" && !strings.ContainsAny(s, " \"=") {
		return escape(b, s)
	}
	b = append(b, '"')
	from := len(b)
	b = escape(b, s)
	if bytes.IndexByte(b[from:], '"') >= 0 {
		b = append(b[:from], bytes.ReplaceAll(b[from:], []byte{'"'}, []byte{'\\', '"'})...)
	}
	return append(b, '"')
}

// escape appends s with controls, invisible characters and bytes that are no UTF-8 as safe writes them.
func escape(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			return append(b, safe(s)...)
		}
	}
	return append(b, s...)
}
