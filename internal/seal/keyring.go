package seal

import (
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// Lives of cards and keys, see docs/seal.md.
const (
	RotateEvery    = 30 * day // age at which RotateSealing makes a new sealing key
	DefaultMaxLife = 60 * day
	useFor         = 45 * day
	keepMargin     = 7*day + 14*day // sending life of a session, return grace
	keepErased     = 64             // cards of erased keys that are remembered
	maxKeyFile     = MaxCardSize + 1024
)

// Options say what a node's cards are to contain and where keys live. All but Name and Now may be left zero.
type Options struct {
	Name     string // Create only: 1 to 63 letters, digits, and - _ . inside
	Domains  []string
	Carriers []string
	Flags    uint32
	MaxLife  time.Duration // longest lifetime of an envelope for this node; zero is DefaultMaxLife
	Keep     time.Duration // life of sealing keys, when longer than their normal 66 days + MaxLife
	Now      time.Time
	Rand     io.Reader  // of keys, incarnations and nonces; nil is crypto/rand. Encapsulation ignores it
	FS       durable.FS // nil is the real one
}

// Keyring is a node's identity folder: the identity, its sealing keys and the wrapping key. Its methods may be called
// concurrently. One process at a time may have a folder open; the spool's lock sees to that.
type Keyring struct {
	fs       durable.FS
	dir      string
	rand     io.Reader
	flags    uint32
	maxLife  time.Duration
	keep     time.Duration
	identity ed25519.PrivateKey
	id       envelope.NodeID

	change sync.Mutex // held by whoever changes the folder

	mu      sync.RWMutex // guards what follows
	sealing []*Key       // by Serial, ascending; never changed in place
	wrapCur *wrapKey     // wraps
	wrapOld *wrapKey     // still unwraps, while a rotation is unfinished
}

// Key is one of the node's sealing keys. It is not changed once it is visible.
type Key struct {
	Serial  uint64 // of the first card issued for it: the key's name
	Card    *Card  // the last card issued for it
	seed    []byte // nil when erased
	private hpke.PrivateKey
}

// Erased reports whether only the card is left.
func (k *Key) Erased() bool { return k.private == nil }

// Create makes a new identity in the folder dir, with its first sealing key and card and, in revoke.card, the card
// that revokes it, to be kept elsewhere. It fails with fs.ErrExist when the folder holds an identity.
func Create(dir string, o Options) (*Keyring, error) {
	k := newKeyring(dir, o)
	if _, err := k.fs.Lstat(filepath.Join(dir, fileIdentity)); err == nil {
		return nil, fmt.Errorf("create an identity in %q: %w", dir, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create an identity: %w", err)
	}
	if !validName(o.Name) {
		return nil, fmt.Errorf("create an identity: the name %q: 1 to %d letters, digits, and - _ . inside", o.Name, maxName)
	}
	seed := k.random(ed25519.SeedSize)
	k.setIdentity(seed)
	if err := k.create(o, seed); err != nil {
		return nil, fmt.Errorf("create an identity in %q: %w", dir, err)
	}
	return k, nil
}

// create writes the files, the identity last: with it the folder is complete.
func (k *Keyring) create(o Options, seed []byte) error {
	if err := k.fs.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	if err := k.removeLeftovers(true); err != nil {
		return err
	}
	k.wrapCur = newWrapKey([32]byte(k.random(32)), o.Now)
	if err := k.write(fileWrap, k.wrapCur.bytes()); err != nil {
		return err
	}
	first := &Card{Name: o.Name, Domains: o.Domains, Carriers: o.Carriers, Flags: o.Flags}
	if _, err := k.newKey(o.Now, first, newIncarnation([8]byte{}, o.Now, k.random(3)), nil); err != nil {
		return err
	}
	revoke := &Card{ID: k.id, Name: o.Name, Serial: RevokedSerial, Published: o.Now}
	if err := revoke.finish(k.identity, nil); err != nil {
		return err
	}
	if err := k.write(fileRevoke, []byte(revoke.Text())); err != nil {
		return err
	}
	return k.write(fileIdentity, identityText(seed))
}

// Open loads the identity in the folder dir; of o only Flags, MaxLife, Keep, Rand and FS are used, and zero ones are
// taken over from the last card. ErrWrapLost means that the folder came back from a backup, which has no
// wrapping key: see Restore.
func Open(dir string, o Options) (*Keyring, error) {
	k, err := load(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open the identity in %q: %w", dir, err)
	}
	if k.last().Erased() {
		return nil, fmt.Errorf("open the identity in %q: %w", dir, ErrWrapLost)
	}
	return k, nil
}

// Restore opens an identity folder whose wrapping key is lost: it makes a new one, and a new incarnation with a new
// sealing key. Everything sealed to the old keys must be sealed again by its origins. On a whole folder it only makes
// the new incarnation.
func Restore(dir string, o Options) (*Keyring, error) {
	k, err := load(dir, o)
	if errors.Is(err, ErrWrapLost) {
		k.wrapCur = newWrapKey([32]byte(k.random(32)), o.Now)
		if err := k.write(fileWrap, k.wrapCur.bytes()); err != nil {
			return nil, fmt.Errorf("restore the identity in %q: %w", dir, err)
		}
		err = k.openKeys()
	}
	if err == nil {
		_, err = k.NewIncarnation(o.Now)
	}
	if err != nil {
		return nil, fmt.Errorf("restore the identity in %q: %w", dir, err)
	}
	return k, nil
}

func newKeyring(dir string, o Options) *Keyring {
	k := &Keyring{fs: o.FS, dir: dir, rand: o.Rand, flags: o.Flags, maxLife: o.MaxLife, keep: o.Keep}
	if k.fs == nil {
		k.fs = durable.OS{}
	}
	if k.rand == nil {
		k.rand = rand.Reader
	}
	return k
}

// load reads the folder. With ErrWrapLost it returns the keyring as far as it came: without keys.
func load(dir string, o Options) (*Keyring, error) {
	k := newKeyring(dir, o)
	b, err := k.read(fileIdentity, 4096)
	if err != nil {
		return nil, err
	}
	seed, err := parseIdentity(b)
	if err != nil {
		return nil, err
	}
	k.setIdentity(seed)
	if err := k.removeLeftovers(false); err != nil {
		return nil, err
	}
	if err := k.openWrap(); err != nil {
		return k, err
	}
	return k, k.openKeys()
}

func (k *Keyring) setIdentity(seed []byte) {
	k.identity = ed25519.NewKeyFromSeed(seed)
	k.id = envelope.NodeID(k.identity.Public().(ed25519.PublicKey))
}

// ID is the node's id.
func (k *Keyring) ID() envelope.NodeID { return k.id }

// Card is the newest card.
func (k *Keyring) Card() *Card { return k.last().Card }

// Incarnation is that of the newest card.
func (k *Keyring) Incarnation() [8]byte { return k.Card().Incarnation }

// Keys lists the sealing keys, oldest first: the live ones, and the cards of erased ones.
func (k *Keyring) Keys() []*Key { return slices.Clone(k.keys()) }

// keys is a snapshot.
func (k *Keyring) keys() []*Key {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.sealing
}

func (k *Keyring) last() *Key {
	keys := k.keys()
	return keys[len(keys)-1]
}

func (k *Keyring) sign(msg []byte) []byte { return ed25519.Sign(k.identity, msg) }

// Reissue issues a card with other hints for the same sealing key: a new serial, the same dates. When nothing
// differs, the card stays.
func (k *Keyring) Reissue(now time.Time, domains, carriers []string) (*Card, error) {
	k.change.Lock()
	defer k.change.Unlock()
	last := k.last()
	if slices.Equal(last.Card.Domains, domains) && slices.Equal(last.Card.Carriers, carriers) {
		return last.Card, nil
	}
	c := *last.Card
	c.Domains, c.Carriers = slices.Clone(domains), slices.Clone(carriers)
	c.Predecessor = envelope.NodeID{}
	c.Serial = k.nextSerial(now)
	if err := c.finish(k.identity, nil); err != nil {
		return nil, err
	}
	key := *last
	key.Card = &c
	if err := k.writeKey(&key); err != nil {
		return nil, err
	}
	k.replace(&key)
	return &c, nil
}

// RotateSealing makes a new sealing key and card when the current ones are RotateEvery old, and reports whether it
// did. The old key stays until EraseExpired.
func (k *Keyring) RotateSealing(now time.Time) (bool, error) {
	k.change.Lock()
	defer k.change.Unlock()
	c := k.Card()
	if now.Before(c.Published.Add(RotateEvery)) {
		return false, nil
	}
	_, err := k.newKey(now, c, c.Incarnation, nil)
	return err == nil, err
}

// NewIncarnation begins a new life of the spool, after a restored backup or a suspected clone: a new sealing key and
// a card that says so. Sessions of the old incarnation are to be drained.
func (k *Keyring) NewIncarnation(now time.Time) (*Card, error) {
	k.change.Lock()
	defer k.change.Unlock()
	c := k.Card()
	return k.newKey(now, c, newIncarnation(c.Incarnation, now, k.random(3)), nil)
}

// Succeed issues a card which old, another identity in this process, signs as its successor, and a new sealing key
// with it. Peers accept that only with their operators' consent.
func (k *Keyring) Succeed(now time.Time, old *Keyring) (*Card, error) {
	k.change.Lock()
	defer k.change.Unlock()
	c := k.Card()
	return k.newKey(now, c, c.Incarnation, old.identity)
}

// EraseExpired removes the secrets of sealing keys past their card's KeepUntil and returns their serials: the
// tombstones of sessions with such a KeySerial may go. The newest key always stays. Call RotateSealing first, and
// neither while the clock is suspect.
func (k *Keyring) EraseExpired(now time.Time) ([]uint64, error) {
	var serials []uint64
	keys := k.keys()
	for _, key := range keys[:len(keys)-1] {
		if key.Erased() || !now.After(key.Card.KeepUntil) {
			continue
		}
		if err := k.EraseKey(key.Serial); err != nil {
			return serials, err
		}
		serials = append(serials, key.Serial)
	}
	return serials, nil
}

// EraseKey removes the secret of one sealing key before its time: when every peer has confirmed a newer card and has
// nothing outstanding. Its card is kept, to name it in errors. The newest key is refused.
func (k *Keyring) EraseKey(serial uint64) error {
	k.change.Lock()
	defer k.change.Unlock()
	keys := k.keys()
	i := slices.IndexFunc(keys, func(key *Key) bool { return key.Serial == serial })
	switch {
	case i < 0:
		return fmt.Errorf("erase sealing key %d: no such key", serial)
	case i == len(keys)-1:
		return fmt.Errorf("erase sealing key %d: it is in use", serial)
	}
	key := &Key{Serial: serial, Card: keys[i].Card}
	if err := k.writeKey(key); err != nil {
		return fmt.Errorf("erase sealing key %d: %w", serial, err)
	}
	k.replace(key)
	return k.forgetErased()
}

// forgetErased drops the oldest cards of erased keys beyond keepErased.
func (k *Keyring) forgetErased() error {
	var erased []*Key
	for _, key := range k.keys() {
		if key.Erased() {
			erased = append(erased, key)
		}
	}
	for len(erased) > keepErased {
		if err := k.fs.Remove(k.keyPath(erased[0].Serial)); err != nil {
			return fmt.Errorf("forget sealing key %d: %w", erased[0].Serial, err)
		}
		k.mu.Lock()
		k.sealing = slices.DeleteFunc(slices.Clone(k.sealing), func(key *Key) bool { return key == erased[0] })
		k.mu.Unlock()
		erased = erased[1:]
	}
	return nil
}

// newKey makes, stores and publishes a sealing key. The caller holds change.
func (k *Keyring) newKey(now time.Time, like *Card, inc [8]byte, predecessor ed25519.PrivateKey) (*Card, error) {
	key := &Key{Serial: k.nextSerial(now), seed: k.random(32)}
	if err := key.unlock(); err != nil {
		return nil, err
	}
	c := &Card{
		ID: k.id, Name: like.Name, Serial: key.Serial, Incarnation: inc, Suite: SuiteHybrid,
		SealingKey: key.private.PublicKey().Bytes(), Flags: like.Flags, MaxLife: k.maxLife,
		Domains: slices.Clone(like.Domains), Carriers: slices.Clone(like.Carriers),
	}
	if k.flags != 0 {
		c.Flags = k.flags
	}
	if c.MaxLife == 0 {
		c.MaxLife = like.MaxLife
	}
	if c.MaxLife == 0 {
		c.MaxLife = DefaultMaxLife
	}
	c.MaxLife = c.MaxLife.Truncate(time.Second)
	c.Published = fromSeconds(seconds(now))
	c.UseUntil = c.Published.Add(useFor)
	c.KeepUntil = c.UseUntil.Add(keepMargin + c.MaxLife)
	if late := c.Published.Add(k.keep.Truncate(time.Second)); late.After(c.KeepUntil) {
		c.KeepUntil = late
	}
	if err := c.finish(k.identity, predecessor); err != nil {
		return nil, err
	}
	key.Card = c
	if err := k.writeKey(key); err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.sealing = append(slices.Clone(k.sealing), key)
	k.mu.Unlock()
	return c, nil
}

// nextSerial is above every serial this folder knows, and so is the clock's, usually, above those it has forgotten.
func (k *Keyring) nextSerial(now time.Time) uint64 {
	serial := seconds(now)
	for _, key := range k.keys() {
		serial = max(serial, key.Card.Serial+1)
	}
	return serial
}

func (k *Keyring) replace(key *Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sealing = slices.Clone(k.sealing)
	for i := range k.sealing {
		if k.sealing[i].Serial == key.Serial {
			k.sealing[i] = key
		}
	}
}
