package spool

import (
	"fmt"
	"sync"
	"testing"

	"mochila/internal/envelope"
)

// parallel runs b.N calls of fn by n goroutines.
func parallel(b *testing.B, n int, fn func() error) {
	b.Helper()
	var wg sync.WaitGroup
	work := make(chan struct{}, 256)
	errs := make(chan error, n)
	b.ResetTimer()
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range work {
				if err := fn(); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	for range b.N {
		select {
		case work <- struct{}{}:
		case err := <-errs:
			b.Fatal(err)
		}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "/s")
}

// accept stores one mail of 1 KiB.
func accept(s *Spool, data []byte) (envelope.ID, error) {
	it := mail(data, "via:smtp:127.0.0.1:25")
	body := s.NewBody()
	body.Write(data)
	if err := body.Finish(); err != nil {
		return it.Env.ID, err
	}
	return it.Env.ID, s.Apply(func(tx *Tx) error { return tx.Add(it, body) })
}

// finish ends one mail as delivered.
func finish(s *Spool, id envelope.ID) error {
	return s.Apply(func(tx *Tx) error {
		it, err := tx.Item(id)
		if err != nil {
			return err
		}
		it.Legs[0].State = Done
		return tx.Save(it)
	})
}

func BenchmarkApply(b *testing.B) {
	data := make([]byte, 1024)
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			parallel(b, n, func() error { _, err := accept(s, data); return err })
		})
	}
}

func BenchmarkCycle(b *testing.B) {
	data := make([]byte, 1024)
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			parallel(b, n, func() error {
				id, err := accept(s, data)
				if err != nil {
					return err
				}
				return finish(s, id)
			})
		})
	}
}

// BenchmarkBodyFile stores mails of 32 KiB, each in a file of its own.
func BenchmarkBodyFile(b *testing.B) {
	data := make([]byte, 32<<10)
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			b.SetBytes(int64(len(data)))
			parallel(b, n, func() error { _, err := accept(s, data); return err })
		})
	}
}

func BenchmarkList(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	queue(b, s, 100_000)
	b.Run("page", func(b *testing.B) {
		for b.Loop() {
			if page, _, err := s.List(Query{Limit: 100}); err != nil || len(page) != 100 {
				b.Fatal(len(page), err)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			n := 0
			if _, _, err := s.List(Query{Match: func(*Item) bool { n++; return false }}); err != nil || n != 100_000 {
				b.Fatal(n, err)
			}
		}
	})
}

// BenchmarkOpen opens a spool with 100,000 mails.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	queue(b, s, 100_000)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLeaseUpTo looks for small content behind 20,000 large ones.
func BenchmarkLeaseUpTo(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	data := make([]byte, 17_000)
	for done := 0; done < 20_000; done += 1000 {
		err := s.Apply(func(tx *Tx) error {
			for range 1000 {
				it := mail(nil, "node:a")
				it.Env.Size = int64(len(data))
				if err := tx.Add(it, &Body{s: s, buf: data, size: int64(len(data)), finished: true}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if got, larger, err := s.LeaseUpTo("node:a", 512, 1<<20, 4096); len(got) != 0 || !larger || err != nil {
			b.Fatal(got, larger, err)
		}
	}
}
