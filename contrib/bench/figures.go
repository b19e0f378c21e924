package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// figures are the results of a run. An absent one is no error: a peer may be missing.
type figures struct {
	values map[string][]float64
}

func newFigures() *figures { return &figures{values: map[string][]float64{}} }

// add remembers one value of a figure.
func (f *figures) add(name string, v float64) { f.values[name] = append(f.values[name], v) }

// show prints the figures whose names begin with one of the prefixes, in order of their names.
func (f *figures) show(prefixes ...string) {
	var names []string
	for n := range f.values {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(n, p) }) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		v := f.values[n]
		fmt.Fprintf(os.Stdout, "%s %s min=%s max=%s n=%d\n", n, number(median(v)), number(slices.Min(v)), number(slices.Max(v)), len(v))
	}
}

// get is the median of a figure.
func (f *figures) get(name string) (float64, bool) {
	v, ok := f.values[name]
	if !ok || len(v) == 0 {
		return 0, false
	}
	return median(v), true
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// number prints four digits or all before the point.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprint(int64(v))
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// row is one line of the table: a figure, or its ratio to a peer's, beside what it should be.
type row struct {
	what   string
	figure string
	peer   string // ratio to this figure when set
	scale  float64
	unit   string
	least  float64 // target: at least this
	most   float64 // target: at most this, when least is 0
}

const (
	accept = ".accept_msgs_per_s"
	drain  = ".drain_msgs_per_s"
)

// rows are the targets that mochila has set itself.
var rows = []row{
	{what: "accept, 10 sessions × 4 KiB", figure: "mochila.relay.4k.s10" + accept, peer: "postfix.relay.4k.s10" + accept, unit: "× Postfix", least: 8},
	{what: "accept to drained, 10 sessions × 4 KiB", figure: "mochila.relay.4k.s10" + drain, peer: "postfix.relay.4k.s10" + drain, unit: "× Postfix", least: 5},
	{what: "accept to drained, 1 session × 100 KiB", figure: "mochila.relay.100k.s1" + drain, peer: "postfix.relay.100k.s1" + drain, unit: "× Postfix", least: 3},
	{what: "accept to drained, 1 session × 5 MiB", figure: "mochila.relay.5m.s1" + drain, peer: "postfix.relay.5m.s1" + drain, unit: "× Postfix", least: 3},
	{what: "accept, against a tuned Postfix", figure: "mochila.relay.4k.s10" + accept, peer: "postfix-tuned.relay.4k.s10" + accept, unit: "× Postfix"},
	{what: "accept to drained, against a tuned Postfix", figure: "mochila.relay.4k.s10" + drain, peer: "postfix-tuned.relay.4k.s10" + drain, unit: "× Postfix"},
	{what: "p99 of the 250, 50 sessions × 4 KiB", figure: "mochila.relay.4k.s50.latency_p99_ms", unit: "ms", most: 100},
	{what: "the same, Postfix", figure: "postfix.relay.4k.s50.latency_p99_ms", unit: "ms"},
	{what: "CPU for a relayed 4 KiB mail, 10 sessions", figure: "mochila.relay.4k.s10.cpu_ms_per_msg", unit: "ms", most: 1},
	{what: "the same, Postfix", figure: "postfix.relay.4k.s10.cpu_ms_per_msg", unit: "ms"},
	{what: "peak RSS, 50 sessions × 4 KiB", figure: "mochila.relay.4k.s50.peak_rss_MiB", unit: "MiB", most: 64},
	{what: "the same without file pages", figure: "mochila.relay.4k.s50.peak_anon_MiB", unit: "MiB"},
	{what: "stick: accept by SMTP, out, in, Maildir", figure: "mochila.stick.smtp.total_msgs_per_s", peer: "nncp.stick.exec.total_msgs_per_s", unit: "× NNCP", least: 15},
	{what: "the same, one sendmail for each mail", figure: "mochila.stick.sendmail.total_msgs_per_s", peer: "nncp.stick.exec.total_msgs_per_s", unit: "× NNCP"},
	{what: "sendmail, one after the other", figure: "mochila.submit.par1.msgs_per_s", peer: "postfix.submit.par1.msgs_per_s", unit: "× Postfix", least: 2.5},
	{what: "sendmail, 8 at a time", figure: "mochila.submit.par8.msgs_per_s", peer: "postfix.submit.par8.msgs_per_s", unit: "× Postfix", least: 2.5},
	{what: "sendmail, one after the other", figure: "mochila.submit.par1.msgs_per_s", peer: "true.submit.par1.msgs_per_s", unit: "of /bin/true", least: 0.55},
	{what: "sendmail, 8 at a time", figure: "mochila.submit.par8.msgs_per_s", peer: "true.submit.par8.msgs_per_s", unit: "of /bin/true", least: 0.55},
	{what: "bytes on the medium for a byte of mail, 1,000 small mails", figure: "mochila.medium.part_of_raw", scale: 100, unit: "%"},
	{what: "seal, for a bundle", figure: "mochila.seal.bundle_bytes", unit: "bytes", most: 48},
	{what: "seal, for a relayed hop more", figure: "mochila.seal.hop_bytes", unit: "bytes", most: 88},
	{what: "RssAnon with 100,000 queued mails", figure: "mochila.backlog.anon_MiB", unit: "MiB", most: 64},
	{what: "mailq, first page", figure: "mochila.backlog.first_page_ms", unit: "ms", most: 50},
	{what: "mailq, counts", figure: "mochila.backlog.counts_ms", unit: "ms", most: 50},
	{what: "jobs: enqueue, 8 clients on the socket", figure: "mochila.jobs.clients8.enqueue_per_s", unit: "jobs/s", least: 1000},
	{what: "jobs: enqueue, run --batch", figure: "mochila.jobs.batch.enqueue_per_s", unit: "jobs/s", least: 1000},
	{what: "jobs: enqueue, 8 clients, against prepare and queue-write", figure: "mochila.jobs.clients8.enqueue_per_s", peer: "fspl.jobs.process.enqueue_per_s", unit: "× fspl", least: 12},
	{what: "jobs: enqueue, one mochila run for each", figure: "mochila.jobs.process.enqueue_per_s", unit: "jobs/s", least: 90},
	{what: "jobs: drain of one channel, against a loop of os/exec", figure: "mochila.jobs.ch1.drain_of_exec", unit: "of os/exec", least: 0.8},
	{what: "jobs: drain of four channels, against the same loop", figure: "mochila.jobs.ch4.drain_of_exec", unit: "of os/exec", least: 0.8},
	{what: "jobs: drain of one channel, against queue-process", figure: "mochila.jobs.ch1.drain_per_s", peer: "fspl.jobs.drain_per_s", unit: "× fspl"},
	{what: "jobs: reading, opening and storing sealed jobs, for the time of their drain", figure: "mochila.jobs.ch1.sealed_more_pct", unit: "%", most: 10},
	{what: "jobs: first page of 50,000 waiting, with the process", figure: "mochila.jobs.waiting.first_page_ms", unit: "ms", most: 50},
	{what: "jobs: counts of 50,000 waiting, with the process", figure: "mochila.jobs.waiting.counts_ms", unit: "ms", most: 50},
	{what: "jobs: RssAnon with 1 GiB of input, most of three processes", figure: "mochila.jobs.large.most_anon_MiB", unit: "MiB", most: 64},
	{what: "wire: packed at one node to durable at the other, one large packet", figure: "mochila.wire.MB_per_s", peer: "cp.wire.MB_per_s", unit: "of cp and fsync", least: 0.5},
	{what: "the same, against NNCP's transfer without its checking", figure: "mochila.wire.MB_per_s", peer: "nncp.wire.MB_per_s", unit: "× NNCP", least: 4},
	{what: "mailq, all", figure: "mochila.backlog.mailq_ms", unit: "ms", most: 500},
}

// row is one figure as a line of a Markdown table.
func (f *figures) row(name string) string {
	v := f.values[name]
	return fmt.Sprintf("| %s | %s | %s | %s |\n", name, number(median(v)), number(slices.Min(v)), number(slices.Max(v)))
}

// targets are the rows that were measured, as a Markdown table.
func (f *figures) targets() string {
	var s strings.Builder
	s.WriteString("| | measured | target | |\n|---|---|---|---|\n")
	for _, r := range rows {
		v, ok := f.get(r.figure)
		if !ok {
			continue
		}
		if r.peer != "" {
			p, ok := f.get(r.peer)
			if !ok || p == 0 {
				continue
			}
			v /= p
		}
		if r.scale != 0 {
			v *= r.scale
		}
		target, verdict := "", ""
		switch {
		case r.least > 0:
			target, verdict = "≥ "+number(r.least), mark(v >= r.least)
		case r.most > 0:
			target, verdict = "≤ "+number(r.most), mark(v <= r.most)
		}
		fmt.Fprintf(&s, "| %s | %s %s | %s | %s |\n", r.what, number(v), r.unit, target, verdict)
	}
	return s.String()
}

func mark(ok bool) string {
	if ok {
		return "met"
	}
	return "**missed**"
}
