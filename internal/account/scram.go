package account

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/xdg-go/scram"
)

// keys are what a server keeps of a password for SCRAM-SHA-256, as "SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER"
// (RFC 5803's form).
type keys struct {
	iterations     int
	salt           []byte
	stored, server []byte
}

// iterations of new keys. The client pays them, at each login: some 30 ms on a telephone.
const iterations = 60_000

// deriveKeys makes the keys of a password with a fresh salt.
func deriveKeys(name, password string) (keys, error) {
	c, err := scram.SHA256.NewClient(name, password, "")
	if err != nil {
		return keys{}, errors.New("this password has characters that SCRAM (RFC 4013) does not allow")
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	s, err := c.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: iterations})
	if err != nil {
		return keys{}, fmt.Errorf("derive SCRAM keys: %w", err)
	}
	return keys{iterations: iterations, salt: salt, stored: s.StoredKey, server: s.ServerKey}, nil
}

func (k keys) String() string {
	e := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", k.iterations, e(k.salt), e(k.stored), e(k.server))
}

// parseKeys reads String's form.
func parseKeys(s string) (k keys, err error) {
	bad := errors.New("not keys of SCRAM-SHA-256")
	var rest string
	if n, err := fmt.Sscanf(s, "SCRAM-SHA-256$%d:%s", &k.iterations, &rest); err != nil || n != 2 || k.iterations < 4096 || k.iterations > 10_000_000 {
		return keys{}, bad
	}
	rest, server, ok1 := cutLast(rest, ':')
	salt, stored, ok2 := cutLast(rest, '$')
	if !ok1 || !ok2 {
		return keys{}, bad
	}
	for _, f := range []struct {
		to   *[]byte
		text string
	}{{&k.salt, salt}, {&k.stored, stored}, {&k.server, server}} {
		if *f.to, err = base64.StdEncoding.Strict().DecodeString(f.text); err != nil {
			return keys{}, bad
		}
	}
	if len(k.salt) < 8 || len(k.salt) > 64 || len(k.stored) != sha256.Size || len(k.server) != sha256.Size || k.String() != s {
		return keys{}, bad
	}
	return k, nil
}

// newDecoy is an account that nobody can log in to, and the secret from which its salts are made.
func newDecoy() (*Account, []byte) {
	secret := make([]byte, 32)
	rand.Read(secret)
	d := &Account{hash: argon{memory: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, 16), hash: make([]byte, 32)}}
	rand.Read(d.hash.hash)
	d.keys = keys{iterations: iterations, stored: make([]byte, sha256.Size), server: make([]byte, sha256.Size)}
	rand.Read(d.keys.stored)
	rand.Read(d.keys.server)
	return d, secret
}

// Exchange is one login by SCRAM-SHA-256. One goroutine may use it.
type Exchange struct {
	book *Book
	conv *scram.ServerConversation
	who  *Account
	err  error // of the file
}

// Exchange begins a login by SCRAM-SHA-256.
func (b *Book) Exchange() *Exchange {
	x := &Exchange{book: b}
	server, err := scram.SHA256.NewServer(x.lookup)
	if err != nil { // no such error exists with a lookup function
		x.err = err
		return x
	}
	x.conv = server.WithNonceGenerator(rand.Text).NewConversation()
	return x
}

// lookup gives an unknown name keys that fit no password, with a salt that is the same each time one asks.
func (x *Exchange) lookup(name string) (scram.StoredCredentials, error) {
	a, err := x.book.find(name)
	if err != nil {
		x.err = err
		return scram.StoredCredentials{}, err
	}
	x.who = a
	k := x.book.decoy.keys
	if a != nil {
		k = a.keys
	} else {
		m := hmac.New(sha256.New, x.book.secret)
		m.Write([]byte(name))
		k.salt = m.Sum(nil)[:16]
	}
	return scram.StoredCredentials{KeyFactors: scram.KeyFactors{Salt: string(k.salt), Iters: k.iterations}, StoredKey: k.stored, ServerKey: k.server}, nil
}

// Step takes a message of the client and returns the server's. With the last one it returns the account. The error is
// ErrDenied for whatever the client did wrong; any other is trouble with the file.
func (x *Exchange) Step(msg string) (reply string, who *Account, err error) {
	if x.conv == nil {
		return "", nil, x.err
	}
	reply, err = x.conv.Step(msg)
	switch {
	case x.err != nil:
		return "", nil, x.err
	case err != nil:
		return "", nil, ErrDenied
	case !x.conv.Done():
		return reply, nil, nil
	case !x.conv.Valid() || x.who == nil:
		return "", nil, ErrDenied
	}
	if z := x.conv.AuthzID(); z != "" && z != x.who.Name {
		return "", nil, ErrDenied
	}
	return reply, x.who, nil
}
