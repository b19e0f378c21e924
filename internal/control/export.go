package control

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"mochila/bridge"
	"mochila/internal/envelope"
	"mochila/spool"
	"mochila/transport/export"
)

// exportScheme begins the name of an export, which stands for its medium in the queue.
const exportScheme = "export:"

// openImporter opens the folder where unfinished imports wait.
func (n *Node) openImporter() (*export.Importer, error) {
	return export.OpenImporter(filepath.Join(n.home.SpoolDir, "import"), export.ImporterOptions{
		Self: n.keys.ID().Label(), Peer: func(l envelope.Label) bool { return n.peerByLabel(l) != nil }, Log: n.log,
		Room: func() error {
			if n.spool.Full() {
				return spool.ErrFull
			}
			return nil
		},
	})
}

func (n *Node) peerByLabel(l envelope.Label) *bridge.Peer {
	for _, p := range n.bridge.Policy().Peers {
		if p.ID.Label() == l {
			return p
		}
	}
	return nil
}

// engine runs the engine of a node without a daemon until the function that it returns is called.
func (n *Node) engine(ctx context.Context) (stop func()) {
	if n.daemon {
		return func() {}
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); n.bridge.Run(run) }()
	return func() { cancel(); <-done }
}

// exportJob is one set of an export.
type exportJob struct {
	peer *bridge.Peer
	o    export.Options
}

// name stands for the medium in the queue.
func (j *exportJob) name() string { return exportScheme + hex.EncodeToString(j.o.Set[:]) }

// exportJobs checks a request. size is how many bytes all sets may have together; 0: no limit.
func (n *Node) exportJobs(q ExportRequest) (jobs []exportJob, size int64, err error) {
	if len(q.Nodes) == 0 {
		return nil, 0, &Error{Message: "export for whom?", Hint: "mochila export NODE", Exit: ExitUsage}
	}
	for _, name := range q.Nodes {
		j := exportJob{o: export.Options{From: n.keys.ID().Label(), Data: q.Parts, Parity: q.Parity, Block: q.Block}}
		for _, p := range n.bridge.Policy().Peers {
			if p.Name == name {
				j.peer, j.o.To = p, p.ID.Label()
			}
		}
		if j.peer == nil {
			return nil, 0, &Error{Message: fmt.Sprintf("there is no peer %q", name), Hint: "mochila peer list", Exit: ExitUsage}
		}
		rand.Read(j.o.Set[:])
		if _, err := export.NewWriter(io.Discard, j.o); err != nil {
			return nil, 0, &Error{Message: err.Error(), Exit: ExitUsage}
		}
		jobs = append(jobs, j)
	}
	if size = q.Size; !q.One {
		size *= int64(max(q.Parts, 1) + q.Parity)
	}
	return jobs, size, nil
}

// serveExport is POST /v1/export.
func (n *Node) serveExport(w http.ResponseWriter, r *http.Request) {
	var q ExportRequest
	out := bufio.NewWriterSize(w, 256<<10)
	err := decode(r, &q)
	var jobs []exportJob
	var size int64
	if err == nil {
		jobs, size, err = n.exportJobs(q)
	}
	if err != nil {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", ExportTrailer)
	var names []string
	for _, j := range jobs {
		names = append(names, j.name())
	}
	w.Header().Set(ExportNames, strings.Join(names, ","))
	w.WriteHeader(http.StatusOK)
	reply, err := n.export(r.Context(), out, jobs, size)
	if err == nil {
		if err = out.Flush(); err != nil {
			err = errors.Join(err, n.unexport(reply.names()))
		}
	}
	if err != nil {
		n.log.Warn("export", "err", err)
		e := asError(err)
		reply.Error, reply.Hint, reply.Exit = e.Message, e.Hint, e.Exit
	}
	b, _ := json.Marshal(reply)
	w.Header().Set(ExportTrailer, string(b))
}

func (r *ExportReply) names() (names []string) {
	for _, s := range r.Sets {
		names = append(names, s.Export)
	}
	return names
}

// export writes the sets, one after the other.
func (n *Node) export(ctx context.Context, out io.Writer, jobs []exportJob, size int64) (*ExportReply, error) {
	reply := &ExportReply{Sets: []ExportSet{}}
	if _, err := n.Collect(ctx); err != nil {
		n.log.Warn("maildrop", "err", err)
	}
	for _, j := range jobs {
		if size > 0 {
			j.o.Size = max(size-reply.Bytes, 1)
		}
		w, err := export.NewWriter(out, j.o)
		if err != nil {
			return reply, errors.Join(err, n.unexport(reply.names()))
		}
		r, err := n.bridge.Export(ctx, j.peer.ID, j.name(), w.Room, export.Link{W: w})
		reply.Bytes += w.Written()
		if err != nil {
			return reply, errors.Join(fmt.Errorf("export for %s: %w", j.peer.Name, err), n.unexport(reply.names()))
		}
		reply.Sets = append(reply.Sets, ExportSet{Node: j.peer.Name, Export: j.name(), Packets: r.Stats.PacketsOut, Envelopes: r.Envelopes, Left: r.Left})
	}
	return reply, nil
}

// unexport makes due again what went to media that turned out to be worth nothing.
func (n *Node) unexport(names []string) (err error) {
	for _, name := range names {
		if !strings.HasPrefix(name, exportScheme) {
			return &Error{Message: fmt.Sprintf("%q is not the name of an export", name), Exit: ExitUsage}
		}
		err = errors.Join(err, n.bridge.Unexport(name))
	}
	return err
}

// importStream is POST /v1/import. It reads body to its end in any case.
func (n *Node) importStream(ctx context.Context, body io.Reader) (*ImportReply, error) {
	stop := n.engine(ctx)
	defer stop()
	before := n.delivered.Load()
	intake := n.bridge.OpenIntake()
	defer intake.Close()
	run, err := n.imports.Begin(ctx, intake)
	if err != nil {
		return nil, err
	}
	scan := export.NewScanner(body)
	err = export.Merge(func(h export.Header, raw []byte) error {
		return run.Add(ctx, &export.Block{Header: h, Payload: raw[export.HeaderSize:]})
	}, scan)
	reports, e := run.End()
	err = errors.Join(err, e)
	r := &ImportReply{Sets: []ImportSet{}, Blocks: scan.Blocks, Damaged: scan.Damaged, Rubbish: scan.Garbage, Others: run.Others, Strangers: run.Stray}
	for _, s := range reports {
		x := ImportSet{Set: s.Set, Node: s.From.String(), Packets: s.Packets, Bytes: s.Bytes, Known: s.Known, Refused: s.Refused, Damaged: s.Counts.Damaged,
			Complete: s.Complete, Need: s.Data, Of: s.Data + s.Parity, Missing: s.Missing, Waiting: s.Waiting, End: s.End}
		if p := n.peerByLabel(s.From); p != nil {
			x.Node = p.Name
		}
		if !s.Complete {
			x.Parts = s.Parts
		}
		r.Sets = append(r.Sets, x)
	}
	if scan.Foreign != nil && scan.Blocks == 0 {
		err = errors.Join(err, scan.Foreign)
	}
	if err != nil {
		n.log.Warn("import", "err", err)
		a := asError(err)
		if r.Error, r.Hint = a.Message, a.Hint; errors.Is(err, spool.ErrFull) {
			r.Hint = "make room on the disk of " + n.home.SpoolDir + " and import the medium again"
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return nil, err
		}
	}
	n.settle(ctx)
	r.Delivered = int(n.delivered.Load() - before)
	return r, nil
}
