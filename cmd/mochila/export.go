package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mochila/internal/config"
	"mochila/internal/control"
	"mochila/transport/export"
)

// exportSuffix is how files of an export are called.
const exportSuffix = ".mcx"

func (a *app) exportCmd() *cobra.Command {
	var size, block string
	var parts, parity int
	var outputs []string
	c := &cobra.Command{
		Use:   "export NODE… [flags] > STREAM",
		Short: "write what waits for neighbours as one stream, for tape, disc, data diode or broadcast",
		Long: `Writes everything that is due for these neighbours to standard output, or to files: a stream that can be read from
any place on, with gaps, damage and repetitions (docs/export.md). Each neighbour finds its part by mochila import.

Everything is kept here until a receipt comes back by any way, and sent again when it is overdue.

With --size a medium is filled with the most urgent, and what is left waits for the next one.

With --parts N --parity M the stream is spread over N+M files, of which any N restore it. Name them with --output, as often
as there are parts; a directory gets a file of its own name. To one output all parts go together: it then bears damage.`,
		Example: `  mochila export hub > /dev/nst0
  mochila export hub --size 4.7G -o hub.mcx
  mochila export hub --parts 3 --parity 1 -o /media/a -o /media/b -o /media/c -o /media/d
  mochila export ship camp --parts 20 --parity 5 --block 1KiB | modulator`,
		Args:              takes("NODE…"),
		ValidArgsFunction: a.names,
		RunE: func(c *cobra.Command, args []string) error {
			q := control.ExportRequest{Nodes: args, Parts: parts, Parity: parity, One: len(outputs) < 2}
			n, err := sizeFlag("size", size)
			if err != nil {
				return err
			}
			q.Size = n
			if n, err = sizeFlag("block", block); err != nil {
				return err
			}
			q.Block = int(min(n, 1<<30))
			if want := max(parts, 1) + parity; len(outputs) > 1 && len(outputs) != want {
				return usageError("name one --output for each part, or one for all", "%d parts and %d outputs", want, len(outputs))
			}
			return a.export(c.Context(), q, outputs)
		},
	}
	f := c.Flags()
	f.StringVar(&size, "size", "", "write at most this many bytes to each output: `4.7G`, 32GiB")
	f.IntVar(&parts, "parts", 1, "`number` of parts that restore it")
	f.IntVar(&parity, "parity", 0, "`number` of further parts, so that as many may be lost")
	f.StringVar(&block, "block", "64KiB", "`size` of a block: what one damaged place costs")
	f.StringArrayVarP(&outputs, "output", "o", nil, "`file`, device or directory to write to; once for each part")
	return c
}

// sizeFlag reads a size; media are sold with a decimal point.
func sizeFlag(name, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if whole, rest, found := strings.Cut(s, "."); found && len(rest) > 1 {
		if unit := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); unit > 0 && unit <= 3 {
			// 4.7G = 4700M
			down := map[byte]string{'k': "", 'm': "k", 'g': "M", 't': "G"}
			if lower, ok := down[rest[unit]|0x20]; ok && !strings.Contains(strings.ToLower(rest), "i") {
				s = whole + (rest[:unit] + "000")[:3] + lower
			}
		}
	}
	n, err := config.ParseSize(s)
	if err != nil || n <= 0 {
		return 0, usageError("as in --"+name+" 4.7G or 64KiB", "--%s: %q is not a size", name, s)
	}
	return int64(n), nil
}

// export copies the stream to its outputs. Unless all of it is safe there, everything is due again.
func (a *app) export(ctx context.Context, q control.ExportRequest, outputs []string) error {
	out := &outlet{app: a}
	if len(outputs) == 0 {
		if _, tty := isTerminal(a.env.Stdout); tty {
			return usageError("mochila export NODE > FILE, or --output", "a terminal is no medium")
		}
	}
	m := a.meter("exporting", &out.n)
	defer m()
	if err := out.open(outputs); err != nil {
		return err
	}
	var reply *control.ExportReply
	err := a.node(ctx, func(c *control.Client) error {
		var err error
		if reply, err = c.Export(ctx, q, out, out.close); err != nil && out.err != nil {
			return out.failed()
		}
		return err
	})
	m()
	if err != nil {
		out.remove()
		return err
	}
	switch {
	case a.json && len(outputs) > 0:
		return a.asJSON(reply, false)
	case a.json: // standard output is the medium
		b, err := json.Marshal(reply)
		a.note("%s", quietJSON(string(b)))
		return err
	}
	for _, s := range reply.Sets {
		a.note("%s: %s in %s%s", safe(s.Node), count(s.Envelopes, "envelope"), count(s.Packets, "packet"), when(s.Left > 0, fmt.Sprintf("; %d wait for the next medium", s.Left)))
	}
	a.note("%s written%s. It is kept here until receipts come.", bytesText(out.n.Load()), out.where())
	return nil
}

