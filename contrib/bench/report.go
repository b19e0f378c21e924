package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"
)

// report is what a run found, as Markdown: facts of the machine, targets, and the figures side by side.
func (b *bench) report() string {
	var s strings.Builder
	if b.quick {
		s.WriteString("A quick run with a tenth of the messages: it shows that everything works, not how fast.\n\n")
	}
	fmt.Fprintf(&s, "Run of %s: %s. %s.\n", time.Now().UTC().Format("2 January 2006"), b.facts, b.peers)
	if v, ok := b.fig.get("limit.fsync.append_ms"); ok {
		n, _ := b.fig.get("limit.fsync.newfile_ms")
		w, _ := b.fig.get("limit.write.MB_per_s")
		fmt.Fprintf(&s, "fsync of 4 KiB appended to a file %s ms, of a new file %s ms (medians); 256 MiB written and synced at %s MB/s.\n", number(v), number(n), number(w))
	}
	if t := b.fig.targets(); strings.Count(t, "\n") > 2 {
		s.WriteString("\n" + t)
	}
	if t := b.relayTable(); t != "" {
		s.WriteString("\nSMTP to SMTP through a durable queue, messages a second (Postfix / mochila):\n\n" + t)
	}
	if t := b.carrierTable(); t != "" {
		s.WriteString("\nCarriers on this machine, from the contact to the Maildir at the other node; a network adds its own:\n\n" + t)
	}
	var names []string
	for _, n := range []string{
		"mochila.path.dir.4k.s10" + accept, "mochila.path.dir.4k.s10" + drain, "mochila.path.tcp.4k.s10" + accept, "mochila.path.tcp.4k.s10" + drain,
		"postfix.path.smtp.4k.s10" + accept, "postfix.path.smtp.4k.s10" + drain,
		"true.submit.par1.msgs_per_s", "postfix.submit.par1.msgs_per_s", "mochila.submit.par1.msgs_per_s", "mochila-drop.submit.par1.msgs_per_s",
		"true.submit.par8.msgs_per_s", "postfix.submit.par8.msgs_per_s", "mochila.submit.par8.msgs_per_s", "mochila-drop.submit.par8.msgs_per_s",
		"nncp.stick.exec.accept_msgs_per_s", "nncp.stick.exec.out_msgs_per_s", "nncp.stick.exec.in_msgs_per_s", "nncp.stick.exec.toss_msgs_per_s",
		"nncp.stick.exec.total_msgs_per_s", "nncp.stick.exec.medium_bytes_per_msg",
		"mochila.stick.smtp.accept_msgs_per_s", "mochila.stick.sendmail.accept_msgs_per_s", "mochila.stick.smtp.out_msgs_per_s", "mochila.stick.smtp.in_msgs_per_s",
		"mochila.stick.smtp.total_msgs_per_s", "mochila.stick.sendmail.total_msgs_per_s", "mochila.stick.smtp.medium_bytes_per_msg",
		"mochila.medium.raw_bytes_per_msg", "mochila.medium.bytes_per_msg", "mochila.medium.packets", "mochila.seal.offer_bytes",
		"mochila.backlog.accept_msgs_per_s", "mochila.backlog.anon_MiB", "mochila.backlog.rss_MiB", "mochila.backlog.restarted_anon_MiB",
		"mochila.backlog.restarted_rss_MiB", "mochila.backlog.restart_ms", "mochila.backlog.first_page_ms", "mochila.backlog.api_first_page_ms",
		"mochila.backlog.counts_ms", "mochila.backlog.api_counts_ms", "mochila.backlog.mailq_ms",
		"mochila.jobs.clients8.enqueue_per_s", "mochila.jobs.batch.enqueue_per_s", "mochila.jobs.process.enqueue_per_s", "mochila.jobs.version.starts_per_s",
		"fspl.jobs.process.enqueue_per_s", "mochila.jobs.ch1.drain_per_s", "mochila.jobs.ch1.cpu_ms_per_job", "mochila.jobs.ch4.drain_per_s", "mochila.jobs.ch4.cpu_ms_per_job",
		"exec.jobs.cpu_ms_per_job", "exec.jobs.drain_per_s", "fspl.jobs.drain_per_s",
		"mochila.jobs.waiting.first_page_ms", "mochila.jobs.waiting.counts_ms", "mochila.jobs.waiting.api_first_page_ms",
		"mochila.jobs.large.enqueue_MB_per_s", "mochila.jobs.large.run_anon_MiB", "mochila.jobs.large.camp_anon_MiB", "mochila.jobs.large.hub_anon_MiB",
		"cp.wire.MB_per_s", "mochila.wire.MB_per_s", "mochila.wire.sync.MB_per_s", "nncp.wire.MB_per_s",
	} {
		if _, ok := b.fig.get(n); ok {
			names = append(names, n)
		}
	}
	if len(names) > 0 {
		s.WriteString("\nThe other figures:\n\n| | median | least | most |\n|---|---|---|---|\n")
		for _, n := range names {
			s.WriteString(b.fig.row(n))
		}
	}
	return s.String()
}

// relayTable has one line for each size and number of sessions.
func (b *bench) relayTable() string {
	var s strings.Builder
	s.WriteString("| messages | sessions | accept | to drained | p50 of the 250, ms | p99, ms | CPU for each, ms | peak RSS, MiB |\n|---|---|---|---|---|---|---|---|\n")
	lines := 0
	for _, c := range relayCases {
		pair := func(figure string) string {
			one := func(who string) string {
				v, ok := b.fig.get(who + ".relay." + c.name + figure)
				if !ok {
					return "–"
				}
				return number(v)
			}
			return one("postfix") + " / " + one("mochila")
		}
		if _, ok := b.fig.get("mochila.relay." + c.name + drain); !ok {
			continue
		}
		size, _, _ := strings.Cut(c.name, ".")
		fmt.Fprintf(&s, "| %s | %d | %s | %s | %s | %s | %s | %s |\n", strings.NewReplacer("4k", "4 KiB", "100k", "100 KiB", "5m", "5 MiB").Replace(size), c.sessions,
			pair(accept), pair(drain), pair(".latency_p50_ms"), pair(".latency_p99_ms"), pair(".cpu_ms_per_msg"), pair(".peak_rss_MiB"))
		lines++
	}
	if lines == 0 {
		return ""
	}
	return s.String()
}

const (
	docBegin = "<!-- make bench writes from here -->\n"
	docEnd   = "<!-- to here -->\n"
)

// writeDoc puts the report between two marks of a document.
func writeDoc(path, report string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, found := bytes.Cut(text, []byte(docBegin))
	_, tail, ended := bytes.Cut(rest, []byte(docEnd))
	if !found || !ended {
		return fmt.Errorf("%s has no lines %q and %q", path, docBegin, docEnd)
	}
	return os.WriteFile(path, bytes.Join([][]byte{head, []byte(docBegin + "\n" + report + "\n" + docEnd), tail}, nil), 0o644)
}
