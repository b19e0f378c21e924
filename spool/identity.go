package spool

import (
	"fmt"
	"os"
	"strings"

	bolt "go.etcd.io/bbolt"

	"mochila/internal/durable"
)

// identity describes the index file as one object on one machine: inode, birth time, machine id. A copy has another.
// The birth time is empty where the file system has none, the machine id where the system has none.
func identity(path string) (string, error) {
	inode, birth, err := durable.Birth(path)
	if err != nil {
		return "", err
	}
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		machine = nil // not every system has one
	}
	born := ""
	if birth != 0 {
		born = fmt.Sprint(birth)
	}
	return fmt.Sprintf("%d %s %s", inode, born, strings.TrimSpace(string(machine))), nil
}

// sameIdentity compares two identities; what one of them does not know does not count.
func sameIdentity(a, b string) bool {
	x, y := strings.Split(a, " "), strings.Split(b, " ")
	if len(x) != 3 || len(y) != 3 || x[0] != y[0] {
		return false
	}
	for i := 1; i < 3; i++ {
		if x[i] != y[i] && x[i] != "" && y[i] != "" {
			return false
		}
	}
	return true
}

// putIdentity writes the identity of the file at path into its index.
func putIdentity(tx *bolt.Tx, path string) error {
	id, err := identity(path)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketNames[bkMeta].name).Put(metaIdentity, []byte(id))
}

// checkIdentity finds out whether the spool was copied or restored.
func (s *Spool) checkIdentity() error {
	is, err := identity(s.path(indexFile))
	if err != nil {
		return err
	}
	return s.db.View(func(tx *bolt.Tx) error {
		was := tx.Bucket(bucketNames[bkMeta].name).Get(metaIdentity)
		s.copied.Store(!sameIdentity(string(was), is))
		return nil
	})
}

// Copied reports whether the index is not the file that was written to last: the spool was copied, or restored from a
// backup, or the end of its log could not be read, and it has not been accepted since. What it remembers may be older than what its peers saw.
func (s *Spool) Copied() bool { return s.copied.Load() }

// AcceptCopy makes this copy the original; call it when the consequences have been drawn (a new incarnation).
func (s *Spool) AcceptCopy() error {
	err := s.Apply(func(tx *Tx) error {
		id, err := identity(s.path(indexFile))
		if err != nil {
			return err
		}
		return tx.put(bkMeta, metaIdentity, []byte(id))
	})
	if err == nil {
		s.copied.Store(false)
	}
	return err
}
