package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mochila/transport/fspl"
)

// packetVar is the variable of a Filespooler job that names the packet in it: a payload has no length of its own.
const packetVar = "MOCHILA_PACKET"

// Filespooler is a Submitter that appends packets to a Filespooler queue, each as a job with the packet as its payload.
// Whoever processes the queue at the other side hands them to mochila receive; or the neighbour reads it itself, by in.
type Filespooler struct {
	queue, in, seq string
}

// NewFilespooler returns the Submitter for the queue in a folder. in, if not empty, is the queue that the neighbour
// writes; seq the file with this side's next number, "" stands for mochila.seq in the queue.
func NewFilespooler(queue, in, seq string) *Filespooler {
	if seq == "" {
		seq = filepath.Join(queue, "mochila.seq")
	}
	return &Filespooler{queue, in, seq}
}

// String is the carrier URL without options.
func (s *Filespooler) String() string { return "fspl:" + s.queue }

// Submit implements Submitter. A queue that is not there is ErrAbsent.
func (s *Filespooler) Submit(ctx context.Context, p *Packet) error {
	q, err := fspl.OpenQueue(s.queue)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	if err := roomIn(s.queue, "the queue", p.Size); err != nil {
		return err
	}
	r, err := p.Open(0)
	if err != nil {
		return err
	}
	defer r.Close()
	h := &fspl.Header{Time: time.Now(), Kind: fspl.Command, Env: [][2]string{{packetVar, p.ID.String()}}}
	return q.Write(s.seq, fspl.NewUUID(), h, contextReader{ctx, r})
}

// contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Arrivals implements Source: the jobs in the neighbour's queue that hold packets, whatever their numbers. Others are
// left alone.
func (s *Filespooler) Arrivals(ctx context.Context, each func(Arrival) bool) error {
	if s.in == "" {
		return nil
	}
	q, err := fspl.OpenQueue(s.in)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	jobs, _, err := q.List(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	slices.SortStableFunc(jobs, func(a, b *fspl.Job) int { return cmp.Compare(a.Size, b.Size) })
	for _, j := range jobs {
		for _, e := range j.Env {
			id, err := ParseID(e[1])
			if e[0] != packetVar || err != nil {
				continue
			}
			more := each(Arrival{Name: j.Path, Size: j.Payload(), Done: j.Remove, Open: func(ctx context.Context) (io.ReadCloser, error) {
				r, err := j.Open()
				if err != nil {
					return nil, err
				}
				return struct {
					io.Reader
					io.Closer
				}{newVerifier(ctx, r, id, j.Payload(), ErrIncomplete), r}, nil
			}})
			if !more {
				return nil
			}
			break
		}
	}
	return nil
}

func (s *Filespooler) place() string {
	if s.in == "" {
		return ""
	}
	return filepath.Join(s.in, "jobs")
}

// parseFspl reads fspl:/QUEUE and its options.
func parseFspl(rest string, opts url.Values) (Carrier, error) {
	in, seq := take(opts, "in"), take(opts, "seq")
	for _, p := range []string{rest, in, seq} {
		if p != "" && !strings.HasPrefix(p, "/") {
			return Carrier{}, withHint(fmt.Errorf("%q is not an absolute path", p), "as in fspl:/srv/sync/to-hub?in=/srv/sync/from-hub")
		}
	}
	if rest == "" {
		return Carrier{}, withHint(errors.New("no queue"), "as in fspl:/srv/sync/to-hub, made by fspl queue-init -q")
	}
	if in == rest {
		return Carrier{}, errors.New("in= is the same queue: each direction has one of its own")
	}
	return Carrier{Submitter: NewFilespooler(rest, in, seq)}, nil
}

var _ Source = (*Filespooler)(nil)
