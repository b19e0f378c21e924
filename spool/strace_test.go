package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"mochila/internal/durable/durabletest"
	"mochila/internal/envelope"
)

// indexOp is one operation on the index file, or something the process said, in the order of the kernel.
type indexOp struct {
	kind string // write, sync, truncate, say
	off  int64
	data []byte
	size int64
}

var (
	straceLine = regexp.MustCompile(`^\d+\s+(\w+)\((\d+)<([^>]*)>(?:, (.*))?\)\s+= (-?\d+)`)
	straceData = regexp.MustCompile(`^"((?:\\x[0-9a-f]{2})*)", (\d+)(?:, (\d+))?$`)
)

// parseStrace reads the trace of one process: what it did to the file named index, and what it said.
func parseStrace(t *testing.T, text []byte, index string) []indexOp {
	t.Helper()
	var ops []indexOp
	half := map[string]string{} // per thread, a call that another thread's interrupted
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		pid, _, _ := strings.Cut(line, " ")
		if head, ok := strings.CutSuffix(line, " <unfinished ...>"); ok {
			half[pid] = head
			continue
		}
		if i := strings.Index(line, " resumed>"); i >= 0 {
			line = half[pid] + line[i+len(" resumed>"):]
			delete(half, pid)
		}
		m := straceLine.FindStringSubmatch(line)
		if m == nil || m[5] == "-1" {
			continue
		}
		call, fd, path, args := m[1], m[2], unhex(m[3]), m[4]
		op := indexOp{}
		switch {
		case call == "write" && fd == "1":
			op.kind = "say"
		case path != index:
			continue
		case call == "pwrite64":
			op.kind = "write"
		case call == "fdatasync" || call == "fsync":
			ops = append(ops, indexOp{kind: "sync"})
			continue
		case call == "ftruncate":
			n, err := strconv.ParseInt(args, 10, 64)
			if err != nil {
				t.Fatalf("cannot read %q", line)
			}
			ops = append(ops, indexOp{kind: "truncate", size: n})
			continue
		default:
			continue
		}
		d := straceData.FindStringSubmatch(args)
		if d == nil {
			t.Fatalf("cannot read %.200q", line)
		}
		op.data = []byte(unhex(d[1]))
		if n, err := strconv.Atoi(d[2]); err != nil || n != len(op.data) || m[5] != d[2] {
			t.Fatalf("%d bytes of %s traced, %s written", len(op.data), d[2], m[5])
		}
		if op.kind == "write" {
			op.off, _ = strconv.ParseInt(d[3], 10, 64)
		}
		ops = append(ops, op)
	}
	return ops
}

// unhex decodes \x.. where there are any.
func unhex(s string) string {
	if !strings.HasPrefix(s, `\x`) {
		return s
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, `\x`, ""))
	if err != nil {
		return s
	}
	return string(b)
}

// image is an index file as a disk holds it: what is safe, and what has been done to it since.
type image struct {
	safe    []byte
	pending []indexOp
}

func (im *image) do(op indexOp) {
	if op.kind == "sync" {
		im.safe, im.pending = im.with(nil), nil
		return
	}
	im.pending = append(im.pending, op)
}

// with is the file when of the pending operations those happened that pick wants (nil: all).
func (im *image) with(pick func(i int) bool) []byte {
	b := bytes.Clone(im.safe)
	for i, op := range im.pending {
		if pick != nil && !pick(i) {
			continue
		}
		if op.kind == "truncate" {
			if op.size < int64(len(b)) {
				b = b[:op.size]
			} else {
				b = append(b, make([]byte, op.size-int64(len(b)))...)
			}
			continue
		}
		if need := int(op.off) + len(op.data); need > len(b) {
			b = append(b, make([]byte, need-len(b))...)
		}
		copy(b[op.off:], op.data)
	}
	return b
}

