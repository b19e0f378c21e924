// Package account is the file of those who may log in at the SMTP port: people and programs with a name and a
// password. The file keeps no password: for each account it has an argon2id hash, against which PLAIN and LOGIN are
// checked, and the keys of SCRAM-SHA-256 (RFC 7677), with which nobody can log in who steals the file.
//
// The file (docs/smtp.md, "Accounts") is text with one account a line, mode 0600: one that others can read is refused.
// It is read again whenever it has changed, and written whole, durably.
package account

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"mochila/internal/durable"
)

// Bounds of the file and its fields.
const (
	maxFile     = 16 << 20
	maxName     = 64
	maxPassword = 1024 // octets; longer ones are refused before they are hashed
	minPassword = 8
	maxSendAs   = 100
)

// header is the first line of the file.
const header = "# mochila accounts 1: name, argon2id, SCRAM-SHA-256, sender patterns (docs/smtp.md)\n"

// Sentinel errors.
var (
	ErrExists  = errors.New("there is an account of that name already")
	ErrUnknown = errors.New("there is no account of that name")
	ErrDenied  = errors.New("wrong name or password")
)

// Account is one line of the file.
type Account struct {
	Name   string
	SendAs []string // sender patterns it may use; nil: any

	hash argon
	keys keys
}

// New makes an account. The password has 8 to 1024 octets without control characters.
func New(name, password string, sendAs []string) (*Account, error) {
	a := &Account{Name: name, SendAs: sendAs}
	if err := a.check(); err != nil {
		return nil, err
	}
	if err := a.SetPassword(password); err != nil {
		return nil, err
	}
	return a, nil
}

// SetPassword replaces both keys of the account.
func (a *Account) SetPassword(password string) error {
	if len(password) < minPassword || len(password) > maxPassword {
		return fmt.Errorf("a password has %d to %d characters", minPassword, maxPassword)
	}
	if strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
		return errors.New("a password is UTF-8 without control characters")
	}
	k, err := deriveKeys(a.Name, password)
	if err != nil {
		return err
	}
	a.hash, a.keys = newArgon(password), k
	return nil
}

func (a *Account) check() error {
	if err := CheckName(a.Name); err != nil {
		return err
	}
	if len(a.SendAs) > maxSendAs {
		return fmt.Errorf("more than %d sender patterns", maxSendAs)
	}
	for _, p := range a.SendAs {
		if p == "" || len(p) > 320 || strings.ContainsAny(p, " ,\t\r\n") || p == none {
			return fmt.Errorf("%q is not a sender pattern", p)
		}
	}
	return nil
}

// CheckName says what is wrong with the name of an account, nil if nothing: it has up to 64 letters, digits and
// "._+-@", so that an address can be one.
func CheckName(name string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._+-@", r))
	}
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, bad) || name[0] == '-' {
		return fmt.Errorf("%q is not an account name: up to %d letters, digits and ._+-@", name, maxName)
	}
	return nil
}

// none stands for an empty list of sender patterns.
const none = "-"

// line is the account as the file has it.
func (a *Account) line() string {
	sendAs := none
	if len(a.SendAs) > 0 {
		sendAs = strings.Join(a.SendAs, ",")
	}
	return a.Name + " " + a.hash.String() + " " + a.keys.String() + " " + sendAs + "\n"
}

// parse reads one line.
func parse(line string) (*Account, error) {
	f := strings.Split(line, " ")
	if len(f) != 4 {
		return nil, fmt.Errorf("%d fields, not 4", len(f))
	}
	a := &Account{Name: f[0]}
	if f[3] != none {
		a.SendAs = strings.Split(f[3], ",")
	}
	err := a.check()
	if err == nil {
		a.hash, err = parseArgon(f[1])
	}
	if err == nil {
		a.keys, err = parseKeys(f[2])
	}
	return a, err
}

// read parses a whole file.
func read(r io.Reader) (map[string]*Account, error) {
	all := map[string]*Account{}
	s := bufio.NewScanner(io.LimitReader(r, maxFile))
	s.Buffer(nil, 64<<10)
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		a, err := parse(line)
		if err == nil && all[a.Name] != nil {
			err = ErrExists
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		all[a.Name] = a
	}
	return all, s.Err()
}

