package spool

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
	"time"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// QuarantineEntry is something that could not be used, kept for a person to look at.
type QuarantineEntry struct {
	Name   string // "20060102T150405-..." for input, "record-ID" for a record of the index
	Reason string
	From   string // who gave it, "" when unknown
	At     time.Time
	Size   int64 // bytes of the thing itself
}

// A quarantine file is the magic line, a line of JSON, and the bytes as they came.
const quarantineMagic = "mochila quarantine 1\n"

// maxQuarantineHead bounds the JSON line.
const maxQuarantineHead = 64 << 10

type quarantineHead struct {
	Reason string    `json:"reason"`
	From   string    `json:"from,omitempty"`
	At     time.Time `json:"at"`
}

// recordPrefix begins the names of records that were set aside inside the index.
const recordPrefix = "record-"

// maxQuarantined bounds the files of the quarantine: many small ones fill a disk too.
const maxQuarantined = 10_000

// quarantined is how much the quarantine's folder holds.
type quarantined struct {
	files int
	bytes int64
}

// quarantineHas counts the folder once, and then keeps count. quarMu is held.
func (s *Spool) quarantineHas() (*quarantined, error) {
	if s.quarHas != nil {
		return s.quarHas, nil
	}
	entries, err := s.quarantineFiles()
	if err != nil {
		return nil, err
	}
	q := &quarantined{files: len(entries)}
	for _, e := range entries {
		q.bytes += e.Size
	}
	s.quarHas = q
	return q, nil
}

// Quarantine stores what r yields, with why and from whom, and returns its name. It wraps ErrFull when the disk
// reserve, Options.QuarantineMax or 10,000 entries are reached: what is hostile must not fill the disk.
func (s *Spool) Quarantine(reason, from string, r io.Reader) (name string, err error) {
	s.quarMu.Lock()
	defer s.quarMu.Unlock()
	has, err := s.quarantineHas()
	if err != nil {
		return "", fmt.Errorf("quarantine: %w", err)
	}
	left := s.o.QuarantineMax - has.bytes
	if left <= 0 {
		return "", fmt.Errorf("quarantine: %w: it holds more than %d MiB", ErrFull, s.o.QuarantineMax>>20)
	}
	if has.files >= maxQuarantined {
		return "", fmt.Errorf("quarantine: %w: it holds %d entries", ErrFull, has.files)
	}
	now := time.Now().UTC()
	id := newFileName(now)
	name = now.Format("20060102T150405") + "-" + hex.EncodeToString(id[8:])
	head, err := json.Marshal(quarantineHead{clip(reason), clip(from), now.Truncate(time.Millisecond)})
	if err != nil {
		return "", fmt.Errorf("quarantine: %w", err)
	}
	var size int64
	err = durable.WriteFile(s.o.FS, s.path(quarantineDir, name), 0o600, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, "%s%s\n", quarantineMagic, head); err != nil {
			return err
		}
		n, err := s.fill(w, r, left)
		size = n
		return err
	})
	if err != nil {
		return "", fmt.Errorf("quarantine: %w", s.diskError(err))
	}
	has.files++
	has.bytes += size
	return name, nil
}

// clip keeps a text to a length that a reader of the quarantine accepts.
func clip(text string) string {
	if len(text) > 4096 {
		return strings.ToValidUTF8(text[:4096], "")
	}
	return text
}

