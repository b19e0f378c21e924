package main

import (
	"os"
	"path/filepath"
	"time"

	"mochila/internal/seal"
)

// seal measures what sealing adds to a bundle of one chunk in a session that both ends know, what a hop through a relay
// adds to that, and what the first contacts carry along until the peer was heard.
func (b *bench) seal() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	now := time.Now()
	camp, err := seal.Create(filepath.Join(dir, "camp"), seal.Options{Name: "camp", Now: now})
	if err != nil {
		return err
	}
	hub, err := seal.Create(filepath.Join(dir, "hub"), seal.Options{Name: "hub", Now: now})
	if err != nil {
		return err
	}
	session, err := camp.NewSession(hub.Card(), now)
	if err != nil {
		return err
	}
	content := make([]byte, 10_000)
	item, err := session.AppendItem(nil, 1, [16]byte{1}, false, content)
	if err != nil {
		return err
	}
	first, err := session.AppendItem(nil, 2, [16]byte{2}, true, content)
	if err != nil {
		return err
	}
	hop, err := session.SealHop(3, [16]byte{3}, false, seal.Hop{Type: seal.PayloadBundle, Dest: hub.ID().Label(), Length: int64(len(item)), Expiry: now, HopLimit: 20})
	if err != nil {
		return err
	}
	b.fig.add("mochila.seal.bundle_bytes", float64(len(item)-len(content)))
	b.fig.add("mochila.seal.hop_bytes", float64(len(hop)))
	b.fig.add("mochila.seal.offer_bytes", float64(len(first)-len(item)))
	b.fig.show("mochila.seal.")
	return nil
}
