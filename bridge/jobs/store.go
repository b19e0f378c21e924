package jobs

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"mochila/internal/envelope"
	"mochila/spool"
)

// The tables of the index (docs/jobs.md). A channel has a number of its own, so that keys stay short and sort by
// channel, then epoch, then number.
const (
	tabOutChan = "job-out-chan" // peer, channel → outChan
	tabOut     = "job-out"      // number of the channel, epoch, seq → own: what has no outcome yet
	tabDone    = "job-done"     // id → outcome: how jobs of this node ended, or stand
	tabInChan  = "job-in-chan"  // origin, channel → inChan
	tabIn      = "job-in"       // channel, epoch, seq → slot: the reorder buffer
	tabFree    = "job-free"     // channel, arrival counter → slot: jobs in no order
	tabRun     = "job-run"      // id → started: the journal
	tabEnd     = "job-end"      // id → outcome: how jobs of peers ended here
	tabPast    = "job-past"     // channel, epoch, seq → id: numbers that have ended here
	tabKey     = "job-key"      // channel, supersede key → epoch, seq: the latest with that key

	tabReply = "job-reply" // id → Reply: jobs of this node whose outcome goes by mail

	metaNo   = "job-channels" // numbers given to channels
	metaLost = "job-lost"     // when this node lost its memory last: milliseconds
)

// slotKey is the key of one number of a channel.
func slotKey(no uint32, epoch [8]byte, seq uint64) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 20), no)
	k = append(k, epoch[:]...)
	return binary.BigEndian.AppendUint64(k, seq)
}

// freeKey is the key of a job in no order, at the destination by its arrival.
func freeKey(no uint32, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, no), n)
}

// looseKey is the key of a job in no order at its origin.
func looseKey(no uint32, id envelope.ID) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 28), no)
	k = append(k, make([]byte, 8)...)
	return append(k, id[:]...)
}

func noKey(no uint32) []byte { return binary.BigEndian.AppendUint32(nil, no) }

func epochKey(no uint32, epoch [8]byte) []byte { return append(noKey(no), epoch[:]...) }

// parseSlotKey is the other way of slotKey.
func parseSlotKey(k []byte) (no uint32, epoch [8]byte, seq uint64) {
	return binary.BigEndian.Uint32(k), [8]byte(k[4:12]), binary.BigEndian.Uint64(k[12:20])
}

func (k chanKey) bytes() []byte { return append(k.peer[:len(k.peer):len(k.peer)], k.channel...) }

func parseChanKey(b []byte) chanKey { return chanKey{envelope.NodeID(b[:32]), string(b[32:])} }

// span is an epoch that has ended, with its last number.
type span struct {
	epoch [8]byte
	last  uint64
}

// maxSpans bounds the epochs that an origin remembers of one channel.
const maxSpans = 16

// outChan is one channel at its origin.
type outChan struct {
	no      uint32
	epoch   [8]byte
	next    uint64 // number of the next job
	waiting uint64 // jobs without outcome
	paused  bool
	past    []span // earlier epochs, oldest first

	repBy     [8]byte   // the report taken last: incarnation of its writer,
	report    uint64    // its number,
	repNext   uint64    // the number it waits for,
	repEpoch  [8]byte   // in this epoch,
	repAt     time.Time // when it came,
	repReason string    // and why the channel does not go on there
	owed      bool      // a resume is to be sent
	marked    [8]byte   // incarnation of the peer for which exposed jobs were marked
	resumes   uint64    // sent
}

