package e2e

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/peertest"
	"mochila/transport"
	"mochila/transport/transporttest"
)

// BenchmarkSubmit hands packets of 10 kB to each carrier's real program, until that has them, and tells what they weigh
// there.
func BenchmarkSubmit(b *testing.B) {
	run := func(name, carrier string, weigh func() int64) {
		b.Run(name, func(b *testing.B) {
			c, err := transport.Parse(transport.Schemes(), carrier)
			if err != nil {
				b.Fatal(err)
			}
			before := weigh()
			b.SetBytes(10_000)
			i := uint64(0)
			for b.Loop() {
				i++
				if err := c.Submitter.Submit(b.Context(), transporttest.Packet(9, transporttest.Random(i, 10_000))); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(weigh()-before)/float64(i), "bytes/packet")
		})
	}
	dir := b.TempDir()
	run("exec", "exec:cat >"+dir+"/x.$MOCHILA_PACKET && sync -d "+dir+"/x.$MOCHILA_PACKET", func() int64 { return below(dir, "x.") })
	queue := filepath.Join(b.TempDir(), "q")
	peertest.Filespooler(b, queue)
	run("fspl", "fspl:"+queue, func() int64 { return below(queue, "fspl-") })
	n := peertest.StartNNCP(b, map[string]string{"camp": "", "hub": ""})
	spool := "&spool=" + url.QueryEscape(n.Spool("camp"))
	run("nncp", "nncp:hub?cfg="+n.Config("camp")+spool, func() int64 { return packetBytes(n.Packets("camp", "tx")) })
	u := peertest.StartUUCP(b, [2]string{"camp", "hub"}, "", nil)
	run("uucp", "uucp:hub?config="+u.Config("camp"), func() int64 { return below(filepath.Join(u.Dir, "camp/spool"), "") })
	p := peertest.StartPostfix(b, peertest.Options{Hostname: "mx.test", Mailboxes: []string{"letters@hub.example"}})
	mails := func() int64 {
		p.Flush()
		return packetBytes(p.Files("letters@hub.example"))
	}
	run("mail, SMTP", "mail:letters@hub.example?from=letters@camp.example&smtp="+p.Addr, mails)
	wrapper := filepath.Join(b.TempDir(), "sendmail")
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+strings.Join(p.Sendmail().Args, " ")+" \"$@\"\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	run("mail, sendmail", "mail:letters@hub.example?from=letters@camp.example&sendmail="+wrapper, mails)
}

func packetBytes(files []string) (n int64) {
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// below adds up the files below a folder whose names begin with a prefix.
func below(dir, prefix string) (n int64) {
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasPrefix(e.Name(), prefix) {
			if fi, err := e.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}
