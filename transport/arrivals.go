package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Source is a Submitter at whose place the neighbour's packets appear, too: a folder that NNCP unpacks into, a
// Filespooler queue.
type Source interface {
	// Arrivals calls each with every packet that is there, small before big, until each returns false. ErrAbsent: the
	// place is not there.
	Arrivals(ctx context.Context, each func(Arrival) bool) error
}

// Arrival is one packet that lies at a Source, perhaps not all of it yet.
type Arrival struct {
	Name string // for messages
	Size int64
	// Open returns its bytes. Reading them fails with ErrIncomplete where they are not what they should be.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Done removes it: it is durable here, or will never be taken.
	Done func() error
}

// arrivals brings what lies at a Source to a Station. Each packet waits for nothing but itself: one that is not
// complete is looked at again at the next contact. Trouble with one, or of this node's own, is met maxFailed times before
// reading stops, since a receipt that fits may lie behind a mail that does not. The first error is returned.
func arrivals(ctx context.Context, src Source, st Station, stats *Stats, log *slog.Logger) error {
	var trouble error
	failures := 0
	err := src.Arrivals(ctx, func(a Arrival) bool {
		err := arrival(ctx, a, st, stats)
		switch {
		case err == nil:
		case errors.Is(err, ErrIncomplete):
			stats.Incomplete++
		default:
			trouble = firstErr(trouble, fmt.Errorf("take %s: %w", a.Name, err))
			log.Warn("cannot take what came", "name", a.Name, "err", err)
			failures++
		}
		return ctx.Err() == nil && failures < maxFailed && !errors.Is(err, ErrAbsent)
	})
	return firstErr(trouble, err)
}

func arrival(ctx context.Context, a Arrival, st Station, stats *Stats) error {
	known, err := knownHead(ctx, a, st)
	if err != nil {
		return err
	}
	if !known {
		r, err := a.Open(ctx)
		if err != nil {
			return err
		}
		err = st.Receive(ctx, a.Size, r)
		r.Close()
		switch {
		case errors.Is(err, ErrRefused):
			stats.Refused++
		case err != nil:
			return err
		default:
			stats.PacketsIn++
			stats.BytesIn += a.Size
		}
	}
	return a.Done()
}

// knownHead reports whether the station knows the packet by its first bytes.
func knownHead(ctx context.Context, a Arrival, st Station) (bool, error) {
	if a.Size < HeadSize {
		return false, nil
	}
	r, err := a.Open(ctx)
	if err != nil {
		return false, err
	}
	defer r.Close()
	head := make([]byte, HeadSize)
	if _, err := io.ReadFull(r, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrIncomplete
		}
		return false, err
	}
	return st.Known(head, a.Size), nil
}

// inbox is a folder into which another program puts packets, each in a file whose name begins with the packet's; the
// program may have added to the name. A file whose bytes are not what its name says is not complete yet.
type inbox struct {
	dir string
	at  map[string]inboxTry // files that were not complete, so that they are not hashed at each look
}

type inboxTry struct {
	size  int64
	mod   time.Time
	again time.Time
	wait  time.Duration
}

// arrivals implements Source for the Submitters that have an inbox.
func (b *inbox) arrivals(ctx context.Context, each func(Arrival) bool) error {
	if b.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the program makes it with the first file
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	seen := map[string]inboxTry{}
	defer func() { b.at = seen }()
	more := true
	for _, fi := range packetFiles(entries) {
		name := fi.Name()
		id, err := ParseID(name[:52])
		if err != nil {
			continue
		}
		try, tried := b.at[name]
		if !more {
			if tried {
				seen[name] = try
			}
			continue
		}
		if tried && try.size == fi.Size() && try.mod.Equal(fi.ModTime()) && time.Now().Before(try.again) {
			seen[name] = try
			continue
		}
		path := filepath.Join(b.dir, name)
		taken := false
		more = each(Arrival{Name: path, Size: fi.Size(),
			Open: func(ctx context.Context) (io.ReadCloser, error) { return openNamed(ctx, path, id, fi.Size()) },
			Done: func() error { taken = true; return removeDurably(b.dir, path) }})
		if !taken {
			wait := min(2*try.wait, time.Hour)
			if !tried || try.size != fi.Size() {
				wait = 10 * time.Second
			}
			seen[name] = inboxTry{fi.Size(), fi.ModTime(), time.Now().Add(wait), wait}
		}
	}
	return nil
}

// packetFiles returns the files that may hold packets, small before big.
func packetFiles(entries []os.DirEntry) (files []fs.FileInfo) {
	for _, e := range entries {
		if len(e.Name()) < 52 || !e.Type().IsRegular() {
			continue
		}
		if fi, err := e.Info(); err == nil {
			files = append(files, fi)
		}
	}
	slices.SortStableFunc(files, func(a, b fs.FileInfo) int { return cmp.Compare(a.Size(), b.Size()) })
	return files
}

// openNamed opens a file that should hold the packet id.
func openNamed(ctx context.Context, path string, id ID, size int64) (io.ReadCloser, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{newVerifier(ctx, f, id, size, ErrIncomplete), f}, nil
}

// openRegular opens a file, links, fifos and devices refused.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return f, nil
}

// removeDurably deletes a file so that it stays deleted.
func removeDurably(dir, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