// traces skips a test, loudly, where strace can do nothing, injections included.
func traces(t *testing.T, strace string) {
	t.Helper()
	out, err := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1000+", "true").CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED LOUDLY: strace cannot trace here (%v: %s): what needs it was not tried", err, out)
	}
}

// TestIndexPowerCuts records every write to the index of a working process, and opens what a power cut may leave
// behind each of them: with all, none, all but one, and only one of the writes that were not synced, and with a
// half-written last one.
func TestIndexPowerCuts(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIPPED LOUDLY: strace is not installed: the index's crash proof was not run")
	}
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(dir, indexFile)
	base, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "strace")
	cmd := child(t, "small", dir, strace, "-f", "-y", "-e", "trace=write,pwrite64,pwritev,fdatasync,fsync,ftruncate,fallocate", "-e", "signal=none", "-xx", "-s", "100000000", "-o", log)
	if out, err := cmd.Output(); err != nil {
		traces(t, strace)
		t.Fatalf("the child: %v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	p := &prover{t: t, dir: t.TempDir(), im: image{safe: base}, heard: map[envelope.ID]promise{}, seen: map[string]bool{}}
	commits := 0
	for n, op := range parseStrace(t, text, index) {
		if op.kind == "say" {
			keep(p.heard, strings.Fields(string(op.data)))
			continue
		}
		if op.kind == "sync" {
			p.corners(n)
			commits++
		}
		p.im.do(op)
		p.check(p.im.with(nil), fmt.Sprintf("operation %d, all", n))
	}
	if len(p.heard) != 3*smallTurns() || commits < 10 {
		t.Fatalf("%d items and %d syncs were traced: the proof saw too little", len(p.heard), commits)
	}
	p.check(p.im.safe, "the end")
	t.Logf("%d different disks opened, %d syncs", len(p.seen), commits)
}

// prover opens disks.
type prover struct {
	t     *testing.T
	dir   string
	im    image
	heard map[envelope.ID]promise
	seen  map[string]bool
}

// corners opens what may be left just before a sync, when the most is at stake.
func (p *prover) corners(n int) {
	p.t.Helper()
	p.check(p.im.with(func(int) bool { return false }), fmt.Sprintf("operation %d, none", n))
	for i := range p.im.pending {
		p.check(p.im.with(func(j int) bool { return i != j }), fmt.Sprintf("operation %d, all but %d", n, i))
		p.check(p.im.with(func(j int) bool { return i == j }), fmt.Sprintf("operation %d, only %d", n, i))
	}
	if k := len(p.im.pending) - 1; k >= 0 && p.im.pending[k].kind == "write" {
		torn := p.im
		torn.pending = append([]indexOp(nil), torn.pending...)
		torn.pending[k].data = torn.pending[k].data[:len(torn.pending[k].data)/2]
		p.check(torn.with(nil), fmt.Sprintf("operation %d, last one torn", n))
		torn.pending[k].data = torn.pending[k].data[:min(80, len(torn.pending[k].data))]
		p.check(torn.with(nil), fmt.Sprintf("operation %d, last one torn early", n))
	}
}

// check opens a file as the index of a spool without body files. The same file with the same promises is opened once.
func (p *prover) check(file []byte, when string) {
	p.t.Helper()
	key := fmt.Sprintf("%x %v", sum(file), len(p.heard))
	for _, x := range p.heard {
		if x.changed {
			key += "c"
		}
		if x.done {
			key += "d"
		}
	}
	if p.seen[key] {
		return
	}
	p.seen[key] = true
	if err := os.WriteFile(filepath.Join(p.dir, indexFile), file, 0o600); err != nil {
		p.t.Fatal(err)
	}
	s, err := Open(p.dir, Options{FS: durabletest.New()})
	if err != nil {
		p.t.Errorf("%s: %v", when, err)
		return
	}
	kept(p.t, s, p.heard, when)
	if err := s.Close(); err != nil {
		p.t.Errorf("%s: %v", when, err)
	}
}

func sum(b []byte) [32]byte { return sha256.Sum256(b) }