// outlet is where the stream of an export goes: block by block to one output, or each part to its own.
type outlet struct {
	app   *app
	files []*outputFile // none: standard output
	rest  []byte        // the beginning of a block
	n     atomic.Int64
	err   error
}

type outputFile struct {
	path string
	dir  bool // path is a directory: the file is named when the first block comes
	made bool // the file was not there before
	f    *os.File
}

// open opens the outputs.
func (o *outlet) open(paths []string) error {
	for _, p := range paths {
		x := &outputFile{path: p}
		st, err := os.Stat(p)
		switch {
		case err == nil && st.IsDir():
			x.dir = true
		case err == nil && st.Mode().IsRegular():
			o.remove()
			return &control.Error{Message: fmt.Sprintf("%s is there already", p), Hint: "remove it, or choose another name", Exit: control.ExitCreate}
		case err == nil:
			x.f, err = os.OpenFile(p, os.O_WRONLY, 0)
		default:
			err = x.create(p)
		}
		if err != nil {
			o.remove()
			return &control.Error{Message: fmt.Sprintf("open output: %v", err), Exit: control.ExitCreate}
		}
		o.files = append(o.files, x)
	}
	return nil
}

func (x *outputFile) create(path string) (err error) {
	x.f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	x.path, x.made = path, err == nil
	return err
}

// Write takes the stream in any pieces.
func (o *outlet) Write(p []byte) (int, error) {
	if len(o.files) == 0 {
		n, err := o.app.env.Stdout.Write(p)
		o.n.Add(int64(n))
		o.err = err
		return n, err
	}
	o.rest = append(o.rest, p...)
	used := 0
	for {
		h, size, err := export.Peek(o.rest[used:])
		if err != nil {
			return 0, fmt.Errorf("split the stream: %w", err)
		}
		if size == 0 || len(o.rest)-used < size {
			break
		}
		if err := o.block(h, o.rest[used:used+size]); err != nil {
			o.err = err
			return 0, err
		}
		used += size
	}
	o.rest = append(o.rest[:0], o.rest[used:]...)
	return len(p), nil
}

// block writes one block where it belongs.
func (o *outlet) block(h export.Header, raw []byte) error {
	x := o.files[0]
	if len(o.files) > 1 {
		x = o.files[h.Shard]
	}
	if x.f == nil {
		name := fmt.Sprintf("mochila-%s-part%d%s", hex.EncodeToString(h.Set[:4]), h.Shard+1, exportSuffix)
		if len(o.files) == 1 {
			name = fmt.Sprintf("mochila-%s%s", hex.EncodeToString(h.Set[:4]), exportSuffix)
		}
		if err := x.create(filepath.Join(x.path, name)); err != nil {
			return err
		}
	}
	n, err := x.f.Write(raw)
	o.n.Add(int64(n))
	return err
}

// failed is the trouble with the outputs, if that ended it.
func (o *outlet) failed() error {
	if o.err == nil {
		return nil
	}
	e := &control.Error{Message: fmt.Sprintf("write the stream: %v", o.err), Exit: control.ExitIO}
	if errors.Is(o.err, unix.ENOSPC) {
		e.Hint = "--size says how much fits; everything is due again"
	}
	return e
}

// close makes everything durable.
func (o *outlet) close() error {
	files := []*os.File{o.app.env.Stdout}
	dirs := map[string]bool{}
	if len(o.files) > 0 {
		files = nil
	}
	for _, x := range o.files {
		if x.f != nil {
			files = append(files, x.f)
			dirs[filepath.Dir(x.path)] = dirs[filepath.Dir(x.path)] || x.made
		}
	}
	for _, f := range files {
		if err := syncFile(f); err != nil {
			return &control.Error{Message: fmt.Sprintf("write the stream: %v", err), Exit: control.ExitIO}
		}
		if f != o.app.env.Stdout {
			if err := f.Close(); err != nil {
				return &control.Error{Message: fmt.Sprintf("write the stream: %v", err), Exit: control.ExitIO}
			}
		}
	}
	for dir, made := range dirs {
		if !made {
			continue
		}
		d, err := os.Open(dir)
		if err == nil {
			err = errors.Join(syncFile(d), d.Close())
		}
		if err != nil {
			return &control.Error{Message: fmt.Sprintf("write the stream: %v", err), Exit: control.ExitIO}
		}
	}
	return nil
}

// syncFile is fsync; what cannot be synced (a pipe, a tape) is left to itself.
func syncFile(f *os.File) error {
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}

