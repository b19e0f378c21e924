package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// stick measures the way by a folder that is carried: accept, write to the folder, read it, deliver. NNCP takes a
// process for each mail (nncp-exec), so mochila is measured with its sendmail, too.
func (b *bench) stick() error {
	n := b.scaled(300)
	mails := b.text.mailbox(n)
	for range b.reps {
		if err := b.nncpStick(mails); !b.missing("nncp", err) && err != nil {
			return fmt.Errorf("nncp: %w", err)
		}
		if err := b.mochilaStick("mochila.stick.smtp", mails, true); err != nil {
			return fmt.Errorf("mochila: %w", err)
		}
		if err := b.mochilaStick("mochila.stick.sendmail", mails, false); err != nil {
			return fmt.Errorf("mochila: %w", err)
		}
	}
	b.fig.show("nncp.stick.", "mochila.stick.")
	return nil
}

// stages times the parts of a way, and the whole.
type stages struct {
	b     *bench
	name  string
	n     int
	total time.Duration
}

func (s *stages) run(stage string, f func() error) error {
	start := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", stage, err)
	}
	d := time.Since(start)
	s.total += d
	s.b.fig.add(s.name+"."+stage+"_msgs_per_s", float64(s.n)/d.Seconds())
	return nil
}

func (s *stages) end() { s.b.fig.add(s.name+".total_msgs_per_s", float64(s.n)/s.total.Seconds()) }

// mochilaStick: camp's daemon takes the mails, then writes the stick; hub reads it without a daemon.
func (b *bench) mochilaStick(name string, mails [][]byte, bySMTP bool) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	maildir := filepath.Join(dir, "mail")
	p, err := b.newPair(dir, "maildir:"+maildir+"/%u")
	if err != nil {
		return err
	}
	// the stick is not plugged in until all are accepted
	away := p.stick + ".away"
	if err := os.Rename(p.stick, away); err != nil {
		return err
	}
	before, err := packets(away)
	if err != nil {
		return err
	}
	camp, err := b.serve(b.ctx, p.camp, p.campAddr)
	if err != nil {
		return err
	}
	defer camp.stop()
	s := &stages{b: b, name: name, n: len(mails)}
	err = s.run("accept", func() error {
		if bySMTP {
			_, err := load(b.ctx, p.campAddr, 10, len(mails), mails, 1)
			return err
		}
		return b.each(mails, append(camp.sendmail, "to@hub.example")...)
	})
	if err != nil {
		return err
	}
	if err := os.Rename(away, p.stick); err != nil {
		return err
	}
	if err := s.run("out", func() error { return b.mochila(p.camp, "sync", p.stick) }); err != nil {
		return err
	}
	after, err := packets(p.stick)
	if err != nil {
		return err
	}
	b.fig.add(name+".medium_bytes_per_msg", float64(after.bytes-before.bytes)/float64(len(mails)))
	if err := s.run("in", func() error { return b.mochila(p.hub, "sync", p.stick) }); err != nil {
		return err
	}
	s.end()
	return delivered(maildir, len(mails))
}

// each runs a command for each mail, one after the other.
func (b *bench) each(mails [][]byte, argv ...string) error {
	for _, m := range mails {
		c := exec.CommandContext(b.ctx, argv[0], argv[1:]...)
		c.Stdin = strings.NewReader(unixLines(m))
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// unixLines is a message as a local program gives it.
func unixLines(m []byte) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimSuffix(string(m), ".\r\n"), "\r\n", "\n"), "\n..", "\n.")
}

// delivered fails unless the Maildirs below root hold n mails.
func delivered(root string, n int) error {
	got := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) == "new" {
			got++
		}
		return err
	})
	if err == nil && got != n {
		err = fmt.Errorf("%d of %d mails were delivered", got, n)
	}
	return err
}

// lying counts what lies on a medium.
type lying struct {
	files int
	bytes int64
}

func packets(root string) (l lying, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != "" {
			return err
		}
		st, err := d.Info()
		if err == nil {
			l.files++
			l.bytes += st.Size()
		}
		return err
	})
	return l, err
}

// nncpKeys are what nncp-cfgnew makes for a node.
var nncpKeys = regexp.MustCompile(`(?m)^\s*(id|exchpub|exchprv|signpub|signprv|noiseprv|noisepub):\s*(\S+)`)

