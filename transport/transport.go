// Package transport moves opaque packets over carriers. A carrier implements exactly one of three shapes,
// Folder, Dialer or Submitter; each shape has one adapter that makes it a Link. A Link runs one contact with one
// neighbour: it takes packets from a Station and brings packets to it.
//
// Nothing here knows what a packet means, opens one, or touches a key.
package transport

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"time"
)

// HeadSize is how many leading bytes of a packet a Station needs to say whether it knows it.
const HeadSize = 32

// ID is the BLAKE3 hash of a packet's bytes.
type ID [sha256.Size]byte

var idText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String is the packet's name on media: 52 lower-case characters.
func (id ID) String() string { return idText.EncodeToString(id[:]) }

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	b, err := idText.DecodeString(s)
	if err != nil || len(b) != len(ID{}) || idText.EncodeToString(b) != s {
		return ID{}, fmt.Errorf("%q is not a packet name", s)
	}
	return ID(b), nil
}

// Packet is one opaque object on its way over one hop. It never changes once it has an ID.
type Packet struct {
	ID    ID
	Size  int64
	Class uint8 // 0 goes first, 255 last
	// Open returns the packet's bytes from offset off on; the same bytes at every call.
	Open func(off int64) (io.ReadCloser, error)
}

// Station is one neighbour's desk at this node: what a Link takes from and brings to during one contact.
// All methods may be called from several goroutines.
type Station interface {
	// Next returns the packet to send next: highest class first, small before big. nil means nothing is due now.
	// Packing happens here, so a packet that Next returned is expected to be sent. If it is not, the contact ends
	// without a Sent for it: then it is due again. A link asks once more after the last incoming packet and before
	// the contact ends, so a receipt for what came needs no More.
	Next(ctx context.Context) (*Packet, error)
	// More receives a value whenever Next may have something that it had not before. The same channel at each call.
	More() <-chan struct{}
	// Sent says that the carrier has taken all bytes of a packet, which is not custody: on a folder it lies there
	// and is flushed, on a stream the neighbour has said that it has dealt with it, a submitter has accepted it.
	Sent(p *Packet)
	// Finished reports whether a packet that this node wrote is no longer needed on the carrier: the neighbour
	// has acknowledged it, or this node has withdrawn it. Unknown packets are not finished.
	Finished(id ID) bool
	// Known reports whether an incoming packet with these HeadSize leading bytes needs not be read again.
	Known(head []byte, size int64) bool
	// Receive takes one incoming packet of size bytes. nil means it is durable here (or was already). Several may be
	// under way at a time. If r fails instead of ending after size bytes, nothing of the packet may be kept.
	// ErrIncomplete: not all of it has come yet, try again at another contact. ErrRefused: it was put into
	// quarantine or is not for this node; the contact goes on. Any other error is trouble of this node's own
	// (full disk, shutdown): nothing is lost, this side takes nothing new in this contact, and sends what it has.
	Receive(ctx context.Context, size int64, r io.Reader) error
}

// Named is an optional method of the reader that a Station is given: the name under which the packet came, so that the
// Station needs not hash it once more. The bytes hash to it if the reader ends with io.EOF, and only then.
type Named interface{ ID() ID }

// Vouched is an optional pair of methods of the reader that a Station is given. A Station that authenticates every byte of a packet
// need not have it hashed, too.
type Vouched interface {
	// Vouch says so, before the packet is read on: io.EOF then tells only that all bytes came.
	Vouch()
	// Verify reads to the end and fails with ErrIncomplete if the bytes are not those that the packet's name tells. A Station that
	// has vouched calls it before it holds a packet against its sender: another copy may be a good one.
	Verify(ctx context.Context) error
}

// Sparing is an optional set of methods of the reader that a Station is given. A Station that stores what a packet holds, so that it
// can make the packet's bytes again, saves keeping them in a partial file while they come.
type Sparing interface {
	Vouched
	// Spare says that the bytes which are read from now on can be made again; false: that is not needed. The Station has vouched.
	Spare() bool
	// Late reports that the packet takes so long that Refill is due.
	Late() bool
	// Refill has again write the packet from one of its bytes on, as far as it can be made. It may lack what was read last, up to
	// half a MiB. The Station calls it when Late says so, and when it gives up a packet of which it wants to have the rest later; it may
	// be called while the packet is read, and does nothing when nothing is spared.
	Refill(again func(w io.Writer, from int64) error) error
}

