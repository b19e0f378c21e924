package submit

import "syscall"

// Time limits on the socket, in seconds: a daemon that does not take the next bytes is as good as down; one that has
// the whole mail may be waiting for a slow disk.
const (
	sendTimeout  = 20
	replyTimeout = 300
)

// socket is a connection to the daemon.
type socket struct {
	fd   int
	buf  []byte
	r, w int
	room [128]byte // buf, for most answers
}

// dial connects to the submission socket.
func (n *Node) dial() (*socket, error) {
	fd, err := newSocket()
	if err != nil {
		return nil, err
	}
	tv := syscall.Timeval{Sec: sendTimeout}
	err = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &tv)
	if err == nil {
		tv.Sec = replyTimeout
		err = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv)
	}
	if err == nil {
		err = connect(fd, n.Socket)
	}
	if err != nil {
		syscall.Close(fd)
		return nil, err
	}
	s := &n.sock
	s.fd, s.r, s.w = fd, 0, 0
	s.buf = s.room[:]
	return s, nil
}

// connect reaches paths that are too long for a socket address through their folder.
func connect(fd int, path string) error {
	const room = 107
	if len(path) > room {
		slash := len(path) - 1
		for slash > 0 && path[slash] != '/' {
			slash--
		}
		dir, err := openFD(path[:slash], oPath|syscall.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(dir)
		path = "/proc/self/fd/" + itoa(dir) + path[slash:]
	}
	for {
		err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		if err != syscall.EINTR {
			return err
		}
	}
}

func (s *socket) close() { syscall.Close(s.fd) }

// send writes all of b. EAGAIN is the time limit here.
func (s *socket) send(b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(s.fd, b)
		if n > 0 {
			b = b[n:]
		}
		if err != nil && err != syscall.EINTR {
			return err
		}
	}
	return nil
}

