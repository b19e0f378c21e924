package deliver

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unicode/utf8"

	"mochila/bridge/route"
	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// maildir delivers into Maildirs (https://cr.yp.to/proto/maildir.html), one file for each recipient.
//
// A file's name is made of the envelope's origin and id and of the recipient alone, so a delivery that a crash
// interrupted, or whose success was never recorded, is recognised when it comes again: in new by its name, in cur, where
// readers move it and add flags, by a listing of the folder taken once per Maildir and process (skipped for
// Message.Fresh). A reader that deletes the file in between makes a second copy possible.
type maildir struct {
	tmpl template
	o    Options
	fs   durable.FS
	dirs durable.DirSyncer

	mu    sync.Mutex
	seen  map[string]map[string]bool // Maildir → stems of ours that were in it
	total int                        // stems in seen
}

// maxSeen bounds the stems that are remembered over all Maildirs.
const maxSeen = 200_000

func newMaildir(path string, o Options) (Transport, error) {
	path, err := localPath(path, o)
	if err != nil {
		return nil, err
	}
	tmpl, err := parseTemplate(path)
	if err != nil {
		return nil, err
	}
	d := &maildir{tmpl: tmpl, o: o, fs: o.FS, seen: map[string]map[string]bool{}}
	if d.fs == nil {
		d.fs = durable.OS{}
	}
	d.dirs.FS = d.fs
	return d, nil
}

// Close does nothing: a Maildir needs no connection.
func (d *maildir) Close() error { return nil }

// Deliver writes one file after the other; each is durable before its result says so.
func (d *maildir) Deliver(ctx context.Context, m *Message) []Result {
	s := newSheet(m, "maildir")
	ct, err := load(m, false)
	if err != nil {
		s.trouble(err)
		return s.res
	}
	for _, i := range s.open() {
		if ctx.Err() != nil {
			break
		}
		d.one(ct, s, i)
	}
	s.wait(ours("4.3.2", "not tried: interrupted"))
	return s.res
}

func (d *maildir) one(ct *content, s *sheet, i int) {
	env, rcpt := s.m.Env, s.rcpt(i).Addr
	if env.Mail.Sender != "" && !route.SafePath(env.Mail.Sender) {
		s.fail(i, "5.1.7", fmt.Sprintf("sender address %q is none", env.Mail.Sender))
		return
	}
	if !route.SafePath(rcpt) {
		s.fail(i, "5.1.3", fmt.Sprintf("recipient address %q is none", rcpt))
		return
	}
	local, domain := route.Split(rcpt)
	if domain == "" {
		domain = d.o.Domain
	}
	dir, err := d.tmpl.expand(local, domain)
	if err != nil {
		s.fail(i, "5.1.3", err.Error())
		return
	}
	stem := stemOf(env, rcpt)
	name := stem + "." + hostPart(d.o.Hostname)
	there, err := d.exists(dir, stem, name, !s.m.Fresh)
	if err == nil && !there {
		err = d.write(ct, dir, name, env.Mail.Sender, rcpt)
	}
	switch {
	case err == nil:
		d.remember(dir, stem)
		text := "delivered to maildir"
		if there {
			text = "delivered to maildir (by an earlier attempt)"
		}
		s.put(i, envelope.ActionDelivered, envelope.Status{Enhanced: "2.0.0", Text: text})
	case isCorrupt(err):
		s.put(i, envelope.ActionPending, ours("4.3.0", err.Error()))
		s.res[i].Corrupt = true
	case errors.Is(err, syscall.ENAMETOOLONG):
		s.fail(i, "5.1.3", err.Error())
	case errors.Is(err, syscall.ENOSPC):
		s.put(i, envelope.ActionPending, ours("4.3.1", err.Error()))
	case errors.Is(err, syscall.EDQUOT):
		s.put(i, envelope.ActionPending, ours("4.2.2", err.Error()))
	default:
		s.put(i, envelope.ActionPending, ours("4.3.0", err.Error()))
	}
}

// stemOf names the file of one recipient of one envelope, without the host part.
func stemOf(env *envelope.Envelope, rcpt string) string {
	h := sha256.New()
	h.Write(env.Origin[:])
	h.Write(env.Sum[:])
	io.WriteString(h, rcpt)
	return strconv.FormatInt(env.ID.Time().Unix(), 10) + ".M" + env.ID.String() + "_" + hex.EncodeToString(h.Sum(nil)[:8])
}

// hostPart is a host name without what means something in a Maildir file name.
func hostPart(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, s)
}

// stem is the part of a file name that stemOf made, "" for a file that is not ours.
func stem(name string) string {
	if i := strings.IndexAny(name, ":,;!"); i >= 0 { // flags and sizes that readers add
		name = name[:i]
	}
	secs, rest, ok := strings.Cut(name, ".M")
	if !ok {
		return ""
	}
	id, _, ok := strings.Cut(rest, ".")
	if !ok || len(id) != 26+1+16 || id[26] != '_' {
		return ""
	}
	return secs + ".M" + id
}

