package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mochila/internal/durable/durabletest"
	"mochila/internal/envelope"
)

// indexOp is one operation on index or log, or something the process said, in the order of the kernel.
type indexOp struct {
	kind string // write, sync, truncate, say
	file string // its name in the spool
	off  int64
	data []byte
	size int64
	from int // sync: how many operations had ended when it began; later ones it need not have seen
}

var (
	straceLine = regexp.MustCompile(`^\d+\s+(\w+)\((\d+)<([^>]*)>(?:, (.*))?\)\s+= (-?\d+)`)
	straceData = regexp.MustCompile(`^"((?:\\x[0-9a-f]{2})*)", (\d+)(?:, (\d+))?$`)
)

// indexFiles are the files whose writes are recorded.
var indexFiles = []string{indexFile, walNames[0], walNames[1]}

// parseStrace reads the trace of one process: what it did to the index and its log in dir, and what it said.
func parseStrace(t *testing.T, text []byte, dir string) []indexOp {
	t.Helper()
	var ops []indexOp
	half := map[string]string{} // per thread, a call that another thread's interrupted
	began := map[string]int{}   // and how many operations there were when it began
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		pid, _, _ := strings.Cut(line, " ")
		if head, ok := strings.CutSuffix(line, " <unfinished ...>"); ok {
			half[pid], began[pid] = head, len(ops)
			continue
		}
		from := len(ops)
		if i := strings.Index(line, " resumed>"); i >= 0 {
			line = half[pid] + line[i+len(" resumed>"):]
			from = began[pid]
			delete(half, pid)
		}
		m := straceLine.FindStringSubmatch(line)
		if m == nil || m[5] == "-1" {
			continue
		}
		call, fd, path, args := m[1], m[2], unhex(m[3]), m[4]
		op := indexOp{file: filepath.Base(path)}
		switch {
		case call == "write" && fd == "1":
			op.kind = "say"
		case filepath.Dir(path) != dir || !slices.Contains(indexFiles, op.file):
			continue
		case call == "pwrite64":
			op.kind = "write"
		case call == "fdatasync" || call == "fsync":
			ops = append(ops, indexOp{kind: "sync", file: op.file, from: from})
			continue
		case call == "ftruncate":
			n, err := strconv.ParseInt(args, 10, 64)
			if err != nil {
				t.Fatalf("cannot read %q", line)
			}
			ops = append(ops, indexOp{kind: "truncate", file: op.file, size: n})
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

// image is what a disk holds of index and log: what is safe, and what has been done since, with the number of each
// operation.
type image struct {
	safe    map[string]sparse
	pending []indexOp
	number  []int
}

// sparse is a file without the zeros at its end.
type sparse struct {
	data []byte
	size int64
}

func (im *image) do(n int, op indexOp) {
	if op.kind != "sync" {
		im.pending, im.number = append(im.pending, op), append(im.number, n)
		return
	}
	covered := func(i int) bool { return im.pending[i].file == op.file && im.number[i] < op.from }
	im.safe = im.with(covered)
	var pending []indexOp
	var number []int
	for i := range im.pending {
		if !covered(i) {
			pending, number = append(pending, im.pending[i]), append(number, im.number[i])
		}
	}
	im.pending, im.number = pending, number
}

// with is the disk when of the pending operations those happened that pick wants (nil: all).
func (im *image) with(pick func(i int) bool) map[string]sparse {
	files := map[string]sparse{}
	for name, f := range im.safe {
		files[name] = sparse{bytes.Clone(f.data), f.size}
	}
	for i, op := range im.pending {
		if pick != nil && !pick(i) {
			continue
		}
		f := files[op.file]
		if op.kind == "truncate" {
			f.data, f.size = f.data[:min(int64(len(f.data)), op.size)], op.size
		} else {
			if need := int(op.off) + len(op.data); need > len(f.data) {
				f.data = append(f.data, make([]byte, need-len(f.data))...)
			}
			copy(f.data[op.off:], op.data)
			f.size = max(f.size, int64(len(f.data)))
		}
		files[op.file] = f
	}
	return files
}

// traces skips a test, loudly, where strace can do nothing, injections included.
func traces(t *testing.T, strace string) {
	t.Helper()
	out, err := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1000+", "true").CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED LOUDLY: strace cannot trace here (%v: %s): what needs it was not tried", err, out)
	}
}

// readSparse reads the files of a spool at rest.
func readSparse(t *testing.T, dir string) map[string]sparse {
	t.Helper()
	files := map[string]sparse{}
	for _, name := range indexFiles {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = sparse{bytes.TrimRight(b, "\x00"), int64(len(b))}
	}
	return files
}

