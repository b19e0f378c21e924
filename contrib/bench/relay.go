package main

import (
	"fmt"
	"os"
	"time"
)

// contestant is one that takes part in a section.
type contestant struct {
	name  string
	start starter
}

var relays = []contestant{{"postfix", startPostfix}, {"mochila", startMochila}}

// relayCase is a size of messages and a number of sessions.
type relayCase struct {
	name     string
	size     int
	sessions int
	n        int
}

var relayCases = []relayCase{
	{"4k.s1", 4 << 10, 1, 300},
	{"4k.s10", 4 << 10, 10, 1000},
	{"4k.s50", 4 << 10, 50, 1000},
	{"100k.s1", 100 << 10, 1, 100},
	{"100k.s10", 100 << 10, 10, 300},
	{"100k.s50", 100 << 10, 50, 300},
	{"5m.s1", 5 << 20, 1, 10},
	{"5m.s10", 5 << 20, 10, 30},
	{"5m.s50", 5 << 20, 50, 50},
}

// relay measures SMTP in, a durable queue, SMTP out. accept is the rate at which messages are answered 250, drain the rate
// until the last one is at the sink; latency is that of a message, from MAIL to the 250 after its end.
func (b *bench) relay() error {
	// what the harness could do without anybody in between
	if err := b.direct(); err != nil {
		return err
	}
	for _, c := range relayCases {
		who := relays
		if c.name == "4k.s10" {
			who = append(who, contestant{"postfix-tuned", startTunedPostfix})
		}
		bodies := b.text.bodies(c.n, c.size)
		for range b.reps {
			for _, w := range who {
				if !b.cases.MatchString(w.name + "." + c.name) {
					continue
				}
				if err := b.relayOnce(w, c, bodies); b.missing(w.name, err) {
					continue
				} else if err != nil {
					return fmt.Errorf("%s, %s: %w", w.name, c.name, err)
				}
			}
		}
		for _, w := range who {
			b.fig.show(w.name + ".relay." + c.name + ".")
		}
	}
	return nil
}

func (b *bench) direct() error {
	n := b.scaled(5000)
	s, err := newSink(n)
	if err != nil {
		return err
	}
	defer s.close()
	l, err := load(b.ctx, s.addr(), 10, n, b.text.bodies(n, 4<<10), 100)
	if err != nil {
		return err
	}
	b.fig.add("direct.relay.4k.s10"+drain, float64(n)/l.took.Seconds())
	b.fig.show("direct.")
	return nil
}

func (b *bench) relayOnce(w contestant, c relayCase, bodies [][]byte) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	n := b.scaled(c.n)
	s, err := newSink(n)
	if err != nil {
		return err
	}
	defer s.close()
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	m, err := w.start(b.ctx, b, dir, addr, s.addr())
	if err != nil {
		return err
	}
	defer m.stop()
	used, peaks := cpu(m.pid), watch(m.pid)
	start := time.Now()
	l, err := load(b.ctx, m.addr, c.sessions, n, bodies, 100)
	if err == nil {
		err = s.wait(b.ctx, time.Minute)
	}
	took := time.Since(start)
	used = cpu(m.pid) - used
	rss, anon := peaks()
	if err != nil {
		b.failed(w.name+"."+c.name, dir, err)
		return nil
	}
	p := w.name + ".relay." + c.name
	b.fig.add(p+accept, float64(n)/l.took.Seconds())
	b.fig.add(p+drain, float64(n)/took.Seconds())
	b.fig.add(p+".latency_p50_ms", l.p50.Seconds()*1e3)
	b.fig.add(p+".latency_p99_ms", l.p99.Seconds()*1e3)
	b.fig.add(p+".cpu_ms_per_msg", used.Seconds()*1e3/float64(n))
	b.fig.add(p+".peak_rss_MiB", float64(rss)/(1<<20))
	b.fig.add(p+".peak_anon_MiB", float64(anon)/(1<<20))
	return nil
}
