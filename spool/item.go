package spool

import (
	"strings"
	"time"

	"mochila/internal/envelope"
)

// Dest names a queue: where a leg goes next.
type Dest string

// DeadDest holds dead letters: they are listed and counted, and never leased.
const DeadDest Dest = "dead"

// NodeDest is the queue of what goes to a node.
func NodeDest(id envelope.NodeID) Dest { return Dest("node:" + id.Text()) }

// ViaDest is the queue of what a local delivery transport takes: url as in [[deliver]] via.
func ViaDest(url string) Dest { return Dest("via:" + url) }

// Node is the node of a NodeDest.
func (d Dest) Node() (envelope.NodeID, bool) {
	text, ok := strings.CutPrefix(string(d), "node:")
	if !ok {
		return envelope.NodeID{}, false
	}
	id, err := envelope.ParseNodeID(text)
	return id, err == nil
}

// Via is the URL of a ViaDest.
func (d Dest) Via() (string, bool) { return strings.CutPrefix(string(d), "via:") }

// Leg is the way of some recipients of an item to one destination: what is leased, sent, retried and ended as one.
type Leg struct {
	Dest     Dest
	Rcpts    []int // indexes into Mail.Recipients, ascending; nil for reports and transit
	State    State
	At       time.Time // Deferred: next try; Sealed, Travelling: overdue; Arrived: give up; zero: never. Milliseconds
	Attempts int
	Last     envelope.Status // of the last attempt
	Carrier  string          // what it was last handed to
	KeepHop  bool            // the content need not stay once the next hop has it
}

// LogEntry is one event in the life of an item, for `trace`.
type LogEntry struct {
	At     time.Time // milliseconds
	What   string    // one word
	Detail string    // one line
}

// MaxLog is how many of the newest log entries an item keeps.
const MaxLog = 64

// Transit is the hop box of an item that this node only relays.
type Transit struct {
	Dest            envelope.Label
	Class, HopsLeft uint8
	From            envelope.NodeID // the neighbour it came from
	Left            uint16          // life left when it came, as the hop box told it; 0xffff: not known
}

// Item is an envelope in the spool with everything that custody knows of it. The spool never changes an Item it has
// handed out; the owner of a copy changes it and gives it to Tx.Save.
type Item struct {
	Env      *envelope.Envelope
	Trust    string // trust class: "uid:1000", "auth:bob", "net", "peer:LABEL", "control"
	Entered  time.Time
	Legs     []Leg              // at least one, at most MaxLegs
	Outcomes []envelope.Outcome // parallel to the recipients, or nil; an empty Addr is read back as the recipient's
	Delayed  bool               // the delay notice was sent
	NoReport bool               // nobody wants to hear how it ended
	Transit  *Transit
	Log      []LogEntry
	Parent   envelope.ID // the item this one was made from
	// ExpirySeen tells Wake that the expiry has been dealt with and need not be reported again.
	ExpirySeen bool
	// Problem is set by recovery when the item cannot go on by itself (its body is missing); its legs are held then.
	Problem string

	// Gone says that the content is not here any more, although the item has not ended; set before Save it lets the content
	// go. Header is what was kept of it.
	Gone   bool
	Header []byte

	// BodySize is the length of the content, set by Tx.Add and when the item is read; Save does not change it.
	BodySize int64
}

// MaxLegs bounds the legs of one item.
const MaxLegs = 10000

// Deadline is when the item expires: at Env.Expires, or before, when its age (what Env.Age tells and the time since it
// entered) reaches the life that its origin gave it. So a node whose clock is behind does not keep it for longer. The
// zero time stands for never. Whole seconds.
func (it *Item) Deadline() time.Time {
	return fromMilli(deadline(it))
}

// Done reports whether every leg has ended.
func (it *Item) Done() bool {
	for i := range it.Legs {
		if it.Legs[i].State != Done {
			return false
		}
	}
	return true
}

// AddLog appends an event and forgets the oldest beyond MaxLog.
func (it *Item) AddLog(now time.Time, what, detail string) {
	it.Log = append(it.Log, LogEntry{At: now, What: what, Detail: detail})
	if n := len(it.Log) - MaxLog; n > 0 {
		it.Log = append(it.Log[:0], it.Log[n:]...)
	}
}

// Ref names one leg of one item. Leg -1 stands for the item as a whole.
type Ref struct {
	ID  envelope.ID
	Leg int
}

// class is the first byte of the order in which due legs are handed out: urgent first. Priority is RFC 6710's, -9 to 9.
func class(e *envelope.Envelope) uint8 { return uint8(9 - max(-9, min(9, e.Priority))) }

// sizeClass is the second byte: small before large, in steps coarse enough that age decides among alike.
func sizeClass(size int64) uint8 {
	switch {
	case size <= 16<<10:
		return 0
	case size <= 128<<10:
		return 1
	case size <= 1<<20:
		return 2
	case size <= 16<<20:
		return 3
	}
	return 4
}