// Book is an account file in use. It may be used from many goroutines.
type Book struct {
	path   string
	decoy  *Account // what unknown names are checked against, so that they take as long
	secret []byte   // for the decoy's salts
	hashes chan struct{}

	mu       sync.Mutex
	accounts map[string]*Account
	seen     fs.FileInfo // of the file that accounts came from; nil: there was none
}

// hashesAtOnce bounds the memory that argon2id takes (19 MiB each).
const hashesAtOnce = 4

// Open is a book at path. The file need not exist yet; it is read at the first use.
func Open(path string) *Book {
	b := &Book{path: path, hashes: make(chan struct{}, hashesAtOnce), accounts: map[string]*Account{}}
	b.decoy, b.secret = newDecoy()
	return b
}

// refresh reads the file if it has changed. The caller holds mu.
func (b *Book) refresh() error {
	fi, err := os.Stat(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		b.accounts, b.seen = map[string]*Account{}, nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("accounts: %w", err)
	}
	if b.seen != nil && os.SameFile(b.seen, fi) && b.seen.ModTime().Equal(fi.ModTime()) && b.seen.Size() == fi.Size() && b.seen.Mode() == fi.Mode() {
		return nil
	}
	f, err := os.Open(b.path)
	if err != nil {
		return fmt.Errorf("accounts: %w", err)
	}
	defer f.Close()
	if fi, err = f.Stat(); err != nil {
		return fmt.Errorf("accounts: %w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 || !fi.Mode().IsRegular() {
		return fmt.Errorf("accounts: %q is open to others (%v): chmod 600 it", b.path, fi.Mode())
	}
	all, err := read(f)
	if err != nil {
		return fmt.Errorf("accounts: %q: %w", b.path, err)
	}
	b.accounts, b.seen = all, fi
	return nil
}

// find returns an account; nil when there is none.
func (b *Book) find(name string) (*Account, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(); err != nil {
		return nil, err
	}
	return b.accounts[name], nil
}

// List returns all accounts by name.
func (b *Book) List() ([]*Account, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(); err != nil {
		return nil, err
	}
	list := make([]*Account, 0, len(b.accounts))
	for _, a := range b.accounts {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *Account) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Any reports whether there is an account. It costs a look at the file's date.
func (b *Book) Any() (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.refresh()
	return len(b.accounts) > 0, err
}

// Add stores a new account durably. It returns ErrExists when the name is taken.
func (b *Book) Add(a *Account) error {
	return b.change(func(all map[string]*Account) error {
		if all[a.Name] != nil {
			return ErrExists
		}
		all[a.Name] = a
		return nil
	})
}

// SetPassword gives an account another password. It returns ErrUnknown when there is no such account.
func (b *Book) SetPassword(name, password string) error {
	return b.change(func(all map[string]*Account) error {
		old := all[name]
		if old == nil {
			return ErrUnknown
		}
		a := *old
		if err := a.SetPassword(password); err != nil {
			return err
		}
		all[name] = &a
		return nil
	})
}

// Remove forgets an account. It returns ErrUnknown when there is no such account.
func (b *Book) Remove(name string) error {
	return b.change(func(all map[string]*Account) error {
		if all[name] == nil {
			return ErrUnknown
		}
		delete(all, name)
		return nil
	})
}

// change edits the accounts and writes the file.
func (b *Book) change(edit func(map[string]*Account) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(); err != nil {
		return err
	}
	all := make(map[string]*Account, len(b.accounts)+1)
	for name, a := range b.accounts {
		all[name] = a
	}
	if err := edit(all); err != nil {
		return err
	}
	var lines []string
	for _, a := range all {
		lines = append(lines, a.line())
	}
	slices.Sort(lines)
	var doc bytes.Buffer
	doc.WriteString(header)
	for _, l := range lines {
		doc.WriteString(l)
	}
	err := durable.WriteFile(durable.OS{}, b.path, 0o600, func(w io.Writer) error { _, err := w.Write(doc.Bytes()); return err })
	if err == nil {
		err = giveToOwner(b.path)
	}
	if err != nil {
		return fmt.Errorf("write the accounts: %w", err)
	}
	b.seen = nil // read what is on disk now at the next use
	return nil
}