// writeSparse makes them anew.
func writeSparse(t *testing.T, dir string, files map[string]sparse) {
	t.Helper()
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, f.size); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexPowerCuts records every write to the index and its log by a working process, and opens what a power cut may
// leave behind each of them: of the writes that were not synced all, none, those of one file, all but one, only one,
// chance selections, and half of the last one. The index is not synced between two checkpoints, so that the log must
// make up for whatever of it is lost.
func TestIndexPowerCuts(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIPPED LOUDLY: strace is not installed: the index's crash proof was not run")
	}
	// The process begins with what a crash left, so that its recovery is among what is cut off.
	dir := t.TempDir()
	heard := map[envelope.ID]promise{}
	for _, id := range logged(t, dir, Options{Log: 40 << 10}, 8, 500) {
		heard[id] = promise{size: 500}
	}
	base := readSparse(t, dir)
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
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p := &prover{t: t, dir: t.TempDir(), im: image{safe: base}, heard: heard, seen: map[string]bool{}, r: rand.New(rand.NewPCG(seed, 0))}
	syncs := map[string]int{}
	for n, op := range parseStrace(t, text, dir) {
		if op.kind == "say" {
			keep(p.heard, strings.Fields(string(op.data)))
			continue
		}
		if op.kind == "sync" {
			p.corners(n)
			syncs[op.file]++
		}
		p.im.do(n, op)
		p.check(p.im.with(nil), fmt.Sprintf("operation %d, all", n))
	}
	if len(p.heard) != 8+3*smallTurns() || syncs[indexFile] < 3 || syncs[walNames[0]] < 3 || syncs[walNames[1]] < 3 {
		t.Fatalf("%d items and %v syncs were traced: the proof saw too little", len(p.heard), syncs)
	}
	p.check(p.im.with(func(int) bool { return false }), "the end")
	t.Logf("%d different disks opened, %v syncs, %d commits made again", len(p.seen), syncs, p.redone)
	if p.redone == 0 {
		t.Error("no disk needed the log")
	}
}

// prover opens disks.
type prover struct {
	t      *testing.T
	dir    string
	im     image
	heard  map[envelope.ID]promise
	seen   map[string]bool
	r      *rand.Rand
	redone int
}

// chances is how many selections of unsynced writes are tried before each sync, and how many of the index's are left
// out or made alone.
func chances() int {
	if os.Getenv("MOCHILA_SOAK") != "" {
		return 20
	}
	return 3
}

// corners opens what may be left just before a sync, when the most is at stake.
func (p *prover) corners(n int) {
	p.t.Helper()
	isIndex := func(i int) bool { return p.im.pending[i].file == indexFile }
	p.check(p.im.with(func(int) bool { return false }), fmt.Sprintf("operation %d, none", n))
	p.check(p.im.with(isIndex), fmt.Sprintf("operation %d, the index only", n))
	p.check(p.im.with(func(i int) bool { return !isIndex(i) }), fmt.Sprintf("operation %d, the log only", n))
	var try []int
	for i := range p.im.pending {
		if !isIndex(i) {
			try = append(try, i)
		}
	}
	for range min(chances(), len(p.im.pending)) {
		try = append(try, p.r.IntN(len(p.im.pending)))
	}
	for _, i := range try {
		p.check(p.im.with(func(j int) bool { return i != j }), fmt.Sprintf("operation %d, all but %d", n, i))
		p.check(p.im.with(func(j int) bool { return i == j }), fmt.Sprintf("operation %d, only %d", n, i))
		for _, part := range []int{2, 50} {
			torn := p.im
			torn.pending = append([]indexOp(nil), torn.pending...)
			if op := &torn.pending[i]; op.kind == "write" {
				op.data = op.data[:len(op.data)/part]
				p.check(torn.with(nil), fmt.Sprintf("operation %d, %d torn", n, i))
			}
		}
	}
	for range chances() {
		mask := make([]bool, len(p.im.pending))
		for i := range mask {
			mask[i] = p.r.IntN(2) == 0
		}
		p.check(p.im.with(func(i int) bool { return mask[i] }), fmt.Sprintf("operation %d, writes %v", n, mask))
	}
}

// check opens files as index and log of a spool without body files. The same files with the same promises are opened
// once.
func (p *prover) check(files map[string]sparse, when string) {
	p.t.Helper()
	h := sha256.New()
	for _, name := range indexFiles {
		fmt.Fprintf(h, "%d %d ", files[name].size, len(files[name].data))
		h.Write(files[name].data)
	}
	changed, done := 0, 0
	for _, x := range p.heard {
		if x.changed {
			changed++
		}
		if x.done {
			done++
		}
	}
	key := fmt.Sprintf("%x %d %d %d", h.Sum(nil), len(p.heard), changed, done)
	if p.seen[key] {
		return
	}
	p.seen[key] = true
	writeSparse(p.t, p.dir, files)
	s, err := Open(p.dir, Options{FS: durabletest.New()})
	if err != nil {
		p.t.Errorf("%s: %v", when, err)
		return
	}
	if damage := s.Recovered().LogDamage; damage != "" {
		p.t.Errorf("%s: %s", when, damage)
	}
	p.redone += s.Recovered().Redone
	kept(p.t, s, p.heard, when)
	if err := s.Close(); err != nil {
		p.t.Errorf("%s: %v", when, err)
	}
}
