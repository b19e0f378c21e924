// Package courier is what a courier's machine does, which belongs to no node and has no keys: it copies packets between
// folders, so that whatever lies on one lies on all that are still to be visited. It reads every byte that it copies, and
// what does not fit its name is not carried on.
//
// A writer takes a packet away when it has been acknowledged. A courier would bring it back from the other folders, so it
// notes on each folder what it has seen there: what has gone from one goes from all. It deletes nothing else.
package courier

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"mochila/internal/envelope"
	"mochila/transport"
)

// top is the directory of all packets; memo is the file in it where a courier notes what it has seen.
const (
	top     = "mochila"
	memo    = "courier.txt"
	maxMemo = 64 << 20
)

// Stop is one folder of a round.
type Stop struct {
	Name   string // for people
	Folder transport.Folder
}

// Result is what a round did at one stop.
type Result struct {
	Name    string `json:"name"`
	Packets int    `json:"packets"` // that lie there now
	Copied  int    `json:"copied"`  // to here
	Bytes   int64  `json:"bytes"`   // of these
	Removed int    `json:"removed"` // delivered elsewhere, as their writers say
	Damaged int    `json:"damaged"` // that lie here and do not fit their names: they were not copied on
	Full    int    `json:"full"`    // that found no room here
	Err     error  `json:"-"`
}

// stop is a Stop during a round.
type stop struct {
	Stop
	Result
	there map[string]int64 // what lies there, "FROM/TO/PACKET": its size
	gone  []string         // what was there when a courier came last, and is not there now
}

// Round visits all stops once. An absent or broken one is told in its Result and keeps nobody else waiting. progress is
// called after each copy, with the results as they are; nil: nobody looks.
func Round(ctx context.Context, stops []Stop, progress func([]Result)) []Result {
	var all []*stop
	for _, s := range stops {
		x := &stop{Stop: Stop{s.Name, transport.Whole(s.Folder)}, Result: Result{Name: s.Name}}
		x.Err = x.look(ctx)
		all = append(all, x)
	}
	results := func() []Result {
		var list []Result
		for _, x := range all {
			x.Packets = len(x.there)
			list = append(list, x.Result)
		}
		return list
	}
	delivered := map[string]bool{}
	for _, x := range all {
		for _, p := range x.gone {
			delivered[p] = true
		}
	}
	for _, x := range all {
		if x.Err == nil {
			x.Err = x.clear(ctx, delivered)
		}
	}
	for _, p := range toCopy(all) {
		if ctx.Err() != nil {
			break
		}
		carry(ctx, all, p)
		if progress != nil {
			progress(results())
		}
	}
	for _, x := range all {
		if x.Err == nil {
			x.Err = x.leave(ctx)
		}
		if x.Err == nil {
			x.Err = ctx.Err()
		}
	}
	return results()
}

// look lists what lies at a stop, and reads what a courier noted there.
func (s *stop) look(ctx context.Context) error {
	s.there = map[string]int64{}
	from, err := s.Folder.Dirs(ctx, top)
	if err != nil {
		return err
	}
	for _, f := range from {
		if _, err := envelope.ParseLabel(f); err != nil {
			continue
		}
		to, err := s.Folder.Dirs(ctx, path.Join(top, f))
		if err != nil {
			return err
		}
		for _, t := range to {
			if _, err := envelope.ParseLabel(t); err != nil {
				continue
			}
			files, err := s.Folder.List(ctx, path.Join(top, f, t))
			if err != nil {
				return err
			}
			for _, e := range files {
				if _, err := transport.ParseID(e.Name); err == nil {
					s.there[path.Join(f, t, e.Name)] = e.Size
				}
			}
		}
	}
	return s.remember(ctx)
}