func (c *outChan) encode() []byte {
	var w envelope.Enc
	w.Uint(1, uint64(c.no))
	w.Bytes(2, c.epoch[:])
	w.Uint(3, c.next)
	w.Uint(4, c.waiting)
	w.Bool(5, c.paused)
	for _, s := range c.past {
		w.Item(6, binary.BigEndian.AppendUint64(s.epoch[:len(s.epoch):len(s.epoch)], s.last))
	}
	w.Bytes(7, c.repBy[:])
	w.Uint(8, c.report)
	w.Uint(9, c.repNext)
	w.Bytes(10, c.repEpoch[:])
	w.Time(11, c.repAt)
	w.String(12, c.repReason)
	w.Bool(13, c.owed)
	w.Bytes(14, c.marked[:])
	w.Uint(15, c.resumes)
	return w.B
}

func parseOutChan(b []byte) (*outChan, error) {
	c := new(outChan)
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			c.no = uint32(d.Max(math.MaxUint32))
		case 2:
			d.Fixed(c.epoch[:])
		case 3:
			c.next = d.Uint()
		case 4:
			c.waiting = d.Uint()
		case 5:
			c.paused = d.Bool()
		case 6:
			if v := d.List(); len(v) == 16 {
				c.past = append(c.past, span{[8]byte(v[:8]), binary.BigEndian.Uint64(v[8:])})
			}
		case 7:
			d.Fixed(c.repBy[:])
		case 8:
			c.report = d.Uint()
		case 9:
			c.repNext = d.Uint()
		case 10:
			d.Fixed(c.repEpoch[:])
		case 11:
			c.repAt = d.Time()
		case 12:
			c.repReason = d.String()
		case 13:
			c.owed = d.Bool()
		case 14:
			d.Fixed(c.marked[:])
		case 15:
			c.resumes = d.Uint()
		default:
			d.Unknown()
		}
	}
	return c, d.Err
}

// end is the number after the last one of an epoch, 0 when the epoch is not known.
func (c *outChan) end(epoch [8]byte) uint64 {
	if epoch == c.epoch {
		return c.next
	}
	for _, s := range c.past {
		if s.epoch == epoch {
			return s.last + 1
		}
	}
	return 0
}

// own is a job without outcome at its origin.
type own struct {
	id    envelope.ID
	void  envelope.ID // the job that takes its place, when it was cancelled
	maybe bool        // was exposed before the destination lost its memory
	naks  uint8       // reports that missed it since it was sent last
}

func (o own) encode() []byte {
	b := append(o.id[:len(o.id):len(o.id)], o.void[:]...)
	flag := byte(0)
	if o.maybe {
		flag = 1
	}
	return append(b, flag, o.naks)
}

func parseOwn(b []byte) (own, bool) {
	if len(b) != 34 {
		return own{}, false
	}
	return own{id: envelope.ID(b[:16]), void: envelope.ID(b[16:32]), maybe: b[32]&1 != 0, naks: b[33]}, true
}

// Why a channel stands at its destination.
const (
	open   = 0
	held   = 1 // something went wrong with the next number, or it is a barrier
	paused = 2 // a person said so
)

// inChan is one channel at its destination.
type inChan struct {
	no      uint32
	epoch   [8]byte // zero while nothing with a number has come
	next    uint64  // lowest number without outcome
	waiting uint64  // jobs in the buffer, with those in no order
	free    uint64  // those in no order
	arrived uint64  // counts those in no order
	status  uint8
	reason  string
	lack    bool      // held, because the next number is missing
	since   time.Time // of status, or of the gap
	gap     bool      // next is missing and something behind it is here
	lost    bool      // nothing starts before a resume

	resume uint64          // number of the last resume taken
	resBy  [8]byte         // the incarnation of this node that it spoke to
	maybe  envelope.Ranges // numbers of maybeEp that may have been started in a life that was lost
	mayEp  [8]byte
	ended  envelope.Ranges // numbers of mayEp that have ended at their origin

	reports uint64 // sent
	repSum  uint64 // what the last one said, in short
	repAt   time.Time
	repWait time.Duration
}

// hold stops the channel until somebody decides, or, if it lacks its next number, until that comes.
func (c *inChan) hold(why string, lack bool, now time.Time) {
	c.status, c.reason, c.lack, c.since = held, why, lack, now
}