// exists reports whether the mail is in the Maildir already.
func (d *maildir) exists(dir, stem, name string, look bool) (bool, error) {
	_, err := d.fs.Lstat(filepath.Join(dir, "new", name))
	if err == nil {
		// Seen, but perhaps never synced: the crash may have come right after the rename.
		return true, d.dirs.Sync(filepath.Join(dir, "new"))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if !look {
		return false, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if set, ok := d.seen[dir]; ok {
		return set[stem], nil
	}
	set, err := d.list(dir)
	if err != nil {
		return false, err
	}
	if d.total += len(set); d.total > maxSeen {
		d.seen, d.total = map[string]map[string]bool{}, len(set)
	}
	d.seen[dir] = set
	return set[stem], nil
}

// list gathers the stems of a Maildir: new first, as readers move files from there to cur.
func (d *maildir) list(dir string) (map[string]bool, error) {
	set := map[string]bool{}
	for _, sub := range []string{"new", "cur"} {
		entries, err := d.fs.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if s := stem(e.Name()); s != "" {
				set[s] = true
			}
		}
	}
	return set, nil
}

// remember adds a delivered stem to the listing, if there is one.
func (d *maildir) remember(dir, stem string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if set := d.seen[dir]; set != nil && !set[stem] {
		set[stem] = true
		d.total++
	}
}

// write makes the file in tmp and moves it to new, durably.
func (d *maildir) write(ct *content, dir, name, sender, rcpt string) error {
	tmp, dst := filepath.Join(dir, "tmp", name), filepath.Join(dir, "new", name)
	f, err := d.fs.Create(tmp, 0o600)
	if errors.Is(err, fs.ErrExist) { // what a crash left of an earlier attempt
		if err = d.fs.Remove(tmp); err == nil {
			f, err = d.fs.Create(tmp, 0o600)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.make(dir); err == nil {
			f, err = d.fs.Create(tmp, 0o600)
		}
	}
	if err != nil {
		return err
	}
	if err := d.fill(f, ct, sender, rcpt); err != nil {
		d.fs.Remove(tmp) // best effort: the next attempt removes it too
		return err
	}
	err = d.fs.Rename(tmp, dst)
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.make(dir); err == nil {
			err = d.fs.Rename(tmp, dst)
		}
	}
	if err != nil {
		d.fs.Remove(tmp)
		return err
	}
	return d.dirs.Sync(filepath.Join(dir, "new"))
}

// make creates the Maildir.
func (d *maildir) make(dir string) error {
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := d.fs.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// fill writes the mail with LF lines and closes f.
func (d *maildir) fill(f durable.File, ct *content, sender, rcpt string) error {
	n := &counted{w: f}
	err := writeLocal(n, ct, "Return-Path: <"+sender+">\r\nDelivered-To: "+rcpt+"\r\n")
	if err != nil {
		f.Close()
		return err
	}
	return durable.Seal(f, n.n)
}

// writeLocal writes header lines and the mail with LF lines. After an error w holds a part of it.
func writeLocal(w io.Writer, ct *content, header string) error {
	r, err := ct.open()
	if err != nil {
		return err
	}
	defer r.Close()
	l := &lfWriter{w: bufio.NewWriterSize(w, 32<<10)}
	io.WriteString(l, header)
	l.Write(ct.m.Header)
	if _, err := io.Copy(l, r); err != nil {
		return err
	}
	return l.end()
}

type counted struct {
	w io.Writer
	n int64
}

// Write writes on, and counts.
func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// template is a path with %u and %d in it: literal texts with 'u' or 'd' between them.
type template struct {
	text []string // one more than vars
	vars []byte
}

func parseTemplate(path string) (template, error) {
	var t template
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			b.WriteByte(path[i])
			continue
		}
		if i++; i == len(path) {
			return t, errors.New("a % at the end (write %u, %d or %%)")
		}
		switch path[i] {
		case '%':
			b.WriteByte('%')
		case 'u', 'd':
			t.text, t.vars = append(t.text, b.String()), append(t.vars, path[i])
			b.Reset()
		default:
			return t, fmt.Errorf("%%%c means nothing (write %%u, %%d or %%%%)", path[i])
		}
	}
	t.text = append(t.text, b.String())
	return t, nil
}

// expand fills in an address. What comes out of it cannot leave the folder that the template names.
func (t template) expand(local, domain string) (string, error) {
	var b strings.Builder
	for i, v := range t.vars {
		b.WriteString(t.text[i])
		value := route.Unquote(local)
		if v == 'd' {
			value = domain
		}
		if value == "" || !utf8.ValidString(value) {
			return "", fmt.Errorf("%q cannot be the name of a folder", value)
		}
		name := escapeName(route.Fold(value))
		if len(name) > 200 {
			return "", fmt.Errorf("%q is too long for the name of a folder", value)
		}
		b.WriteString(name)
	}
	b.WriteString(t.text[len(t.vars)])
	return b.String(), nil
}

// escapeName writes everything but a-z 0-9 . _ + = - as % and two hex digits, and so any dot that stands first or
// next to another.
func escapeName(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		ok := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("_+=-", c) >= 0
		if c == '.' {
			ok = i > 0 && s[i-1] != '.' && !(i+1 < len(s) && s[i+1] == '.')
		}
		if ok {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