// Presence is a Station that wants to know which of its own packets still lie on a folder, so that it can offer those
// that are missing or damaged once more.
type Presence interface {
	// Present is called once per contact between reading and writing, after finished packets were deleted. own has
	// the packets that are left, by name and size; it is not called when the folder could not be listed.
	Present(own []Entry)
}

// Closer is a Station that wants to know when the contact it was admitted for is over.
type Closer interface {
	// Close is called once, after the last call of any other method.
	Close()
}

// Greeter is a Station that has something to say first on a live stream: an authenticated greeting of at most
// MaxGreeting bytes, after which the neighbour knows whose packets it may hand over.
type Greeter interface {
	Station
	// Greeting returns this side's greeting packet.
	Greeting(ctx context.Context) ([]byte, error)
	// Greeted takes the neighbour's greeting. An error ends the contact: the wrong node answered.
	Greeted(ctx context.Context, packet []byte) error
}

// Reception is what a listener needs: it turns a caller's greeting into that neighbour's Station.
type Reception interface {
	Admit(ctx context.Context, greeting []byte) (Greeter, error)
}

// MaxGreeting bounds a greeting packet.
const MaxGreeting = 64 << 10

// Link is one way to reach one neighbour.
type Link interface {
	// Run makes one contact and returns when it is over: both sides have nothing more to send (stream), or all
	// that lies there is read and all that is due is written (folder, submitter).
	Run(ctx context.Context, st Station) (Stats, error)
}

// Stats is what one contact moved. Bytes count everything that crossed the carrier, framing included.
type Stats struct {
	PacketsIn, PacketsOut int
	BytesIn, BytesOut     int64
	Refused               int // incoming packets that went to quarantine
	Incomplete            int // incoming packets that are not all there yet
	Removed               int // own packets taken off a folder, acknowledged
	Waiting               int // own packets that still lie on a folder
	Late                  int // own packets that were ready when the neighbour had hung up already, all being said
	Began                 time.Time
}

var (
	// ErrIncomplete says that a packet is not all there yet.
	ErrIncomplete = errors.New("packet is not complete yet")
	// ErrRefused says that a packet will not be taken, now or later.
	ErrRefused = errors.New("packet refused")
	// ErrAbsent says that the carrier is not there now (stick not plugged in, host not reachable): an ordinary
	// state, to be tried again.
	ErrAbsent = errors.New("carrier is absent")
	// ErrFull says that the medium has no room for the next packet.
	ErrFull = errors.New("no space left on the carrier")
)

// Entry is one file of a Folder.
type Entry struct {
	Name string
	Size int64
}

// Folder is a place where files appear: a stick, a synced or mounted folder, a bucket, an SFTP or WebDAV tree.
// Directories are slash-separated relative paths. Names that start with "." or "~" are never listed.
type Folder interface {
	// Put writes one file of size bytes so that readers see all of it or none, durably. An existing file of that
	// name with the same content is success; a damaged one is replaced where the carrier can tell. If r fails,
	// nothing becomes visible and the error wraps r's. ErrFull: no room for it; ErrAbsent: nothing was written.
	Put(ctx context.Context, dir, name string, size int64, r io.Reader) error
	// List returns the regular files of dir; a missing dir is empty. ErrAbsent when the medium is not there.
	List(ctx context.Context, dir string) ([]Entry, error)
	// Dirs returns the directories inside dir.
	Dirs(ctx context.Context, dir string) ([]string, error)
	// Get opens a file, links and special files refused.
	Get(ctx context.Context, dir, name string) (io.ReadCloser, error)
	// Remove deletes a file; a missing one is success.
	Remove(ctx context.Context, dir, name string) error
	// Flush makes everything durable on the medium: "safe to remove" after it.
	Flush(ctx context.Context) error
}

// Watcher is a Folder that can tell when something appears.
type Watcher interface {
	// Watch sends a value after dir may have got a new file; several changes may come as one value. It is a hint
	// beside a periodic rescan, never complete. The channel is closed when ctx is done and nothing runs any more.
	Watch(ctx context.Context, dir string) <-chan struct{}
}

// Stream is a byte stream both ways. Close ends both.
type Stream interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Cutter is an optional method of a Stream whose Close waits for the other side. Cut does what Close does, and what Close is
// doing, within seconds: the contact is not wanted any more.
type Cutter interface {
	Cut() error
}

// Dialer opens streams: TCP, a program's stdin and stdout, a serial line.
type Dialer interface {
	Dial(ctx context.Context) (Stream, error)
}

// Submitter hands over one packet and hears nothing more of it: mail, NNCP, UUCP, a command.
type Submitter interface {
	Submit(ctx context.Context, p *Packet) error
}