// need returns the next n bytes of a reply.
func (s *socket) need(n int) ([]byte, error) {
	for s.w-s.r < n {
		if s.r > 0 {
			copy(s.buf, s.buf[s.r:s.w])
			s.w, s.r = s.w-s.r, 0
		}
		if len(s.buf) < n {
			b := make([]byte, max(n, 1<<10))
			copy(b, s.buf[:s.w])
			s.buf = b
		}
		k, err := syscall.Read(s.fd, s.buf[s.w:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if k == 0 {
			return nil, errCut
		}
		s.w += k
	}
	b := s.buf[s.r : s.r+n]
	s.r += n
	return b, nil
}

var (
	errCut   = fault(ExTempFail, "the daemon closed the connection")
	errReply = fault(ExProtocol, "the daemon answers in a format that this sendmail does not know")
)

// reply reads the answer to a request; its output goes to the descriptor out. A nil Fault is success, with the text
// of the reply. err means that there was no complete answer.
func (s *socket) reply(out int) (text string, f *Fault, err error) {
	b, err := s.need(len(ReplyMagic) + 1)
	if err != nil {
		return "", nil, err
	}
	if string(b[:4]) != ReplyMagic || b[4] != FrameVer {
		return "", nil, errReply
	}
	for {
		if b, err = s.need(4); err != nil {
			return "", nil, err
		}
		n := int64(get32(b))
		if n == 0 {
			break
		}
		for n > 0 {
			k := int(min(n, 32<<10))
			if b, err = s.need(k); err != nil {
				return "", nil, err
			}
			if err := writeFD(out, b); err != nil {
				return "", nil, fault(ExIOErr, "writing to standard output: "+err.Error())
			}
			n -= int64(k)
		}
	}
	if b, err = s.need(5); err != nil {
		return "", nil, err
	}
	code, n := int(b[0]), get32(b[1:])
	if n > MaxText {
		return "", nil, errReply
	}
	if b, err = s.need(int(n)); err != nil {
		return "", nil, err
	}
	if code != 0 {
		return "", fault(code, string(b)), nil
	}
	return string(b), nil, nil
}

// submit hands over a finished frame: in file, or in buf when file is nil. The socket comes first; when nobody takes
// the whole frame there, or the daemon is busy, the maildrop. When the daemon took the whole frame but its reply is
// lost, the mail may be queued or not: the error is ExTempFail, and nothing goes into the maildrop. size is that of
// the content.
func (n *Node) submit(buf []byte, file *dropFile, size uint64) (string, error) {
	if s, err := n.dial(); err == nil {
		defer s.close()
		id, taken, err := s.submit(buf, file)
		if taken {
			if file != nil {
				file.remove()
			}
			return id, err
		}
	}
	// What the daemon would refuse later must be refused now, while somebody can be told. Small messages are not
	// worth the look.
	if limit := n.bigLimit(size); limit > 0 {
		if file != nil {
			file.remove()
		}
		return "", fault(ExDataErr, "the message has more than "+itoa(int(limit))+" bytes")
	}
	if file == nil {
		var err error
		if file, err = n.createDrop(); err != nil {
			return "", err
		}
		if err := file.write(buf); err != nil {
			file.remove()
			return "", err
		}
	}
	return "", file.publish()
}

// bigLimit is the limit that a message exceeds, or 0.
func (n *Node) bigLimit(size uint64) int64 {
	if size < holdBytes {
		return 0
	}
	if limit := n.maxSize(); limit > 0 && size > uint64(limit) {
		return limit
	}
	return 0
}

// submit reports as taken when the maildrop must not be tried any more.
func (s *socket) submit(buf []byte, file *dropFile) (id string, taken bool, err error) {
	whole := true
	if file == nil {
		whole = s.send(buf) == nil
	} else if whole, err = s.sendFile(file); err != nil {
		return "", true, err
	}
	text, f, err := s.reply(-1)
	switch {
	case err == nil && f == nil:
		return text, true, nil
	case err == nil && f.Code == Busy, err != nil && !whole:
		return "", false, nil
	case err == syscall.ECONNRESET:
		// The other end was closed with bytes unread (Linux, unix(7)): a listener that went away, or a daemon that
		// died before it had the whole frame. It cannot have committed.
		return "", false, nil
	case err == nil:
		return "", true, f
	}
	return "", true, lost(err)
}

func lost(err error) *Fault {
	return fault(ExTempFail, "the daemon took the mail, but its answer was lost: "+err.Error())
}

// stream sends a part of a frame for which there is no other place. When the daemon hangs up, its answer is the
// error.
func (s *socket) stream(b []byte) error {
	if s.send(b) == nil {
		return nil
	}
	if _, f, err := s.reply(-1); err == nil && f != nil {
		return answered(f)
	}
	return fault(ExTempFail, "the daemon did not take the whole message, and the maildrop cannot be written")
}

// result reads the answer to a streamed frame.
func (s *socket) result() (string, error) {
	text, f, err := s.reply(-1)
	if err != nil {
		return "", lost(err)
	}
	if f != nil {
		return "", answered(f)
	}
	return text, nil
}

// answered makes the daemon's Busy an exit status.
func answered(f *Fault) *Fault {
	if f.Code == Busy {
		f.Code = ExTempFail
	}
	return f
}

func (s *socket) sendFile(f *dropFile) (whole bool, err error) {
	b := make([]byte, 64<<10)
	for at := int64(0); at < f.size; {
		n, err := f.disk.read(f.fd, b, at)
		if err != nil || n == 0 {
			return false, fault(ExIOErr, "reading back "+f.tmp)
		}
		if s.send(b[:n]) != nil {
			return false, nil
		}
		at += int64(n)
	}
	return true, nil
}

// ask sends a request without content and copies the output of the daemon to the descriptor out.
func (n *Node) ask(v Verb, m *Mail, out int) error {
	s, err := n.dial()
	if err != nil {
		return n.down(err)
	}
	defer s.close()
	if err := s.send(AppendRequest(nil, v, m)); err != nil {
		return n.down(err)
	}
	_, f, err := s.reply(out)
	if err != nil {
		return asFault(err, "asking the daemon")
	}
	if f != nil {
		return answered(f)
	}
	return nil
}

func (n *Node) down(err error) *Fault {
	return &Fault{Code: ExUnavailable, Text: "no daemon answers at " + n.Socket + ": " + err.Error(), Hint: "mochila serve"}
}

// smtp joins stdin and stdout with an SMTP dialog of the daemon.
func (n *Node) smtp(in, out int) error {
	s, err := n.dial()
	if err != nil {
		return n.down(err)
	}
	defer s.close()
	// A person may think for longer than any time limit.
	var never syscall.Timeval
	syscall.SetsockoptTimeval(s.fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &never)
	if err := s.send(AppendRequest(nil, VerbSMTP, &Mail{})); err != nil {
		return n.down(err)
	}
	// The dialog ends when the daemon closes; the reader of stdin may then still wait for a line that nobody will
	// type, and ends with the process.
	go func() {
		b := make([]byte, 16<<10)
		for {
			k, err := readFD(in, b)
			if err != nil || k == 0 || s.send(b[:k]) != nil {
				syscall.Shutdown(s.fd, syscall.SHUT_WR)
				return
			}
		}
	}()
	b := make([]byte, 16<<10)
	for {
		k, err := readFD(s.fd, b)
		if err != nil {
			return fault(ExTempFail, "the daemon ended the dialog: "+err.Error())
		}
		if k == 0 {
			return nil
		}
		if err := writeFD(out, b[:k]); err != nil {
			return fault(ExIOErr, "writing to standard output: "+err.Error())
		}
	}
}
