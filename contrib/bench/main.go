// Command bench compares mochila with its neighbours on this machine, in one run and on one disk (make bench).
//
// It starts private instances of everything: Postfix with its own configuration and queue, NNCP with its own keys and
// spool, mochila nodes in homes of their own. Load generator and sink are goroutines of this process, for all
// contestants alike: TCP_NODELAY, one write for a message, commands not pipelined. Contestants take turns within each
// case, so that a disk that slows down slows all of them.
//
// Every figure is printed as
//
//	contestant.case.figure MEDIAN min=… max=… n=…
//
// and at the end those that have a target stand beside it in a table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	bin, tmp, only, doc, cases string
	reps                       int
	quick, keep                bool
}

// bench is one run.
type bench struct {
	ctx   context.Context
	bin   string // where mochila and sendmail are
	tmp   string // scratch folder of the run
	reps  int
	quick bool
	keep  bool // the folders of failed cases
	fig   *figures
	cases *regexp.Regexp // of sections relay, carriers and jobs
	text  *corpus
	facts string // of the machine
	peers string // who takes part

	skipped map[string]bool // contestants that stay away
}

// section is one group of cases.
type section struct {
	name string
	run  func(*bench) error
}

var sections = []section{
	{"limits", (*bench).limits},
	{"relay", (*bench).relay},
	{"path", (*bench).path},
	{"submit", (*bench).submit},
	{"stick", (*bench).stick},
	{"medium", (*bench).medium},
	{"seal", (*bench).seal},
	{"backlog", (*bench).backlog},
	{"wire", (*bench).wire},
	{"jobs", (*bench).jobs},
	{"carriers", (*bench).carriers},
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("# ")
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "`folder` of mochila and sendmail")
	flag.StringVar(&o.tmp, "tmp", os.TempDir(), "scratch `folder`, on the disk to measure")
	flag.IntVar(&o.reps, "reps", 3, "repetitions of each case")
	flag.BoolVar(&o.quick, "quick", false, "a tenth of the messages, once: to see that it works")
	flag.BoolVar(&o.keep, "keep", false, "leave the scratch folders of failed cases")
	flag.StringVar(&o.cases, "cases", "", "of sections relay, carriers and jobs only what matches this `pattern`, such as mochila.4k.s10, carrier.s3 or jobs.drain")
	flag.StringVar(&o.only, "only", "", "sections that match this `pattern`: limits, relay, path, submit, stick, medium, seal, backlog, wire, jobs, carriers")
	flag.StringVar(&o.doc, "doc", "", "write the report into this `document`, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o options) (err error) {
	pattern, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	cases, err := regexp.Compile(o.cases)
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	for _, p := range []string{"mochila", "sendmail"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return fmt.Errorf("%w: run make build", err)
		}
	}
	if o.quick {
		if o.doc != "" {
			return errors.New("-quick with -doc: a quick run has no figures to keep")
		}
		o.reps = 1
	}
	b := &bench{ctx: ctx, bin: bin, cases: cases, reps: o.reps, quick: o.quick, keep: o.keep, fig: newFigures(), skipped: map[string]bool{}}
	if b.tmp, err = os.MkdirTemp(o.tmp, "mochila-bench-"); err != nil {
		return err
	}
	defer func() {
		if !o.keep || os.Remove(b.tmp) == nil {
			os.RemoveAll(b.tmp)
		}
	}()
	// Postfix's own user walks through it
	if err := os.Chmod(b.tmp, 0o755); err != nil {
		return err
	}
	if b.text, err = readCorpus(); err != nil {
		return err
	}
	b.machine()
	var failed []string
	for _, s := range sections {
		if !pattern.MatchString(s.name) {
			continue
		}
		start := time.Now()
		err := s.run(b)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			log.Printf("FAILED %s: %v", s.name, err)
			failed = append(failed, s.name)
		}
		log.Printf("%s took %.0f s", s.name, time.Since(start).Seconds())
	}
	report := b.report()
	fmt.Print("\n" + report)
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	if o.doc != "" {
		return writeDoc(o.doc, report)
	}
	return nil
}

// scaled is n, or a tenth of it in a quick run.
func (b *bench) scaled(n int) int {
	if b.quick {
		return max(n/10, 5)
	}
	return n
}

// dir makes a scratch folder for one contestant's turn.
func (b *bench) dir() (string, error) {
	d, err := os.MkdirTemp(b.tmp, "run-")
	if err == nil {
		err = os.Chmod(d, 0o755)
	}
	return d, err
}

// failed is a case without a figure: the others go on.
func (b *bench) failed(name, dir string, err error) {
	log.Printf("FAILED %s: %v", name, err)
	if b.keep {
		kept := filepath.Join(b.tmp, fmt.Sprintf("failed-%s-%d", name, time.Now().UnixMilli()))
		log.Printf("kept: %s (%v)", kept, os.Rename(dir, kept))
	}
}
