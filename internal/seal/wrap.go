package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"mochila/internal/durable"
)

// A wrapped secret is: magic, purpose, key id 4, nonce 24, XChaCha20-Poly1305(aad = label ‖ purpose).
const (
	wrapMagic    = 0xB3
	wrapHead     = 2 + 4
	wrapOverhead = wrapHead + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	wrapFileSize = len(labelWrap) + 8 + 32 + 16
)

// What a wrapped secret is, so that none is taken for another.
const (
	wrapUser    byte = 1
	wrapSession byte = 2
	wrapSealing byte = 3
)

// Names in the identity folder.
const (
	fileIdentity = "id.key"
	fileWrap     = "wrap"
	fileWrapNext = "wrap.next"
	fileRevoke   = "revoke.card"
	prefixSeal   = "seal-"
)

type wrapKey struct {
	key  [32]byte
	id   [4]byte
	made time.Time
}

func newWrapKey(key [32]byte, made time.Time) *wrapKey {
	sum := sha256.Sum256(append([]byte(labelWrapID), key[:]...))
	return &wrapKey{key: key, id: [4]byte(sum[:4]), made: made}
}

// bytes is the content of the key's file: label, time, key, check.
func (w *wrapKey) bytes() []byte {
	b := binary.BigEndian.AppendUint64([]byte(labelWrap), seconds(w.made))
	b = append(b, w.key[:]...)
	sum := sha256.Sum256(b)
	return append(b, sum[:16]...)
}

// parseWrapKey accepts nothing but what bytes wrote: an overwritten key is no key.
func parseWrapKey(b []byte) (*wrapKey, error) {
	if len(b) != wrapFileSize {
		return nil, badFormat("wrapping key file of %d bytes", len(b))
	}
	at := len(labelWrap)
	made := binary.BigEndian.Uint64(b[at : at+8])
	if made == 0 || made > maxSeconds {
		return nil, badFormat("wrapping key file without date")
	}
	w := newWrapKey([32]byte(b[at+8:at+40]), fromSeconds(made))
	if !bytes.Equal(w.bytes(), b) {
		return nil, badFormat("wrapping key file is damaged or overwritten")
	}
	return w, nil
}

func (w *wrapKey) wrap(purpose byte, nonce [chacha20poly1305.NonceSizeX]byte, plain []byte) []byte {
	aead, err := chacha20poly1305.NewX(w.key[:])
	if err != nil {
		panic("seal: a key of 32 bytes was refused: " + err.Error()) // cannot happen
	}
	out := make([]byte, 0, len(plain)+wrapOverhead)
	out = append(append(append(out, wrapMagic, purpose), w.id[:]...), nonce[:]...)
	return aead.Seal(out, nonce[:], plain, wrapAAD(purpose))
}

func (w *wrapKey) unwrap(b []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(w.key[:])
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	plain, err := aead.Open(nil, b[wrapHead:wrapHead+chacha20poly1305.NonceSizeX], b[wrapHead+chacha20poly1305.NonceSizeX:], wrapAAD(b[1]))
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", ErrCorrupt)
	}
	return plain, nil
}

func wrapAAD(purpose byte) []byte { return append([]byte(labelWrap), purpose) }

// Wrap encrypts a secret of the caller's for storage on this node. It stays readable as long as every RotateWrap is
// given it to convert. Wrap (and Session.Marshal) inside the transaction that stores the result: what was wrapped
// before a RotateWrap and is stored after it cannot be read again.
func (k *Keyring) Wrap(plain []byte) []byte { return k.wrap(wrapUser, plain) }

// Unwrap returns what Wrap was given. ErrWrapped means that the key is gone, ErrCorrupt that the bytes changed.
func (k *Keyring) Unwrap(b []byte) ([]byte, error) { return k.unwrap(wrapUser, b) }

func (k *Keyring) wrap(purpose byte, plain []byte) []byte {
	k.mu.RLock()
	w := k.wrapCur
	k.mu.RUnlock()
	return w.wrap(purpose, [24]byte(k.random(24)), plain)
}

func (k *Keyring) unwrap(purpose byte, b []byte) ([]byte, error) {
	if len(b) < wrapOverhead || b[0] != wrapMagic {
		return nil, badFormat("not a wrapped secret")
	}
	if b[1] != purpose {
		return nil, badFormat("a wrapped secret of another kind")
	}
	w := k.wrapKeyFor(b)
	if w == nil {
		return nil, ErrWrapped
	}
	return w.unwrap(b)
}

func (k *Keyring) wrapKeyFor(b []byte) *wrapKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, w := range []*wrapKey{k.wrapCur, k.wrapOld} {
		if w != nil && [4]byte(b[2:6]) == w.id {
			return w
		}
	}
	return nil
}