// nncpPair writes the configurations of two NNCP nodes; b delivers mail by running handler.
func (b *bench) nncpPair(dir, handler string) error {
	keys := map[string]map[string]string{}
	for _, node := range []string{"a", "b"} {
		out, err := exec.CommandContext(b.ctx, "nncp-cfgnew", "-nocomments").Output()
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("NNCP: %w: %w", errMissing, err)
		}
		if err != nil {
			return err
		}
		keys[node] = map[string]string{}
		for _, m := range nncpKeys.FindAllStringSubmatch(string(out), -1) {
			keys[node][m[1]] = m[2]
		}
		if err := os.MkdirAll(filepath.Join(dir, node, "spool"), 0o755); err != nil {
			return err
		}
	}
	for node, k := range keys {
		var s strings.Builder
		list := func(k map[string]string, names ...string) {
			for _, n := range names {
				fmt.Fprintf(&s, "   %s: %s\n", n, k[n])
			}
		}
		fmt.Fprintf(&s, "{\n spool: %[1]s/%[2]s/spool\n log: %[1]s/%[2]s/log\n self: {\n", dir, node)
		list(k, "id", "exchpub", "exchprv", "signpub", "signprv", "noiseprv", "noisepub")
		s.WriteString(" }\n neigh: {\n")
		for other, q := range keys {
			name := other
			if other == node {
				name = "self"
			}
			fmt.Fprintf(&s, "  %s: {\n", name)
			list(q, "id", "exchpub", "signpub", "noisepub")
			if other != node {
				fmt.Fprintf(&s, "   exec: {sendmail: [%q]}\n", handler)
			}
			s.WriteString("  }\n")
		}
		s.WriteString(" }\n}\n")
		if err := os.WriteFile(filepath.Join(dir, node+".hjson"), []byte(s.String()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// nncpStick sends the mails by nncp-exec and nncp-xfer; nncp-toss delivers them by a script that writes a Maildir.
func (b *bench) nncpStick(mails [][]byte) error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	maildir := filepath.Join(dir, "mail/to")
	handler, usb := filepath.Join(dir, "deliver.sh"), filepath.Join(dir, "usb")
	if err := errors.Join(os.MkdirAll(filepath.Join(maildir, "new"), 0o755), os.Mkdir(usb, 0o755),
		os.WriteFile(handler, []byte("#!/bin/sh\nexec cat >"+maildir+"/new/$$.camp\n"), 0o755)); err != nil {
		return err
	}
	if err := b.nncpPair(dir, handler); err != nil {
		return err
	}
	nncp := func(node, program string, args ...string) []string {
		return append([]string{"nncp-" + program, "-cfg", filepath.Join(dir, node+".hjson"), "-noprogress", "-quiet"}, args...)
	}
	s := &stages{b: b, name: "nncp.stick.exec", n: len(mails)}
	if err := s.run("accept", func() error { return b.each(mails, nncp("a", "exec", "b", "sendmail", "to@hub.example")...) }); err != nil {
		return err
	}
	for _, stage := range []struct {
		name string
		argv []string
	}{
		{"out", nncp("a", "xfer", "-mkdir", "-tx", usb)},
		{"in", nncp("b", "xfer", "-rx", usb)},
		{"toss", nncp("b", "toss")},
	} {
		if stage.name == "in" {
			l, err := packets(usb)
			if err != nil {
				return err
			}
			b.fig.add(s.name+".medium_bytes_per_msg", float64(l.bytes)/float64(len(mails)))
		}
		err := s.run(stage.name, func() error { _, err := command(b.ctx, nil, stage.argv...); return err })
		if err != nil {
			return err
		}
	}
	s.end()
	if err := delivered(filepath.Dir(maildir), len(mails)); err != nil {
		log.Printf("nncp: %v", err) // process ids came round: two mails in one file
	}
	return nil
}

// medium measures what a thousand small mails weigh on the stick, when they go in one trip.
func (b *bench) medium() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	mails := b.text.mailbox(1000)
	p, err := b.newPair(dir, "maildir:"+dir+"/mail/%u")
	if err != nil {
		return err
	}
	away := p.stick + ".away"
	if err := os.Rename(p.stick, away); err != nil {
		return err
	}
	before, err := packets(away)
	if err != nil {
		return err
	}
	camp, err := b.serve(b.ctx, p.camp, p.campAddr)
	if err != nil {
		return err
	}
	defer camp.stop()
	if _, err := load(b.ctx, p.campAddr, 10, len(mails), mails, 1); err != nil {
		return err
	}
	if err := os.Rename(away, p.stick); err != nil {
		return err
	}
	if err := b.mochila(p.camp, "sync", p.stick); err != nil {
		return err
	}
	after, err := packets(p.stick)
	if err != nil {
		return err
	}
	bytes, size := float64(after.bytes-before.bytes), float64(raw(mails))
	b.fig.add("mochila.medium.raw_bytes_per_msg", size/float64(len(mails)))
	b.fig.add("mochila.medium.bytes_per_msg", bytes/float64(len(mails)))
	b.fig.add("mochila.medium.packets", float64(after.files-before.files))
	b.fig.add("mochila.medium.part_of_raw", bytes/size)
	b.fig.show("mochila.medium.")
	return nil
}
