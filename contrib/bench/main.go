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
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	ctx   context.Context
	bin   string // where mochila and sendmail are
	tmp   string // scratch folder of the run
	reps  int
	quick bool
	keep  bool // the folders of failed cases
	fig   *figures
	text  *corpus

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
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("# ")
	bin := flag.String("bin", "bin", "`folder` of mochila and sendmail")
	tmp := flag.String("tmp", os.TempDir(), "scratch `folder`, on the disk to measure")
	reps := flag.Int("reps", 3, "repetitions of each case")
	quick := flag.Bool("quick", false, "a tenth of the messages, once: to see that it works")
	keep := flag.Bool("keep", false, "leave the scratch folders of failed cases")
	only := flag.String("only", "", "sections that match this `pattern`: limits, relay, path, submit, stick, medium, seal, backlog")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *bin, *tmp, *reps, *quick, *keep, *only)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, bin, tmp string, reps int, quick, keep bool, only string) (err error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	for _, p := range []string{"mochila", "sendmail"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return fmt.Errorf("%w: run make build", err)
		}
	}
	if quick {
		reps = 1
	}
	b := &bench{ctx: ctx, bin: bin, reps: reps, quick: quick, keep: keep, fig: newFigures(), skipped: map[string]bool{}}
	if b.tmp, err = os.MkdirTemp(tmp, "mochila-bench-"); err != nil {
		return err
	}
	defer func() {
		if !keep || os.Remove(b.tmp) == nil {
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
	for _, s := range sections {
		if !pattern.MatchString(s.name) {
			continue
		}
		start := time.Now()
		if err := s.run(b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		log.Printf("%s took %.0f s", s.name, time.Since(start).Seconds())
	}
	b.fig.table()
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
		kept := filepath.Join(b.tmp, "failed-"+name)
		log.Printf("kept: %s (%v)", kept, os.Rename(dir, kept))
	}
}
