package transport_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/transport"
	"mochila/transport/fspl"
	"mochila/transport/transporttest"
)

// payloads are those of a queue.
func payloads(t *testing.T, dir string) (all [][]byte) {
	t.Helper()
	q, err := fspl.OpenQueue(dir)
	if err != nil {
		t.Fatal(err)
	}
	jobs, bad, err := q.List(t.Context())
	if err != nil || len(bad) > 0 {
		t.Fatal(bad, err)
	}
	for _, j := range jobs {
		r, err := j.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

func TestFilespoolerConforms(t *testing.T) {
	transporttest.TestSubmitter(t, func(t *testing.T) (transport.Submitter, func() [][]byte) {
		dir := t.TempDir()
		if _, err := fspl.InitQueue(dir); err != nil {
			t.Fatal(err)
		}
		return submitter(t, "fspl:"+dir), func() [][]byte { return payloads(t, dir) }
	})
}

// TestFilespoolerReads: the neighbour's queue is read natively: whole packets once each, half ones later, foreign jobs
// not at all.
func TestFilespoolerReads(t *testing.T) {
	out, in := t.TempDir(), t.TempDir()
	for _, dir := range []string{out, in} {
		if _, err := fspl.InitQueue(dir); err != nil {
			t.Fatal(err)
		}
	}
	there := transport.NewFilespooler(in, "", "")
	link := transport.NewSubmitLink(submitter(t, "fspl:"+out+"?in="+in), transport.SubmitOptions{})
	var packets []*transport.Packet
	for i := range 3 {
		packets = append(packets, transporttest.Packet(0, transporttest.Random(uint64(i), 1000*i+1)))
		if err := there.Submit(t.Context(), packets[i]); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(in, "jobs/*"))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	q, err := fspl.OpenQueue(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Write(filepath.Join(in, "other.seq"), fspl.NewUUID(), &fspl.Header{Kind: fspl.Command}, strings.NewReader("foreign")); err != nil {
		t.Fatal(err)
	}
	var half, other string
	var whole []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 2000 { // the third packet
			half, whole = f, b
		} else {
			other = f
		}
	}
	conflict := strings.TrimSuffix(other, ".fspl") + ".sync-conflict-20300101-000000-ABCDEFG.fspl"
	if b, err := os.ReadFile(other); err != nil || os.WriteFile(conflict, b, 0o644) != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(half, whole[:1500], 0o644); err != nil {
		t.Fatal(err)
	}
	st := transporttest.NewStation("")
	stats, err := link.Run(t.Context(), st)
	if err != nil || st.Count() != 2 || stats.Incomplete == 0 {
		t.Errorf("%+v, %v: %d packets", stats, err, st.Count())
	}
	if err := os.WriteFile(half, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	if stats, err = link.Run(t.Context(), st); err != nil {
		t.Errorf("%+v, %v", stats, err)
	}
	transporttest.RequireReceived(t, st, packets...)
	if left := payloads(t, in); len(left) != 1 || string(left[0]) != "foreign" {
		t.Errorf("left: %q", left)
	}
}

func TestFilespoolerAbsent(t *testing.T) {
	p := transporttest.Packet(0, []byte("x"))
	if err := submitter(t, "fspl:"+t.TempDir()+"/none").Submit(t.Context(), p); !errors.Is(err, transport.ErrAbsent) {
		t.Errorf("got %v", err)
	}
	for url, want := range map[string]string{
		"fspl:/q": "", "fspl:/q?in=/r&seq=/s": "", "fspl:": "no queue", "fspl:q": "absolute", "fspl:/q?in=/q": "same queue", "fspl:/q?in=r": "absolute",
	} {
		_, err := transport.Parse(transport.Schemes(), url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
