package spool

import (
	"errors"
	"fmt"
	"syscall"
)

const (
	minReserve    = 500 << 20
	urgentReserve = 16 << 20 // what even receipts may not fill
)

// Free tells how many bytes the disk has left and how many in all.
func (s *Spool) Free() (free, total int64, err error) { return s.o.Free() }

// Full reports whether the disk reserve for mail is reached.
func (s *Spool) Full() bool { return s.room(false) != nil }

// room fails when the reserve is reached. Files that are kept to be written again are given back first.
func (s *Spool) room(urgent bool) error {
	err := s.short(urgent)
	if err != nil && s.dropSpares() {
		err = s.short(urgent)
	}
	return err
}

// short fails when the reserve is reached. A disk that does not tell its free space counts as having some: the write
// itself will tell.
func (s *Spool) short(urgent bool) error {
	if s.o.Reserve == 0 {
		return nil
	}
	free, total, err := s.o.Free()
	if err != nil {
		return nil
	}
	reserve := s.reserve(total, urgent)
	if free >= reserve {
		return nil
	}
	return fmt.Errorf("%w: %d MiB free on the spool's disk, %d MiB are kept free", ErrFull, free>>20, reserve>>20)
}

// reserve is what must stay free of a disk.
func (s *Spool) reserve(total int64, urgent bool) int64 {
	reserve := s.o.Reserve
	if reserve < 0 {
		reserve = max(total/20, minReserve)
	}
	if urgent {
		reserve = min(reserve, urgentReserve)
	}
	return reserve
}

// admit is room, asked once per commit.
func (tx *Tx) admit() error {
	k := 0
	if tx.urgent {
		k = 1
	}
	if tx.b.spaceAsked[k] {
		return tx.b.space[k]
	}
	tx.b.spaceAsked[k] = true
	tx.b.space[k] = tx.s.room(tx.urgent)
	if tx.b.space[k] == nil && !tx.urgent && tx.s.low() {
		tx.b.space[k] = fmt.Errorf("%w: the disk ran full, and has no room yet for the %d MiB that the spool keeps for itself", ErrFull, tx.s.ballast.size>>20)
	}
	return tx.b.space[k]
}

// diskError turns the system's "no space" into ErrFull.
func (s *Spool) diskError(err error) error {
	if (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && !errors.Is(err, ErrFull) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
