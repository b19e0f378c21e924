package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// pair is two nodes that know each other: camp sends everything for hub.example to hub.
type pair struct {
	camp, hub   string // homes
	stick       string // the folder between them
	campAddr    string // SMTP
	hubAddr     string
	campConfig  string
	hubConfig   string
	campPeering string // camp's file about hub
	hubPeering  string
}

// newPair makes and pairs two nodes below dir. What arrives at hub goes to via.
func (b *bench) newPair(dir, via string) (*pair, error) {
	p := &pair{camp: filepath.Join(dir, "camp"), hub: filepath.Join(dir, "hub"), stick: filepath.Join(dir, "stick")}
	p.campConfig, p.hubConfig = filepath.Join(p.camp, "mochila.toml"), filepath.Join(p.hub, "mochila.toml")
	p.campPeering, p.hubPeering = filepath.Join(p.camp, "peers/hub.toml"), filepath.Join(p.hub, "peers/camp.toml")
	var err error
	if p.campAddr, err = freeAddr(); err != nil {
		return nil, err
	}
	if p.hubAddr, err = freeAddr(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.stick, 0o755); err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error {
			return b.mochila(p.camp, "init", "camp", "--domain", "camp.example", "--listen", p.campAddr, "--maildir", filepath.Join(dir, "campmail"))
		},
		func() error {
			return b.mochila(p.hub, "init", "hub", "--domain", "hub.example", "--listen", p.hubAddr, "--deliver", via)
		},
		func() error { return b.mochila(p.camp, "invite", "hub", p.stick) },
		func() error { return b.mochila(p.hub, "join", p.stick, "--as", "camp") },
		func() error { return b.mochila(p.camp, "sync", p.stick) },
		func() error { return b.mochila(p.hub, "sync", p.stick) },
		func() error {
			return appendTo(p.campConfig, "\n[[route]]\nto = [\"hub.example\"]\nnode = \"hub\"\n")
		},
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// byTCP lets camp call hub instead of writing to the folder.
func (p *pair) byTCP() error {
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	carrier := fmt.Sprintf("carrier = %q", "dir:"+p.stick)
	return errors.Join(
		appendTo(p.hubConfig, fmt.Sprintf("\n[link]\nlisten = [%q]\n", addr)),
		replaceIn(p.campPeering, carrier, fmt.Sprintf("carrier = %q", "tcp:"+addr)),
		replaceIn(p.hubPeering, carrier, `when = "on-call"`))
}

// serve starts both daemons.
func (p *pair) serve(b *bench) (stop func(), err error) {
	hub, err := b.serve(b.ctx, p.hub, p.hubAddr)
	if err != nil {
		return nil, err
	}
	camp, err := b.serve(b.ctx, p.camp, p.campAddr)
	if err != nil {
		hub.stop()
		return nil, err
	}
	return func() { camp.stop(); hub.stop() }, nil
}

// path measures two hops from end to end: SMTP into camp, a carrier, hub, an SMTP sink. Postfix does the same by SMTP
// between two instances.
func (b *bench) path() error {
	n := b.scaled(1000)
	bodies := b.text.bodies(n, 4<<10)
	for range b.reps {
		for _, w := range []struct {
			name string
			run  func(dir, sink string) (string, func(), error)
		}{
			{"postfix.path.smtp", b.postfixChain},
			{"mochila.path.dir", func(dir, sink string) (string, func(), error) { return b.mochilaChain(dir, sink, false) }},
			{"mochila.path.tcp", func(dir, sink string) (string, func(), error) { return b.mochilaChain(dir, sink, true) }},
		} {
			if err := b.pathOnce(w.name, n, bodies, w.run); b.missing("postfix", err) {
				continue
			} else if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	b.fig.show("postfix.path.", "mochila.path.")
	return nil
}

func (b *bench) pathOnce(name string, n int, bodies [][]byte, start func(dir, sink string) (addr string, stop func(), err error)) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := newSink(n)
	if err != nil {
		return err
	}
	defer s.close()
	addr, stop, err := start(dir, s.addr())
	if err != nil {
		return err
	}
	defer stop()
	from := time.Now()
	l, err := load(b.ctx, addr, 10, n, bodies, 100)
	if err == nil {
		err = s.wait(b.ctx, time.Minute)
	}
	if err != nil {
		b.failed(name, dir, err)
		return nil
	}
	b.fig.add(name+".4k.s10"+accept, float64(n)/l.took.Seconds())
	b.fig.add(name+".4k.s10"+drain, float64(n)/time.Since(from).Seconds())
	return nil
}

func (b *bench) mochilaChain(dir, sink string, tcp bool) (string, func(), error) {
	p, err := b.newPair(dir, "smtp:"+sink)
	if err == nil && tcp {
		err = p.byTCP()
	}
	if err != nil {
		return "", nil, err
	}
	stop, err := p.serve(b)
	return p.campAddr, stop, err
}

func (b *bench) postfixChain(dir, sink string) (string, func(), error) {
	var between, in string
	var err error
	if between, err = freeAddr(); err == nil {
		in, err = freeAddr()
	}
	if err != nil {
		return "", nil, err
	}
	second, first := filepath.Join(dir, "b"), filepath.Join(dir, "a")
	if err := errors.Join(os.Mkdir(second, 0o755), os.Mkdir(first, 0o755)); err != nil {
		return "", nil, err
	}
	far, err := startPostfix(b.ctx, b, second, between, sink)
	if err != nil {
		return "", nil, err
	}
	near, err := startPostfix(b.ctx, b, first, in, between)
	if err != nil {
		far.stop()
		return "", nil, err
	}
	return in, func() { near.stop(); far.stop() }, nil
}