// fill copies at most limit bytes, looking at the disk reserve on the way.
func (s *Spool) fill(w io.Writer, r io.Reader, limit int64) (size int64, err error) {
	for {
		if err := s.room(false); err != nil {
			return size, err
		}
		n, err := io.CopyN(w, r, min(askEvery, limit-size+1))
		if size += n; size > limit {
			return size, fmt.Errorf("%w: the quarantine may hold %d MiB", ErrFull, s.o.QuarantineMax>>20)
		}
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

// Quarantined lists what is kept, oldest first.
func (s *Spool) Quarantined() ([]QuarantineEntry, error) {
	out, err := s.quarantineFiles()
	if err != nil {
		return nil, err
	}
	err = s.View(func(tx *Tx) error {
		return tx.bucket(bkBad).ForEach(func(k, v []byte) error {
			if len(k) != 16 {
				return nil
			}
			e := QuarantineEntry{Name: recordPrefix + envelope.ID(k).String(), Size: int64(len(v))}
			if at, reason, rec, err := parseBad(v); err == nil {
				e.At, e.Reason, e.Size = fromMilli(at), reason, int64(len(rec))
			}
			out = append(out, e)
			return nil
		})
	})
	sort.SliceStable(out, func(i, j int) bool { return out[i].At.Before(out[j].At) })
	return out, err
}

// quarantineFiles lists the folder. A file without readable head is listed by its name alone.
func (s *Spool) quarantineFiles() ([]QuarantineEntry, error) {
	names, err := s.o.FS.ReadDir(s.path(quarantineDir))
	if err != nil {
		return nil, err
	}
	var out []QuarantineEntry
	for _, n := range names {
		if strings.HasPrefix(n.Name(), ".") || n.IsDir() {
			continue
		}
		f, e, err := s.openQuarantined(n.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			f.Close()
		} else {
			e = QuarantineEntry{Name: n.Name(), Reason: err.Error()}
		}
		out = append(out, e)
	}
	return out, nil
}

// openQuarantined opens a file and reads its head.
func (s *Spool) openQuarantined(name string) (io.ReadCloser, QuarantineEntry, error) {
	e := QuarantineEntry{Name: name}
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
		return nil, e, fmt.Errorf("%q is not a name in the quarantine: %w", name, ErrNotFound)
	}
	f, err := s.o.FS.Open(s.path(quarantineDir, name))
	if err != nil {
		return nil, e, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, e, err
	}
	r := bufio.NewReader(f)
	head, err := readHead(r)
	if err != nil {
		f.Close()
		return nil, e, fmt.Errorf("%q has no readable head: %w", name, err)
	}
	var h quarantineHead
	if err := json.Unmarshal(head, &h); err != nil {
		f.Close()
		return nil, e, fmt.Errorf("%q has no readable head: %w", name, err)
	}
	e.Reason, e.From, e.At = h.Reason, h.From, h.At
	e.Size = st.Size() - int64(len(quarantineMagic)+len(head))
	return readCloser{r, f}, e, nil
}

// readHead returns the JSON line with its end.
func readHead(r *bufio.Reader) ([]byte, error) {
	magic := make([]byte, len(quarantineMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != quarantineMagic {
		return nil, errors.New("it does not begin with the magic line")
	}
	var head []byte
	for {
		part, err := r.ReadSlice('\n')
		head = append(head, part...)
		if len(head) > maxQuarantineHead {
			return nil, errors.New("its head is too long")
		}
		if err == nil {
			return head, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// readCloser reads through a buffer and closes the file below.
type readCloser struct {
	io.Reader
	io.Closer
}

// OpenQuarantined opens the bytes as they came. It fails with ErrNotFound.
func (s *Spool) OpenQuarantined(name string) (io.ReadCloser, QuarantineEntry, error) {
	if text, ok := strings.CutPrefix(name, recordPrefix); ok {
		return s.openBad(name, text)
	}
	r, e, err := s.openQuarantined(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, e, fmt.Errorf("quarantine: %q: %w", name, err)
	}
	return r, e, nil
}

func (s *Spool) openBad(name, text string) (io.ReadCloser, QuarantineEntry, error) {
	e := QuarantineEntry{Name: name}
	id, err := envelope.ParseID(text)
	if err != nil {
		return nil, e, fmt.Errorf("quarantine: %w", err)
	}
	var rec []byte
	err = s.View(func(tx *Tx) error {
		v := tx.bucket(bkBad).Get(id[:])
		if v == nil {
			return fmt.Errorf("quarantine: %q: %w", name, ErrNotFound)
		}
		at, reason, b, err := parseBad(v)
		if err != nil {
			return err
		}
		e.At, e.Reason, e.Size, rec = fromMilli(at), reason, int64(len(b)), clone(b)
		return nil
	})
	if err != nil {
		return nil, e, err
	}
	return io.NopCloser(bytes.NewReader(rec)), e, nil
}

// RemoveQuarantined forgets an entry; a record goes with its content. It fails with ErrNotFound.
func (s *Spool) RemoveQuarantined(name string) error {
	if text, ok := strings.CutPrefix(name, recordPrefix); ok {
		id, err := envelope.ParseID(text)
		if err != nil {
			return fmt.Errorf("quarantine: %w", err)
		}
		return s.Apply(func(tx *Tx) error { return tx.removeBad(id, true) })
	}
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("quarantine: %q: %w", name, ErrNotFound)
	}
	s.quarMu.Lock()
	defer s.quarMu.Unlock()
	s.quarHas = nil // counted anew when it matters
	err := s.o.FS.Remove(s.path(quarantineDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err == nil {
		err = s.syncer.Sync(s.path(quarantineDir))
	}
	if err != nil {
		return fmt.Errorf("quarantine: removing %q: %w", name, err)
	}
	return nil
}

// removeBad forgets a record that was set aside, and its content.
func (tx *Tx) removeBad(id envelope.ID, content bool) error {
	if tx.bucket(bkBad).Get(id[:]) == nil {
		return itemError("quarantine: removing record", id, ErrNotFound)
	}
	if err := tx.del(bkBad, id[:]); err != nil || !content {
		return err
	}
	if err := tx.del(bkBody, id[:]); err != nil {
		return err
	}
	var files [][]byte
	c := tx.bucket(bkFile).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if len(k) == 17 && bytes.Equal(v, id[:]) {
			files = append(files, clone(k))
		}
	}
	for _, k := range files {
		if err := tx.del(bkFile, k); err != nil {
			return err
		}
		tx.b.unlink = append(tx.b.unlink, discard{name: fileName(k[1:])})
	}
	return nil
}

// ReleaseRecord puts a record that was set aside back into the queue, when this version of the program can read it.
func (s *Spool) ReleaseRecord(name string) error {
	id, err := envelope.ParseID(strings.TrimPrefix(name, recordPrefix))
	if err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	return s.Apply(func(tx *Tx) error {
		v := tx.bucket(bkBad).Get(id[:])
		if v == nil {
			return itemError("quarantine: releasing", id, ErrNotFound)
		}
		if tx.bucket(bkItem).Get(id[:]) != nil {
			return itemError("quarantine: releasing", id, ErrExists)
		}
		_, _, rec, err := parseBad(v)
		if err != nil {
			return err
		}
		rec = clone(rec)
		it, h, err := parseRecord(rec, s.dests.dest)
		if err == nil && it.Env.ID != id {
			err = errIndex
		}
		if err != nil {
			return itemError("quarantine: releasing", id, fmt.Errorf("%w: %w", ErrPoisoned, err))
		}
		if err := tx.removeBad(id, false); err != nil {
			return err
		}
		if err := tx.put(bkItem, id[:], rec); err != nil {
			return err
		}
		return tx.reindex(id, &head{}, &h)
	})
}
