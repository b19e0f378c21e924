package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"
)

// argon is an argon2id hash in the PHC string format: "$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH".
type argon struct {
	memory  uint32 // KiB
	time    uint32
	threads uint8
	salt    []byte
	hash    []byte
}

// The cost of new hashes: 19 MiB and two passes, some 20 ms on a small server.
const (
	argonMemory  = 19 << 10
	argonTime    = 2
	argonThreads = 1
)

// newArgon hashes a password with a fresh salt.
func newArgon(password string) argon {
	a := argon{memory: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, 16)}
	rand.Read(a.salt)
	a.hash = a.derive(password, 32)
	return a
}

func (a argon) derive(password string, n int) []byte {
	return argon2.IDKey([]byte(password), a.salt, a.time, a.memory, a.threads, uint32(n))
}

// matches compares in constant time.
func (a argon) matches(password string) bool {
	return subtle.ConstantTimeCompare(a.derive(password, len(a.hash)), a.hash) == 1
}

func (a argon) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, a.memory, a.time, a.threads,
		base64.RawStdEncoding.EncodeToString(a.salt), base64.RawStdEncoding.EncodeToString(a.hash))
}

// parseArgon reads String's form. Costs beyond 1 GiB or 64 passes are refused: a mistyped one would stop the server.
func parseArgon(s string) (a argon, err error) {
	var version int
	var rest string
	n, err := fmt.Sscanf(s, "$argon2id$v=%d$m=%d,t=%d,p=%d$%s", &version, &a.memory, &a.time, &a.threads, &rest)
	if err != nil || n != 5 || version != argon2.Version {
		return argon{}, errors.New("not an argon2id hash")
	}
	if a.memory < 8 || a.memory > 1<<20 || a.time < 1 || a.time > 64 || a.threads < 1 || a.threads > 64 {
		return argon{}, errors.New("argon2id cost is out of bounds")
	}
	salt, hash, ok := cutLast(rest, '$')
	if ok {
		a.salt, err = base64.RawStdEncoding.Strict().DecodeString(salt)
	}
	if ok && err == nil {
		a.hash, err = base64.RawStdEncoding.Strict().DecodeString(hash)
	}
	if !ok || err != nil || len(a.salt) < 8 || len(a.salt) > 64 || len(a.hash) < 16 || len(a.hash) > 64 || a.String() != s {
		return argon{}, errors.New("not an argon2id hash")
	}
	return a, nil
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// Login checks a password. It returns ErrDenied for an unknown name as for a wrong password, after the same work;
// any other error is trouble with the file.
func (b *Book) Login(ctx context.Context, name, password string) (*Account, error) {
	a, err := b.find(name)
	if err != nil {
		return nil, err
	}
	if len(password) > maxPassword {
		return nil, ErrDenied
	}
	select {
	case b.hashes <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-b.hashes }()
	if a == nil {
		b.decoy.hash.matches(password)
		return nil, ErrDenied
	}
	if !a.hash.matches(password) {
		return nil, ErrDenied
	}
	return a, nil
}
