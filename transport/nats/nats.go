package nats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"mochila/transport"
)

// Folder is a stream. Each operation calls up on its own; Open makes a connection for several.
type Folder struct {
	transport.Calls
	hosts, stream     string
	servers           []string
	replicas          int
	secret, creds, ca string
	tls               bool
}

// String is the carrier URL without options.
func (f *Folder) String() string { return "nats:" + f.hosts + "/" + f.stream }

const (
	chunk    = 256 << 10        // bytes of a packet in one message
	slowest  = time.Minute      // for one message of content, on a slow line
	patience = 10 * time.Second // for any other request; servers choose a new leader within a few
)

// headers of a head
const (
	sizeHeader   = "Mochila-Size"
	chunksHeader = "Mochila-Chunks"
)

// connect calls the servers.
func (f *Folder) connect() (*nats.Conn, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	c, err := nats.Connect(strings.Join(f.servers, ","), o...)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f, f.explain(err))
	}
	return c, nil
}

// open calls up.
func (f *Folder) open(ctx context.Context) (transport.Folder, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	c, err := f.connect()
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(c)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	s := &session{f: f, js: js}
	if s.stream, err = f.find(ctx, js); err != nil {
		c.Close()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, nil, fmt.Errorf("open %s: %w", f, f.explain(err))
	}
	return s, c.Close, nil
}

// find opens the stream, or makes it.
func (f *Folder) find(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := js.Stream(ctx, f.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: f.stream, Subjects: []string{f.stream + ".>"}, Description: "packets of mochila", Replicas: f.replicas,
			MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage,
		})
		if err != nil {
			return nil, transport.WithHint(fmt.Errorf("there is no stream %q, and it cannot be made: %w", f.stream, err),
				"nats stream add %s --subjects '%s.>' --max-msgs-per-subject 1 --discard new --storage file --replicas 3", f.stream, f.stream)
		}
	}
	if err != nil {
		return nil, err
	}
	if c := s.CachedInfo().Config; c.Discard != jetstream.DiscardNew && (c.MaxBytes > 0 || c.MaxMsgs > 0) || c.MaxAge > 0 {
		return nil, transport.WithHint(fmt.Errorf("the stream %q drops messages by itself", f.stream), "nats stream edit %s --discard new --max-age 0", f.stream)
	}
	return s, nil
}

// explain says what an error means, and what would help.
func (f *Folder) explain(err error) error {
	var api *jetstream.APIError
	code := 0
	if errors.As(err, &api) {
		code = int(api.ErrorCode)
	}
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrPermissionViolation):
		return transport.WithHint(err, "secret=/FILE holds USER:PASSWORD or a token, creds=/FILE a NATS credentials file; both with mode 600")
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return transport.WithHint(err, "start the server with JetStream: nats-server -js -sd /var/lib/nats")
	case code == 10077 || code == 10047 || code == 10023 || code == 10028:
		return fmt.Errorf("%w: %w", transport.ErrFull, err)
	case errors.Is(err, nats.ErrNoResponders):
		return transport.WithHint(fmt.Errorf("%w: %w", transport.ErrAbsent, err), "does the server run with JetStream? nats-server -js -sd /var/lib/nats")
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrConnectionClosed),
		errors.Is(err, nats.ErrDisconnected), errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", transport.ErrAbsent, err)
	}
	return err
}

// Watch implements transport.Watcher: a head that is published is a hint. While no server answers there are none.
func (f *Folder) Watch(ctx context.Context, dir string) <-chan struct{} {
	hints := make(chan struct{}, 1)
	go func() {
		defer close(hints)
		for ctx.Err() == nil {
			f.listen(ctx, dir, hints)
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
			}
		}
	}()
	return hints
}

