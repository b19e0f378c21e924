package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const backlogMails = 100_000

// backlog fills a node whose neighbour cannot be reached, and looks at its memory and its queue.
func (b *bench) backlog() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := b.newPair(dir, "maildir:"+dir+"/mail/%u")
	if err != nil {
		return err
	}
	if err := os.Rename(p.stick, p.stick+".away"); err != nil {
		return err
	}
	camp, err := b.serve(b.ctx, p.camp, p.campAddr)
	if err != nil {
		return err
	}
	defer func() { camp.stop() }()
	n := b.scaled(backlogMails)
	peaks := watch(camp.pid)
	l, err := load(b.ctx, p.campAddr, 50, n, b.text.bodies(n, 2<<10), 100)
	rss, anon := peaks()
	if err != nil {
		return err
	}
	b.fig.add("mochila.backlog.accept_msgs_per_s", float64(n)/l.took.Seconds())
	b.fig.add("mochila.backlog.filling_peak_rss_MiB", float64(rss)/(1<<20))
	b.fig.add("mochila.backlog.filling_peak_anon_MiB", float64(anon)/(1<<20))
	b.backlogMemory(camp.pid, "")
	if err := b.lookAtQueue(p.camp, n); err != nil {
		return err
	}
	b.backlogMemory(camp.pid, "looked_")
	if err := camp.stop(); err != nil {
		return err
	}
	start := time.Now()
	if camp, err = b.serve(b.ctx, p.camp, p.campAddr); err != nil {
		return err
	}
	b.fig.add("mochila.backlog.restart_ms", time.Since(start).Seconds()*1e3)
	b.backlogMemory(camp.pid, "restarted_")
	b.fig.show("mochila.backlog.")
	return nil
}

func (b *bench) backlogMemory(pid int, when string) {
	rss, _, anon := memory(pid)
	b.fig.add("mochila.backlog."+when+"rss_MiB", float64(rss)/(1<<20))
	b.fig.add("mochila.backlog."+when+"anon_MiB", float64(anon)/(1<<20))
}

// lookAtQueue times the whole mailq and a first page as commands, process start included, and the same by the API.
func (b *bench) lookAtQueue(home string, n int) error {
	timed := func(name string, f func() error) error {
		for range 5 {
			start := time.Now()
			if err := f(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			b.fig.add("mochila.backlog."+name+"_ms", time.Since(start).Seconds()*1e3)
		}
		return nil
	}
	api := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(home, "run/control.sock"))
	}}}
	defer api.CloseIdleConnections()
	get := func(path string, out any) error {
		r, err := api.Get("http://mochila" + path)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(r.Body)
			return fmt.Errorf("%s: %s", r.Status, text)
		}
		return json.NewDecoder(r.Body).Decode(out)
	}
	var page struct {
		Items []json.RawMessage `json:"items"`
		Count int               `json:"count"`
	}
	var status struct {
		Queues []struct {
			Due, Deferred, Travelling int
		} `json:"queues"`
	}
	return errors.Join(
		timed("mailq", func() error { return b.mochila(home, "mailq") }),
		timed("first_page", func() error { return b.mochila(home, "mailq", "--limit", "100") }),
		timed("counts", func() error { return b.mochila(home, "status") }),
		timed("api_first_page", func() error {
			err := get("/v1/queue?limit=100", &page)
			if err == nil && (len(page.Items) != 100 || page.Count < n) {
				err = fmt.Errorf("%d items of %d", len(page.Items), page.Count)
			}
			return err
		}),
		timed("api_counts", func() error { return get("/v1/status", &status) }),
	)
}
