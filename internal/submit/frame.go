package submit

// The frame format of docs/submission.md. Package frame reads what this file writes.

// Frame constants.
const (
	Magic      = "MSUB"
	ReplyMagic = "MREP"
	FrameVer   = 1

	MaxRecord = 4 << 20 // bytes of the record in front of the content
	MaxChunk  = 1 << 20 // bytes of one piece of content
	MaxText   = 4 << 10 // bytes of the text of a reply

	// Busy is the code of a reply that nothing is wrong with the mail, but that the daemon has no hand free: the
	// maildrop is the place for it now.
	Busy = 100
)

// Verb says what a frame asks for.
type Verb uint8

// The verbs.
const (
	VerbSubmit Verb = 1 // take this mail
	VerbSMTP   Verb = 2 // speak SMTP from here on
	VerbList   Verb = 3 // print the queue
	VerbFlush  Verb = 4 // try what is waiting now
	VerbVerify Verb = 5 // print where these recipients would go
	VerbJobs   Verb = 6 // speak the control API's verbs on remote jobs from here on, within [jobs] submit
)

// Field numbers of a record. 1 to 10 are those of a mail in docs/format.md, and so are those inside of a recipient
// and of a deadline.
const (
	FieldSender     = 1
	FieldRecipient  = 2
	FieldRet        = 3
	FieldEnvID      = 4
	FieldBody       = 5
	FieldSMTPUTF8   = 6
	FieldRequireTLS = 7
	FieldBy         = 8
	FieldAuth       = 10
	FieldOwner      = 32 // 1: the sender is the login name of whoever submits
	FieldProto      = 33
	FieldSize       = 34 // content bytes, when known in advance
	FieldSite       = 35

	FieldAddr   = 1
	FieldNotify = 2
	FieldORcpt  = 3

	FieldDeadline = 1
	FieldReturn   = 2
	FieldTrace    = 3
)

// Bits of FieldNotify, those of envelope.Notify.
const (
	notifyNever = 1 << iota
	notifySuccess
	notifyFailure
	notifyDelay
)

// Mail is the envelope of a submission: what envelope.Mail says, without what only the daemon can know.
type Mail struct {
	Owner      bool // the sender is the submitter, by the daemon's knowledge; Sender is ""
	Sender     string
	Recipients []Recipient
	Ret        string
	EnvID      string
	Body       string
	SMTPUTF8   bool
	RequireTLS bool
	By         *By
	Auth       *string
	Proto      string // "" is the daemon's word for local mail
	Site       string // of VerbFlush
}

// Recipient is one forward-path with its parameters.
type Recipient struct {
	Addr   string
	Notify uint8
	ORcpt  string
}

// By is a DELIVERBY request (RFC 2852), the deadline in milliseconds since 1970.
type By struct {
	Deadline      int64
	Return, Trace bool
}

func appendUvarint(b []byte, v uint64) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendText(b []byte, tag uint64, v string) []byte {
	if v == "" {
		return b
	}
	return appendItem(b, tag, v)
}

func appendItem(b []byte, tag uint64, v string) []byte {
	b = appendUvarint(b, tag)
	b = appendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendUint(b []byte, tag, v uint64) []byte {
	if v == 0 {
		return b
	}
	var n [10]byte
	return appendItem(b, tag, view(appendUvarint(n[:0], v)))
}

func appendBool(b []byte, tag uint64, v bool) []byte {
	if v {
		return appendUint(b, tag, 1)
	}
	return b
}

// appendRecord appends the canonical record of m. It has no FieldSize: the content is still being read.
func appendRecord(b []byte, m *Mail) []byte {
	b = appendText(b, FieldSender, m.Sender)
	var room [64]byte
	rec := room[:0]
	for i := range m.Recipients {
		r := &m.Recipients[i]
		rec = appendText(rec[:0], FieldAddr, r.Addr)
		rec = appendUint(rec, FieldNotify, uint64(r.Notify))
		rec = appendText(rec, FieldORcpt, r.ORcpt)
		b = appendItem(b, FieldRecipient, view(rec))
	}
	b = appendText(b, FieldRet, m.Ret)
	b = appendText(b, FieldEnvID, m.EnvID)
	b = appendText(b, FieldBody, m.Body)
	b = appendBool(b, FieldSMTPUTF8, m.SMTPUTF8)
	b = appendBool(b, FieldRequireTLS, m.RequireTLS)
	if m.By != nil {
		rec = appendUint(rec[:0], FieldDeadline, uint64(max(m.By.Deadline, 1)))
		rec = appendBool(rec, FieldReturn, m.By.Return)
		rec = appendBool(rec, FieldTrace, m.By.Trace)
		b = appendItem(b, FieldBy, view(rec))
	}
	if m.Auth != nil {
		b = appendItem(b, FieldAuth, *m.Auth)
	}
	b = appendBool(b, FieldOwner, m.Owner)
	b = appendText(b, FieldProto, m.Proto)
	return appendText(b, FieldSite, m.Site)
}

func put32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
}