// remove takes away the files of an export that failed.
func (o *outlet) remove() {
	for _, x := range o.files {
		if x.f != nil {
			x.f.Close()
		}
		if x.made {
			os.Remove(x.path)
		}
	}
}

// where names the files.
func (o *outlet) where() string {
	var names []string
	for _, x := range o.files {
		if x.f != nil {
			names = append(names, safe(x.path))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " to " + strings.Join(names, ", ")
}

// meter shows on a terminal how many bytes have moved; the function that it returns ends that, and may be called twice.
func (a *app) meter(what string, n *atomic.Int64) (stop func()) {
	if _, tty := isTerminal(a.env.Stderr); !tty || a.json || a.getenv("TERM") == "dumb" {
		return func() {}
	}
	end, done := make(chan struct{}), make(chan struct{})
	start := time.Now()
	go func() {
		defer close(done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				fmt.Fprint(a.env.Stderr, "\r\x1b[K")
				return
			case now := <-tick.C:
				fmt.Fprintf(a.env.Stderr, "\r%s … %s, %s\x1b[K", what, bytesText(n.Load()), span(now.Sub(start)))
			}
		}
	}()
	return func() {
		select {
		case <-end:
		default:
			close(end)
			<-done
		}
	}
}

func (a *app) importCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "import [FILE…] [< STREAM]",
		Short: "take in what mochila export wrote",
		Long: `Reads export streams from standard input, or from files, devices and directories (all that ends in .mcx there), and
takes every packet for this node that is whole. Whatever else is there is passed over: a disc image or the raw device will do.

What is not complete is kept for another copy, or for the other parts of a set. Name the parts together where you can: they are then
read side by side.

The exit status is 75 when something is missing still, and 65 when there was nothing to read or something was refused.`,
		Example: `  mochila import < /dev/nst0
  mochila import /media/a /media/c /media/d
  mochila import disc.iso
  demodulator | mochila import`,
		Args: takes("[FILE…]"),
		RunE: func(c *cobra.Command, args []string) error { return a.imports(c.Context(), args) },
	}
}

// input is one file of an import.
type input struct {
	name string
	scan *export.Scanner
	f    *os.File
}

// imports uploads the blocks of all files, side by side.
func (a *app) imports(ctx context.Context, args []string) error {
	inputs, err := a.inputs(args)
	for _, x := range inputs {
		defer x.f.Close()
	}
	if err != nil {
		return err
	}
	var n atomic.Int64
	m := a.meter("importing", &n)
	defer m()
	r, w := io.Pipe()
	var readErr error
	read := make(chan struct{})
	go func() { // an interrupt is the end of the stream: what came is taken
		defer close(read)
		var scans []*export.Scanner
		for _, x := range inputs {
			scans = append(scans, x.scan)
		}
		readErr = export.Merge(func(_ export.Header, raw []byte) error {
			n.Add(int64(len(raw)))
			_, err := w.Write(raw)
			return err
		}, scans...)
		w.Close()
	}()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	var reply control.ImportReply
	err = a.node(context.WithoutCancel(ctx), func(c *control.Client) error {
		return c.Upload(context.WithoutCancel(ctx), "/v1/import", r, &reply)
	})
	r.Close()
	m()
	if err != nil {
		return err
	}
	if ctx.Err() == nil {
		<-read
	} else {
		readErr = nil
	}
	reply.Damaged, reply.Rubbish = 0, 0
	if ctx.Err() == nil {
		for _, x := range inputs {
			reply.Damaged += x.scan.Damaged
			reply.Rubbish += x.scan.Garbage
			if x.scan.Foreign != nil && reply.Error == "" && reply.Blocks == 0 {
				reply.Error = x.scan.Foreign.Error()
			}
		}
		a.damage(inputs)
	}
	if a.json {
		if err := a.asJSON(reply, false); err != nil {
			return err
		}
	}
	return errors.Join(a.imported(&reply), readErr)
}

// inputs opens what an import reads.
func (a *app) inputs(args []string) (all []*input, err error) {
	if len(args) == 0 {
		if _, tty := isTerminal(a.env.Stdin); tty {
			return nil, usageError("mochila import FILE, or < FILE", "a terminal is no medium")
		}
		return []*input{{name: "standard input", scan: export.NewScanner(a.env.Stdin), f: a.env.Stdin}}, nil
	}
	for _, path := range args {
		files := []string{path}
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			files, _ = filepath.Glob(filepath.Join(path, "*"+exportSuffix))
			if len(files) == 0 {
				return all, &control.Error{Message: fmt.Sprintf("%s has no file that ends in %s", path, exportSuffix), Hint: "name the file", Exit: control.ExitNoInput}
			}
			slices.Sort(files)
		}
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				return all, &control.Error{Message: fmt.Sprintf("open medium: %v", err), Exit: control.ExitNoInput}
			}
			all = append(all, &input{name: name, f: f, scan: export.NewScanner(&mediumReader{f: f})})
		}
	}
	return all, nil
}

