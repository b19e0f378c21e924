package control

import (
	"context"
	"fmt"
	"time"

	"mochila/transport"
	"mochila/transport/serial"
)

// lookForDevice is how often a serial device is looked for that is not there.
const lookForDevice = 10 * time.Second

// listenSerial answers neighbours that call over a serial line.
func (d *daemon) listenSerial(ctx context.Context, url string) error {
	p, err := serial.Parse(url)
	if err != nil {
		e := hintOf(fmt.Errorf("listen for neighbours on %s: %w", url, err), ExitConfig)
		return e
	}
	d.listens = append(d.listens, "link:"+url)
	d.run(ctx, "link listener "+url, func(ctx context.Context) error {
		d.serveSerial(ctx, p)
		return nil
	})
	return nil
}

// serveSerial takes one call after the other until ctx ends. A device that is not there, or goes away, is looked for.
func (n *Node) serveSerial(ctx context.Context, p *serial.Port) {
	said := ""
	for ctx.Err() == nil {
		l, err := p.Listen()
		if err == nil {
			said = ""
			err = n.answerSerial(ctx, p, l)
			l.Close()
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			n.log.Warn("serial line", "service", "link", "line", p.String(), "err", hintOf(err, 0))
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookForDevice):
		}
	}
}

// answerSerial takes calls until the device fails.
func (n *Node) answerSerial(ctx context.Context, p *serial.Port, l *serial.Listener) error {
	for {
		s, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		stats, err := transport.Answer(ctx, s, n.bridge, p.Tune(n.stream()))
		log := n.log.Info
		if err != nil {
			log = n.log.Warn
		}
		log("contact over", "service", "link", "remote", p.String(), "in", stats.PacketsIn, "out", stats.PacketsOut,
			"bytes_in", stats.BytesIn, "bytes_out", stats.BytesOut, "err", err)
	}
}