func get32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func append64(b []byte, v uint64) []byte {
	for i := 56; i >= 0; i -= 8 {
		b = append(b, byte(v>>i))
	}
	return b
}

// AppendRequest appends a frame without its content: the whole of it for every verb but VerbSubmit.
func AppendRequest(b []byte, v Verb, m *Mail) []byte {
	b = append(append(b, Magic...), FrameVer, byte(v), 0, 0, 0, 0)
	n := len(b)
	b = appendRecord(b, m)
	put32(b[n-4:], uint32(len(b)-n))
	return b
}

// fnv1a continues a 64-bit FNV-1a sum: enough against torn files, and no table to build at each start.
func fnv1a(sum uint64, b []byte) uint64 {
	for _, c := range b {
		sum = (sum ^ uint64(c)) * 1099511628211
	}
	return sum
}

const fnvStart = 14695981039346656037

// holdBytes is how much of a frame stays in memory while the message is still being read. What is longer goes into
// the maildrop's temporary file: a slow writer then keeps no connection to the daemon waiting.
const holdBytes = 1 << 20

// writer turns the content of one message into a frame: in memory first, in a file when it grows.
type writer struct {
	node  *Node
	buf   []byte // what is not in file yet
	chunk int    // where the length of the open chunk stands in buf
	sum   uint64 // of what is in file
	size  uint64 // of the content
	file  *dropFile
	sock  *socket // instead of file, when the maildrop cannot be written but a daemon is there
}

// begin starts a frame for m, into buf while that has room. m is not looked at afterwards.
func (w *writer) begin(n *Node, m *Mail, buf []byte) {
	*w = writer{node: n, sum: fnvStart, buf: AppendRequest(buf[:0], VerbSubmit, m)}
	w.open()
}

func (w *writer) open() {
	w.chunk = len(w.buf)
	w.buf = append(w.buf, 0, 0, 0, 0)
}

// closeChunk fills in the length of the open chunk, or removes an empty one.
func (w *writer) closeChunk() {
	n := len(w.buf) - w.chunk - 4
	if n == 0 {
		w.buf = w.buf[:w.chunk]
		return
	}
	put32(w.buf[w.chunk:], uint32(n))
}

func (w *writer) write(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), MaxChunk-(len(w.buf)-w.chunk-4))
		w.buf = append(w.buf, p[:n]...)
		w.size += uint64(n)
		p = p[n:]
		if len(w.buf) >= holdBytes {
			if err := w.spill(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) line(l []byte) error {
	if len(w.buf)+len(l)+2 < holdBytes {
		w.buf = append(append(w.buf, l...), '\r', '\n')
		w.size += uint64(len(l)) + 2
		return nil
	}
	if err := w.write(l); err != nil {
		return err
	}
	return w.write([]byte("\r\n"))
}

// lines writes text whose lines end in LF or CRLF, or the last one in nothing.
func (w *writer) lines(b []byte) error {
	for len(b) > 0 {
		l := b
		if n := indexByte(b, '\n'); n >= 0 {
			l, b = b[:n], b[n+1:]
			if n > 0 && l[n-1] == '\r' {
				l = l[:n-1]
			}
		} else {
			b = nil
		}
		if err := w.line(l); err != nil {
			return err
		}
	}
	return nil
}

// spill moves the buffer into the temporary file.
func (w *writer) spill() error {
	w.closeChunk()
	if err := w.flush(); err != nil {
		return err
	}
	w.open()
	return nil
}

func (w *writer) flush() error {
	if w.file == nil && w.sock == nil {
		f, err := w.node.createDrop()
		if err != nil {
			s, derr := w.node.dial()
			if derr != nil {
				return err
			}
			w.sock = s
		}
		w.file = f
	}
	w.sum = fnv1a(w.sum, w.buf)
	b := w.buf
	w.buf = w.buf[:0]
	if w.sock != nil {
		return w.sock.stream(b)
	}
	return w.file.write(b)
}

// finish ends the frame and submits it. It returns what the daemon said: the queue id, or "" after the maildrop.
func (w *writer) finish() (string, error) {
	w.closeChunk()
	w.buf = append(w.buf, 0, 0, 0, 0)
	w.buf = append64(w.buf, w.size)
	sum := fnv1a(w.sum, w.buf)
	w.buf = append64(w.buf, sum)
	if w.file != nil || w.sock != nil {
		if err := w.flush(); err != nil {
			return "", err
		}
	}
	if w.sock != nil {
		return w.sock.result()
	}
	return w.node.submit(w.buf, w.file, w.size)
}

// abort drops everything. It may be called after finish.
func (w *writer) abort() {
	if w.file != nil {
		w.file.remove()
	}
	if w.sock != nil {
		w.sock.close()
		w.sock = nil
	}
}
