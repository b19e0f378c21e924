package envelope

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ID names one envelope for its whole life, on every node: it is the queue id, the trace id and MOCHILA_JOB_ID.
// Bytes 0..5 are the milliseconds since the Unix epoch at which it was made (big-endian, information only),
// bytes 6..15 are random: ids sort by age, which keeps the index append-ordered, and 80 random bits keep
// them unique across restored spools and wrong clocks.
type ID [16]byte

// idText is RFC 4648 base32hex: upper case, and text order is byte order.
var idText = base32.HexEncoding.WithPadding(base32.NoPadding)

// NewID returns a fresh ID stamped with now.
func NewID(now time.Time) ID {
	var id ID
	ms := uint64(now.UnixMilli())
	binary.BigEndian.PutUint16(id[0:2], uint16(ms>>32))
	binary.BigEndian.PutUint32(id[2:6], uint32(ms))
	rand.Read(id[6:])
	return id
}

// String shows the ID as 26 upper-case characters.
func (id ID) String() string { return idText.EncodeToString(id[:]) }

// Time is the creation time stamped into the ID, by the clock of the node that made it.
func (id ID) Time() time.Time {
	ms := uint64(binary.BigEndian.Uint16(id[0:2]))<<32 | uint64(binary.BigEndian.Uint32(id[2:6]))
	return time.UnixMilli(int64(ms))
}

// IsZero reports whether the ID is unset.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads what String wrote; lower case is accepted.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := idText.DecodeString(strings.ToUpper(s))
	if err != nil || len(b) != len(id) || idText.EncodeToString(b) != strings.ToUpper(s) {
		return id, fmt.Errorf("%q is not an envelope id (26 characters of 0-9 and A-V)", s)
	}
	return ID(b), nil
}

// NodeID is a node's Ed25519 public key (docs/format.md, "Names").
type NodeID [32]byte

// Label is the 8-byte short form of a NodeID that hop boxes and folder names carry.
type Label [8]byte

// nodeText is lower-case RFC 4648 base32, the alphabet that survives every file system.
var nodeText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Label is SHA-256("mochila node v1" ‖ 0 ‖ id)[:8].
func (n NodeID) Label() Label {
	h := sha256.Sum256(append([]byte("mochila node v1\x00"), n[:]...))
	return Label(h[:8])
}

// String shows the first 10 bytes as 4 groups of 4: enough for two people to compare by voice.
func (n NodeID) String() string {
	s := nodeText.EncodeToString(n[:10])
	return s[0:4] + "-" + s[4:8] + "-" + s[8:12] + "-" + s[12:16]
}

// Text is the whole id, 52 lower-case characters.
func (n NodeID) Text() string { return nodeText.EncodeToString(n[:]) }

// IsZero reports whether the id is unset.
func (n NodeID) IsZero() bool { return n == NodeID{} }

// ParseNodeID reads what Text wrote.
func ParseNodeID(s string) (NodeID, error) {
	b, err := nodeText.DecodeString(strings.ToLower(s))
	if err != nil || len(b) != 32 {
		return NodeID{}, fmt.Errorf("%q is not a node id (52 characters of a-z and 2-7)", s)
	}
	return NodeID(b), nil
}

// String shows the label as 13 lower-case characters, the name of a folder on a medium.
func (l Label) String() string { return nodeText.EncodeToString(l[:]) }

// ParseLabel reads what String wrote.
func ParseLabel(s string) (Label, error) {
	b, err := nodeText.DecodeString(s)
	if err != nil || len(b) != 8 || nodeText.EncodeToString(b) != s {
		return Label{}, errors.New("not a node label (13 characters of a-z and 2-7)")
	}
	return Label(b), nil
}