// mediumReader reads a file or device and passes over what it cannot read.
type mediumReader struct {
	f     *os.File
	holes int
}

const (
	holeSize = 4096
	maxHoles = 10_000 // in a row
)

func (m *mediumReader) Read(p []byte) (int, error) {
	for {
		n, err := m.f.Read(p)
		if n > 0 || err == nil || err == io.EOF {
			m.holes = 0
			return n, err
		}
		if !errors.Is(err, unix.EIO) || m.holes >= maxHoles {
			return 0, err
		}
		at, e := m.f.Seek(0, io.SeekCurrent)
		if e == nil {
			_, e = m.f.Seek((at/holeSize+1)*holeSize, io.SeekStart)
		}
		if e != nil {
			return 0, err
		}
		m.holes++
	}
}

// damage names the media that are not what was written.
func (a *app) damage(inputs []*input) {
	for _, x := range inputs {
		if x.scan.Damaged > 0 {
			a.note("%s: %s damaged", safe(x.name), count(int(x.scan.Damaged), "block"))
		}
	}
}

// imported says what became of an import.
func (a *app) imported(r *control.ImportReply) error {
	status := error(nil)
	for _, s := range r.Sets {
		if s.Refused > 0 {
			status = exit(control.ExitData)
		}
		switch {
		case a.json:
		case s.Packets+s.Known+s.Damaged+s.Refused == 0:
			a.printf("%s: nothing new\n", safe(s.Node))
		default:
			a.printf("%s: %s, %s taken%s%s%s\n", safe(s.Node), count(s.Packets, "packet"), bytesText(s.Bytes),
				when(s.Known > 0, fmt.Sprintf("; %d known", s.Known)), when(s.Damaged > 0, fmt.Sprintf("; %d damaged", s.Damaged)),
				when(s.Refused > 0, fmt.Sprintf("; %d refused (mochila quarantine list)", s.Refused)))
		}
	}
	if !a.json && r.Delivered > 0 {
		a.printf("%s: %s delivered\n", a.ownName(), count(r.Delivered, "mail"))
	}
	for _, s := range r.Sets {
		if s.Complete {
			continue
		}
		status = exit(control.ExitTemp)
		if !a.json {
			a.note("mochila: error: set %s of %s is not complete: %s", s.Set[:8], safe(s.Node), lacks(s))
		}
	}
	switch {
	case r.Error != "":
		return &control.Error{Message: "import: " + r.Error, Hint: r.Hint, Exit: control.ExitTemp}
	case r.Blocks == 0:
		return &control.Error{Message: "nothing that mochila export wrote was found", Exit: control.ExitData}
	case len(r.Sets) == 0 && r.Others > 0:
		return &control.Error{Message: "everything there is for other nodes", Exit: control.ExitData}
	case len(r.Sets) == 0 && r.Strangers > 0:
		return &control.Error{Message: "what is there was written by a node that is no peer", Hint: "mochila peer list", Exit: control.ExitData}
	}
	return status
}

// lacks says what would complete a set, and what would help.
func lacks(s control.ImportSet) string {
	text := fmt.Sprintf("%d stripes are missing or damaged", s.Missing)
	if s.Missing == 1 {
		text = "1 stripe is missing or damaged"
	}
	if !s.End {
		text += ", and its end"
	}
	if s.Waiting > 0 {
		text += fmt.Sprintf(", and %s for them", when(s.Waiting == 1, "1 packet waits")+when(s.Waiting > 1, fmt.Sprintf("%d packets wait", s.Waiting)))
	}
	const again = "read another copy"
	if s.Of == 1 {
		return text + "\nhint: " + again + "; what has no receipt is exported again in time"
	}
	var here, others []string
	for i := range s.Of {
		if slices.Contains(s.Parts, i+1) {
			here = append(here, fmt.Sprint(i+1))
		} else {
			others = append(others, fmt.Sprint(i+1))
		}
	}
	if lack := s.Need - len(here); lack > 0 {
		return fmt.Sprintf("of its %d parts %d are needed, and only %s here\nhint: bring %d of the parts %s",
			s.Of, s.Need, areParts(here), lack, strings.Join(others, ", "))
	}
	return text + fmt.Sprintf("; %s here\nhint: %s", areParts(here), when(len(others) > 0, "bring part "+strings.Join(others, " or ")+", or ")+again)
}

// areParts begins a sentence about parts: "part 2 is", "parts 2, 5 are".
func areParts(list []string) string {
	if len(list) == 1 {
		return "part " + list[0] + " is"
	}
	return "parts " + strings.Join(list, ", ") + " are"
}