// convert is what RotateWrap hands to its callback.
func (k *Keyring) convert(b []byte) ([]byte, error) {
	if len(b) < wrapOverhead || b[0] != wrapMagic {
		return nil, badFormat("not a wrapped secret")
	}
	k.mu.RLock()
	done := [4]byte(b[2:6]) == k.wrapCur.id
	k.mu.RUnlock()
	plain, err := k.unwrap(b[1], b)
	if err != nil {
		return nil, err
	}
	if done {
		return b, nil
	}
	return k.wrap(b[1], plain), nil
}

// WrapMade is when the wrapping key now in use was made.
func (k *Keyring) WrapMade() time.Time {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.wrapCur.made
}

// WrapPending reports whether an earlier RotateWrap did not come to its end, so that two wrapping keys are alive. The
// next RotateWrap goes on where that one stopped.
func (k *Keyring) WrapPending() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.wrapOld != nil
}

// RotateWrap makes everything that was deleted since the last time unreadable: it writes a new wrapping key, lets
// rewrap pass every live secret of the caller's (results of Wrap and Session.Marshal) through convert in one durable
// transaction, rewraps the sealing keys, and then overwrites and removes the old wrapping key. Until that last step
// both keys serve, so a crash or error anywhere leaves everything readable; the next call goes on from there.
// Secrets that convert refuses with ErrWrapped are lost already, and rewrap should drop them. rewrap must not call the
// methods that change the keyring (Reissue, RotateSealing, NewIncarnation, Erase…), nor wait for somebody who does.
func (k *Keyring) RotateWrap(now time.Time, rewrap func(convert func([]byte) ([]byte, error)) error) error {
	k.change.Lock()
	defer k.change.Unlock()
	if !k.WrapPending() {
		next := newWrapKey([32]byte(k.random(32)), now)
		if err := k.write(fileWrapNext, next.bytes()); err != nil {
			return fmt.Errorf("new wrapping key: %w", err)
		}
		k.mu.Lock()
		k.wrapOld, k.wrapCur = k.wrapCur, next
		k.mu.Unlock()
	}
	if err := rewrap(k.convert); err != nil {
		return fmt.Errorf("rewrap the stored secrets: %w", err)
	}
	for _, key := range k.keys() {
		if err := k.writeKey(key); err != nil {
			return fmt.Errorf("rewrap the sealing keys: %w", err)
		}
	}
	if err := k.retireWrap(); err != nil {
		return fmt.Errorf("erase the old wrapping key: %w", err)
	}
	k.mu.Lock()
	clear(k.wrapOld.key[:])
	k.wrapOld = nil
	k.mu.Unlock()
	return nil
}

// retireWrap overwrites the old key and lets the new one take its name.
func (k *Keyring) retireWrap() error {
	path := filepath.Join(k.dir, fileWrap)
	if err := overwrite(k.fs, path, k.random(wrapFileSize)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := k.fs.Rename(filepath.Join(k.dir, fileWrapNext), path); err != nil {
		return err
	}
	return k.fs.SyncDir(k.dir)
}

// overwrite replaces a file's bytes in place.
func overwrite(fsys durable.FS, path string, with []byte) error {
	f, err := fsys.OpenWrite(path)
	if err != nil {
		return err
	}
	_, err = f.Write(with)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// openWrap loads the wrapping keys, and finishes a rotation that had only to rename.
func (k *Keyring) openWrap() error {
	cur, err := k.readWrap(fileWrap)
	if err != nil {
		return err
	}
	next, err := k.readWrap(fileWrapNext)
	if err != nil {
		return err
	}
	switch {
	case next == nil && cur == nil:
		return ErrWrapLost
	case next == nil:
		k.wrapCur = cur
	case cur == nil || cur.id == next.id:
		k.wrapCur = next
		if err := k.retireWrap(); err != nil {
			return fmt.Errorf("erase the old wrapping key: %w", err)
		}
	default:
		k.wrapCur, k.wrapOld = next, cur
	}
	return nil
}

// readWrap returns nil for a key that is missing or overwritten.
func (k *Keyring) readWrap(name string) (*wrapKey, error) {
	b, err := k.read(name, int64(wrapFileSize)+1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w, err := parseWrapKey(b)
	if err != nil {
		return nil, nil
	}
	return w, nil
}

// read returns at most limit bytes of a file in the identity folder; more are an error.
func (k *Keyring) read(name string, limit int64) ([]byte, error) {
	f, err := k.fs.Open(filepath.Join(k.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = badFormat("longer than %d bytes", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", filepath.Join(k.dir, name), err)
	}
	return b, nil
}

// write puts a file of mode 0600 into the identity folder, durably.
func (k *Keyring) write(name string, b []byte) error {
	return durable.WriteFile(k.fs, filepath.Join(k.dir, name), 0o600, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// random returns n random bytes. Like crypto/rand, it does not return without them.
func (k *Keyring) random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(k.rand, b); err != nil {
		panic("seal: the random source failed: " + err.Error())
	}
	return b
}