func (c *inChan) encode() []byte {
	var w envelope.Enc
	w.Uint(1, uint64(c.no))
	w.Bytes(2, c.epoch[:])
	w.Uint(3, c.next)
	w.Uint(4, c.waiting)
	w.Uint(5, c.free)
	w.Uint(6, c.arrived)
	w.Uint(7, uint64(c.status))
	w.String(8, c.reason)
	w.Time(9, c.since)
	w.Bool(10, c.gap)
	w.Bool(11, c.lost)
	w.Uint(12, c.resume)
	w.Bytes(13, c.resBy[:])
	for _, r := range c.maybe {
		w.Item(14, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count))
	}
	w.Bytes(15, c.mayEp[:])
	w.Uint(16, c.reports)
	w.Uint(17, c.repSum)
	w.Time(18, c.repAt)
	w.Uint(19, uint64(c.repWait))
	for _, r := range c.ended {
		w.Item(20, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count))
	}
	w.Bool(21, c.lack)
	return w.B
}

func parseInChan(b []byte) (*inChan, error) {
	c := new(inChan)
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			c.no = uint32(d.Max(math.MaxUint32))
		case 2:
			d.Fixed(c.epoch[:])
		case 3:
			c.next = d.Uint()
		case 4:
			c.waiting = d.Uint()
		case 5:
			c.free = d.Uint()
		case 6:
			c.arrived = d.Uint()
		case 7:
			c.status = uint8(d.Max(255))
		case 8:
			c.reason = d.String()
		case 9:
			c.since = d.Time()
		case 10:
			c.gap = d.Bool()
		case 11:
			c.lost = d.Bool()
		case 12:
			c.resume = d.Uint()
		case 13:
			d.Fixed(c.resBy[:])
		case 14:
			if v := d.List(); len(v) == 16 {
				c.maybe = append(c.maybe, envelope.Range{First: binary.BigEndian.Uint64(v), Count: binary.BigEndian.Uint64(v[8:])})
			}
		case 15:
			d.Fixed(c.mayEp[:])
		case 16:
			c.reports = d.Uint()
		case 17:
			c.repSum = d.Uint()
		case 18:
			c.repAt = d.Time()
		case 19:
			c.repWait = time.Duration(d.Max(math.MaxInt64))
		case 20:
			if v := d.List(); len(v) == 16 {
				c.ended = append(c.ended, envelope.Range{First: binary.BigEndian.Uint64(v), Count: binary.BigEndian.Uint64(v[8:])})
			}
		case 21:
			c.lack = d.Bool()
		default:
			d.Unknown()
		}
	}
	return c, d.Err
}

// Flags of a slot.
const (
	slotMaybe   = 1  // may have been started in a life that was lost
	slotRefused = 2  // was not granted when it came; there is no content
	slotDropped = 4  // a person wants it passed over
	slotHeld    = 8  // in no order: waits for a person
	slotFree    = 16 // in the buffer for its number only: the job is among those in no order
	slotPass    = 32 // a barrier that a person has opened
	slotCrash   = 64 // was running when this node stopped
)

// slot is one job that waits here.
type slot struct {
	id    envelope.ID
	flags uint8
	tries uint32
	at    time.Time // not before: after a temporary failure
}

func (s slot) encode() []byte {
	b := append(s.id[:len(s.id):len(s.id)], s.flags)
	b = binary.BigEndian.AppendUint32(b, s.tries)
	ms := uint64(0)
	if !s.at.IsZero() {
		ms = uint64(s.at.UnixMilli())
	}
	return binary.BigEndian.AppendUint64(b, ms)
}

func parseSlot(b []byte) (s slot, ok bool) {
	if len(b) != 29 {
		return s, false
	}
	s = slot{id: envelope.ID(b[:16]), flags: b[16], tries: binary.BigEndian.Uint32(b[17:])}
	if ms := binary.BigEndian.Uint64(b[21:]); ms != 0 {
		s.at = time.UnixMilli(int64(ms)).UTC()
	}
	return s, true
}

