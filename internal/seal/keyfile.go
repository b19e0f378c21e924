package seal

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

// removeLeftovers removes temporary files and, before a creation, keys of one that did not come to its end.
func (k *Keyring) removeLeftovers(keys bool) error {
	list, err := k.fs.ReadDir(k.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), durable.TempPrefix) || keys && (strings.HasPrefix(e.Name(), prefixSeal) || e.Name() == fileWrapNext) {
			if err := k.fs.Remove(filepath.Join(k.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// openKeys loads the sealing keys. One whose secret can't be unwrapped counts as erased.
func (k *Keyring) openKeys() error {
	list, err := k.fs.ReadDir(k.dir)
	if err != nil {
		return err
	}
	k.sealing = nil
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), prefixSeal) {
			continue
		}
		b, err := k.read(e.Name(), maxKeyFile)
		if err != nil {
			return err
		}
		key, err := k.parseKey(b)
		if err != nil {
			return fmt.Errorf("%q: %w", e.Name(), err)
		}
		k.sealing = append(k.sealing, key)
	}
	if len(k.sealing) == 0 {
		return errors.New("no sealing key files")
	}
	slices.SortFunc(k.sealing, func(a, b *Key) int { return cmp.Compare(a.Serial, b.Serial) })
	return nil
}

// keyMagic begins a sealing key's file; its last byte is the version.
const keyMagic = "mseal\x01"

func (k *Keyring) keyPath(serial uint64) string {
	return filepath.Join(k.dir, prefixSeal+strconv.FormatUint(serial, 10))
}

// writeKey stores a key, its secret under the current wrapping key.
func (k *Keyring) writeKey(key *Key) error {
	e := envelope.Enc{B: []byte(keyMagic)}
	e.Uint(1, key.Serial)
	e.Bytes(2, key.Card.raw)
	if key.seed != nil {
		e.Bytes(3, k.wrap(wrapSealing, key.seed))
	}
	return k.write(filepath.Base(k.keyPath(key.Serial)), e.B)
}

func (k *Keyring) parseKey(b []byte) (*Key, error) {
	rest, ok := bytes.CutPrefix(b, []byte(keyMagic))
	if !ok {
		return nil, badFormat("not a sealing key file, or of an unknown version")
	}
	var key Key
	var card, wrapped []byte
	d := envelope.Dec{B: rest}
	for d.Next() {
		switch d.Tag {
		case 1:
			key.Serial = d.Uint()
		case 2:
			card = d.Bytes()
		case 3:
			wrapped = d.Bytes()
		default:
			d.Unknown()
		}
	}
	if d.Err != nil {
		return nil, d.Err
	}
	var err error
	if key.Card, err = ParseCard(card); err != nil {
		return nil, err
	}
	if key.Card.ID != k.id || key.Card.Revoked() || key.Serial == 0 {
		return nil, badFormat("card %d of %v does not belong here", key.Card.Serial, key.Card.ID)
	}
	if len(wrapped) == 0 {
		return &key, nil
	}
	key.seed, err = k.unwrap(wrapSealing, wrapped)
	if errors.Is(err, ErrWrapped) {
		key.seed = nil
		return &key, nil
	}
	if err != nil {
		return nil, err
	}
	if err := key.unlock(); err != nil {
		return nil, err
	}
	if !bytes.Equal(key.private.PublicKey().Bytes(), key.Card.SealingKey) {
		return nil, badFormat("secret and card do not belong together")
	}
	return &key, nil
}

// unlock makes the private key from the seed.
func (k *Key) unlock() (err error) {
	if k.private, err = hpke.MLKEM768X25519().NewPrivateKey(k.seed); err != nil {
		return fmt.Errorf("sealing key %d: %w", k.Serial, err)
	}
	return nil
}

// identityPrefix begins the line that holds the identity in its file.
const identityPrefix = "MOCHILA-IDENTITY-1-"

var identityBase32 = base32.StdEncoding.WithPadding(base32.NoPadding)

// identityText is the file id.key: text, so that it can be printed and typed. The last four bytes are a check.
func identityText(seed []byte) []byte {
	sum := sha256.Sum256(append([]byte(labelIdentity), seed...))
	return []byte("# The identity of a mochila node. Keep it secret, and keep a copy.\n" +
		identityPrefix + identityBase32.EncodeToString(append(slices.Clone(seed), sum[:4]...)) + "\n")
}

// parseIdentity accepts comment lines and one identity line, in any case and with spaces inside: somebody may have
// typed it from paper.
func parseIdentity(b []byte) ([]byte, error) {
	for line := range strings.Lines(string(b)) {
		line = strings.ToUpper(strings.Join(strings.Fields(line), ""))
		if line == "" || line[0] == '#' {
			continue
		}
		text, ok := strings.CutPrefix(line, identityPrefix)
		if !ok {
			break
		}
		raw, err := identityBase32.DecodeString(text)
		if err != nil || len(raw) != ed25519.SeedSize+4 {
			break
		}
		seed := raw[:ed25519.SeedSize]
		sum := sha256.Sum256(append([]byte(labelIdentity), seed...))
		if !bytes.Equal(sum[:4], raw[ed25519.SeedSize:]) {
			return nil, badFormat("%s: a character of the identity is wrong", fileIdentity)
		}
		return seed, nil
	}
	return nil, badFormat("%s: no line %s…", fileIdentity, identityPrefix)
}

// fileBegun says that a spool has lived with this identity.
const fileBegun = "begun"

// Begun reports whether a spool has lived with this identity: an empty one beside it then is a spool that was lost.
func (k *Keyring) Begun() bool {
	_, err := k.fs.Lstat(filepath.Join(k.dir, fileBegun))
	return err == nil
}

// Begin notes that a spool lives with this identity.
func (k *Keyring) Begin() error {
	if k.Begun() {
		return nil
	}
	k.change.Lock()
	defer k.change.Unlock()
	return k.write(fileBegun, []byte("a spool has lived with this identity\n"))
}