// listen passes hints on until the connection is given up.
func (f *Folder) listen(ctx context.Context, dir string, hints chan<- struct{}) {
	o, err := f.options()
	if err != nil {
		return
	}
	over := make(chan struct{})
	o = append(o, nats.ClosedHandler(func(*nats.Conn) { close(over) }))
	c, err := nats.Connect(strings.Join(f.servers, ","), o...)
	if err != nil {
		return
	}
	defer c.Close()
	_, err = c.Subscribe(f.subject(dir, "*"), func(*nats.Msg) {
		select {
		case hints <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return
	}
	select {
	case <-ctx.Done():
		c.Close()
		<-over
	case <-over:
	}
}

// subject is the subject of a file's head; name may be "*" for all files of a directory.
func (f *Folder) subject(dir, name string) string {
	s := f.stream
	for part := range strings.SplitSeq(dir, "/") {
		s += "." + token(part)
	}
	if name == "*" {
		return s + ".*"
	}
	return s + "." + token(name)
}

// token makes a token of a subject from a name: what is not plain becomes =XX.
func token(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// untoken undoes token; ok is false for what it never makes.
func untoken(s string) (name string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 > len(s) {
			return "", false
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), token(b.String()) == s
}

// session is the folder while a connection stands. It is safe for concurrent use.
type session struct {
	f      *Folder
	js     jetstream.JetStream
	stream jetstream.Stream
}

// trouble prefers the reason of a cancelled operation.
func (s *session) trouble(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.f.explain(err)
}

// publish stores one message in the servers.
func (s *session) publish(ctx context.Context, m *nats.Msg, o ...jetstream.PublishOpt) error {
	limit := patience
	if len(m.Data) > 0 {
		limit = slowest
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := s.js.PublishMsg(ctx, m, o...)
	return err
}

// Put implements transport.Folder: first the content, then the head, with which the file appears.
func (s *session) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	subject := s.f.subject(dir, name)
	_, err := transport.ParseID(name)
	isPacket := err == nil
	if isPacket {
		if n, _, err := s.head(ctx, subject); err == nil && n == size {
			return nil
		}
	}
	src := transport.Exactly(r, size)
	buf := make([]byte, min(chunk, size))
	n := 0
	for left := size; left > 0; n++ {
		b := buf[:min(int64(len(buf)), left)]
		if _, err = io.ReadFull(src, b); err == nil {
			err = s.publish(ctx, &nats.Msg{Subject: fmt.Sprintf("%s.%d", subject, n+1), Data: b})
		}
		if err != nil {
			s.purge(context.WithoutCancel(ctx), subject+".*")
			if cause := src.Err(); cause != nil {
				return cause
			}
			return s.trouble(ctx, fmt.Errorf("write %s: %w", name, err))
		}
		left -= int64(len(b))
	}
	h := &nats.Msg{Subject: subject, Header: nats.Header{}}
	h.Header.Set(sizeHeader, strconv.FormatInt(size, 10))
	h.Header.Set(chunksHeader, strconv.Itoa(n))
	if err := s.publish(ctx, h); err != nil {
		return s.trouble(ctx, fmt.Errorf("write %s: %w", name, err))
	}
	return nil
}

// head reads what a file's head says.
func (s *session) head(ctx context.Context, subject string) (size int64, chunks int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := s.stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, 0, fs.ErrNotExist
	}
	if err != nil {
		return 0, 0, err
	}
	if size, err = parseSize(m.Header); err != nil {
		return 0, 0, err
	}
	chunks, err = strconv.Atoi(m.Header.Get(chunksHeader))
	if err != nil || chunks < 0 || int64(chunks) > size {
		return 0, 0, fmt.Errorf("%s: what is this head: %w", subject, transport.ErrIncomplete)
	}
	return size, chunks, nil
}

func parseSize(h nats.Header) (int64, error) {
	size, err := strconv.ParseInt(h.Get(sizeHeader), 10, 64)
	if err != nil || size < 0 {
		return 0, fmt.Errorf("a message without size: %w", transport.ErrIncomplete)
	}
	return size, nil
}

// List implements transport.Folder: the heads of a directory, without content.
func (s *session) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	if err := transport.CheckPath(dir, ""); err != nil {
		return nil, err
	}
	all, err := s.list(ctx, dir)
	if err != nil {
		return nil, s.trouble(ctx, fmt.Errorf("list %s: %w", dir, err))
	}
	return all, nil
}

func (s *session) list(ctx context.Context, dir string) (all []transport.Entry, err error) {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := s.stream.CreateConsumer(short, jetstream.ConsumerConfig{FilterSubject: s.f.subject(dir, "*"), HeadersOnly: true,
		AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: time.Minute, MemoryStorage: true, Replicas: 1})
	if err != nil {
		return nil, err
	}
	name := c.CachedInfo().Name
	defer func() {
		over, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		s.stream.DeleteConsumer(over, name)
	}()
	for left := c.CachedInfo().NumPending; left > 0 && len(all) < transport.MaxListed; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		batch, err := c.Fetch(int(min(left, 500)), jetstream.FetchMaxWait(patience))
		if err != nil {
			return nil, err
		}
		came := uint64(0)
		for m := range batch.Messages() {
			came++
			file, ok := untoken(m.Subject()[strings.LastIndexByte(m.Subject(), '.')+1:])
			size, err := parseSize(m.Headers())
			if ok && err == nil && !transport.Hidden(file) {
				all = append(all, transport.Entry{Name: file, Size: size})
			}
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
		if came == 0 {
			break // the rest was deleted meanwhile
		}
		left -= min(left, came)
	}
	return all, nil
}

// Dirs implements transport.Folder.
func (s *session) Dirs(ctx context.Context, dir string) ([]string, error) {
	if err := transport.CheckPath(dir, ""); err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := strings.TrimSuffix(s.f.subject(dir, "*"), "*")
	info, err := s.stream.Info(short, jetstream.WithSubjectFilter(at+"*.*"))
	if err != nil {
		return nil, s.trouble(ctx, fmt.Errorf("list %s: %w", dir, err))
	}
	deeper, err := s.stream.Info(short, jetstream.WithSubjectFilter(at+"*.*.*"))
	if err != nil {
		return nil, s.trouble(ctx, fmt.Errorf("list %s: %w", dir, err))
	}
	dirs := map[string]bool{}
	for _, subjects := range []map[string]uint64{info.State.Subjects, deeper.State.Subjects} {
		for subject := range subjects {
			parts := strings.Split(strings.TrimPrefix(subject, at), ".")
			if last := parts[len(parts)-1]; len(parts) == 2 && isNumber(last) {
				continue // content of a file that lies right here
			}
			if name, ok := untoken(parts[0]); ok && !transport.Hidden(name) {
				dirs[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(dirs)), nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// Get implements transport.Folder.
func (s *session) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	if err := transport.CheckFile(dir, name); err != nil {
		return nil, err
	}
	subject := s.f.subject(dir, name)
	_, chunks, err := s.head(ctx, subject)
	if err != nil {
		return nil, s.trouble(ctx, fmt.Errorf("open %s: %w", name, err))
	}
	return &reader{s: s, ctx: ctx, subject: subject, chunks: chunks}, nil
}

// reader reads the content, one message after the other.
type reader struct {
	s       *session
	ctx     context.Context
	subject string
	chunks  int
	done    int
	now     bytes.Reader
}

func (r *reader) Read(b []byte) (int, error) {
	for r.now.Len() == 0 {
		if r.done == r.chunks {
			return 0, io.EOF
		}
		ctx, cancel := context.WithTimeout(r.ctx, patience)
		m, err := r.s.stream.GetLastMsgForSubject(ctx, fmt.Sprintf("%s.%d", r.subject, r.done+1))
		cancel()
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return 0, io.EOF // whoever reads finds that it is short
		}
		if err != nil {
			return 0, r.s.trouble(r.ctx, err)
		}
		r.now.Reset(m.Data)
		r.done++
	}
	return r.now.Read(b)
}

func (r *reader) Close() error { return nil }

func (s *session) purge(ctx context.Context, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
}

// Remove implements transport.Folder: first the head, so that nobody begins to read.
func (s *session) Remove(ctx context.Context, dir, name string) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	subject := s.f.subject(dir, name)
	err := s.purge(ctx, subject)
	if err == nil {
		err = s.purge(ctx, subject+".*")
	}
	return s.trouble(ctx, err)
}

// Flush implements transport.Folder.
func (s *session) Flush(ctx context.Context) error { return ctx.Err() }