// started is an entry of the journal: the program of a job was about to run.
type started struct {
	key  chanKey
	slot []byte // its key in the buffer, or among those in no order
	free bool
	at   time.Time
}

func (s *started) encode() []byte {
	var w envelope.Enc
	w.Bytes(1, s.key.bytes())
	w.Bytes(2, s.slot)
	w.Bool(3, s.free)
	w.Time(4, s.at)
	return w.B
}

func parseStarted(b []byte) (*started, error) {
	s := new(started)
	d := envelope.Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case 1:
			if v := d.Bytes(); len(v) > 32 {
				s.key = parseChanKey(v)
			} else {
				d.Fail("no channel")
			}
		case 2:
			s.slot = append([]byte{}, d.Bytes()...)
		case 3:
			s.free = d.Bool()
		case 4:
			s.at = d.Time()
		default:
			d.Unknown()
		}
	}
	return s, d.Err
}

// outcome is how a job ended, or stands, as both sides keep it. Its first eight bytes are the time, for pruning.
type outcome struct {
	at     time.Time
	res    envelope.Result // Node is the other side's name for people; Stdout and Stderr what was kept
	peer   envelope.NodeID
	result envelope.ID // the envelope that told it: at the origin it holds the content, zero when there is none
}

func (o *outcome) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(o.at.UnixMilli()))
	e := envelope.Envelope{ID: o.result, Origin: o.peer, Kind: envelope.KindResult, Result: &o.res}
	return envelope.AppendStored(b, &e)
}

func parseOutcome(b []byte) (*outcome, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: outcome of %d bytes", envelope.ErrFormat, len(b))
	}
	e, err := envelope.ParseStored(b[8:])
	if err != nil {
		return nil, err
	}
	if e.Result == nil {
		return nil, fmt.Errorf("%w: outcome without result", envelope.ErrFormat)
	}
	return &outcome{at: time.UnixMilli(int64(binary.BigEndian.Uint64(b))).UTC(), res: *e.Result, peer: e.Origin, result: e.ID}, nil
}

func getOutcome(tx *spool.Tx, table string, id envelope.ID) (*outcome, error) {
	v := tx.KV(table).Get(id[:])
	if v == nil {
		return nil, nil
	}
	return parseOutcome(v)
}

func putOutcome(tx *spool.Tx, table string, id envelope.ID, o *outcome) error {
	return tx.KV(table).Put(id[:], o.encode())
}

// number gives a new channel its number.
func number(tx *spool.Tx) (uint32, error) {
	n := uint32(1)
	if v := tx.Meta(metaNo); len(v) == 4 {
		n = binary.BigEndian.Uint32(v) + 1
	}
	return n, tx.SetMeta(metaNo, binary.BigEndian.AppendUint32(nil, n))
}

// out reads a channel of this node; nil when there is none.
func out(tx *spool.Tx, k chanKey) (*outChan, error) {
	v := tx.KV(tabOutChan).Get(k.bytes())
	if v == nil {
		return nil, nil
	}
	return parseOutChan(v)
}

func putOut(tx *spool.Tx, k chanKey, c *outChan) error {
	return tx.KV(tabOutChan).Put(k.bytes(), c.encode())
}

// in reads a channel of a peer; nil when there is none.
func in(tx *spool.Tx, k chanKey) (*inChan, error) {
	v := tx.KV(tabInChan).Get(k.bytes())
	if v == nil {
		return nil, nil
	}
	return parseInChan(v)
}

func putIn(tx *spool.Tx, k chanKey, c *inChan) error {
	return tx.KV(tabInChan).Put(k.bytes(), c.encode())
}

func getSlot(tx *spool.Tx, table string, key []byte) (slot, bool) {
	return parseSlot(tx.KV(table).Get(key))
}