// remember reads the note of an earlier round. One that cannot be read is none: then nothing is deleted.
func (s *stop) remember(ctx context.Context) error {
	files, err := s.Folder.List(ctx, top)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(files, func(e transport.Entry) bool { return e.Name == memo && e.Size <= maxMemo }) {
		return nil
	}
	r, err := s.Folder.Get(ctx, top, memo)
	if err != nil {
		return nil
	}
	defer r.Close()
	for in := bufio.NewScanner(io.LimitReader(r, maxMemo)); in.Scan(); {
		p := in.Text()
		if _, there := s.there[p]; !there && isPacket(p) {
			s.gone = append(s.gone, p)
		}
	}
	return nil
}

// isPacket reports whether p is FROM/TO/PACKET.
func isPacket(p string) bool {
	parts := strings.Split(p, "/")
	if len(parts) != 3 {
		return false
	}
	_, err1 := envelope.ParseLabel(parts[0])
	_, err2 := envelope.ParseLabel(parts[1])
	_, err3 := transport.ParseID(parts[2])
	return err1 == nil && err2 == nil && err3 == nil
}

// clear deletes what has been delivered.
func (s *stop) clear(ctx context.Context, delivered map[string]bool) error {
	for p := range s.there {
		if !delivered[p] {
			continue
		}
		if err := s.Folder.Remove(ctx, path.Join(top, path.Dir(p)), path.Base(p)); err != nil {
			return fmt.Errorf("delete what has been delivered: %w", err)
		}
		delete(s.there, p)
		s.Removed++
	}
	return nil
}

// toCopy is every packet that some stop lacks, small before big: receipts are small, and make room.
func toCopy(all []*stop) []string {
	sizes := map[string]int64{}
	open := 0
	for _, s := range all {
		if s.Err != nil {
			continue
		}
		open++
		for p, size := range s.there {
			sizes[p] = max(sizes[p], size)
		}
	}
	var list []string
	for p := range sizes {
		n := 0
		for _, s := range all {
			if size, ok := s.there[p]; ok && s.Err == nil && size == sizes[p] {
				n++
			}
		}
		if n < open {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b string) int {
		if sizes[a] != sizes[b] {
			return int(min(max(sizes[a]-sizes[b], -1), 1))
		}
		return strings.Compare(a, b)
	})
	return list
}

// carry copies a packet from a stop where it is whole to all that lack it.
func carry(ctx context.Context, all []*stop, p string) {
	for _, to := range all {
		if to.Err != nil {
			continue
		}
		for _, from := range all {
			size, ok := from.there[p]
			if !ok || from == to || from.Err != nil || to.there[p] >= size {
				continue
			}
			if to.copy(ctx, from, p, size) {
				break
			}
		}
	}
}

// copy takes one packet over and reports whether that is settled. transport.Verified gives no last byte of a packet that
// does not fit its name, so a damaged one is never put.
func (s *stop) copy(ctx context.Context, from *stop, p string, size int64) bool {
	dir, name := path.Join(top, path.Dir(p)), path.Base(p)
	id, err := transport.ParseID(name)
	if err != nil {
		return true
	}
	r, err := from.Folder.Get(ctx, dir, name)
	if err != nil {
		from.Damaged++
		return false
	}
	defer r.Close()
	src := transport.Verified(ctx, r, id, size)
	err = s.Folder.Put(ctx, dir, name, size, src)
	switch {
	case err == nil:
		s.there[p] = size
		s.Copied++
		s.Bytes += size
	case errors.Is(err, transport.ErrIncomplete):
		from.Damaged++
		return false
	case errors.Is(err, transport.ErrFull):
		s.Full++
	default:
		s.Err = err
	}
	return true
}

// leave notes what lies here for the next round, and makes everything durable.
func (s *stop) leave(ctx context.Context) error {
	names := make([]string, 0, len(s.there))
	for p := range s.there {
		names = append(names, p)
	}
	slices.Sort(names)
	text := strings.Join(names, "\n") + "\n"
	if err := s.Folder.Put(ctx, top, memo, int64(len(text)), bytes.NewReader([]byte(text))); err != nil && !errors.Is(err, transport.ErrFull) {
		return err
	}
	return s.Folder.Flush(ctx)
}
