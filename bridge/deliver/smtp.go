package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"mochila/internal/envelope"
)

// smtp delivers to one SMTP or LMTP server over a few kept connections.
type smtp struct {
	network, addr string
	lmtp          bool
	o             Options
	pool          *pool
}

func newSMTP(network, addr string, lmtp bool, o Options) (Transport, error) {
	var err error
	if network == "unix" {
		addr, err = localPath(addr, o)
	} else {
		err = hostPort(addr)
	}
	if err != nil {
		return nil, err
	}
	t := &smtp{network: network, addr: addr, lmtp: lmtp, o: o}
	t.pool = newPool(o.MaxConns, o.Idle, func(ctx context.Context) (*client, error) {
		return dial(ctx, network, addr, lmtp, &t.o)
	})
	return t, nil
}

// Close drops the idle connections; those in use are dropped when their mail is through.
func (t *smtp) Close() error { t.pool.close(); return nil }

// Deliver sends the mail in one transaction, or in several when there are more recipients than the server takes.
func (t *smtp) Deliver(ctx context.Context, m *Message) []Result {
	s := newSheet(m, t.addr)
	ct, err := load(m, true)
	if err != nil {
		s.trouble(err)
		return s.res
	}
	for todo := s.open(); len(todo) > 0 && ctx.Err() == nil; {
		if !t.batch(ctx, ct, s, todo) {
			break
		}
		rest := s.open()
		if len(rest) == len(todo) {
			break // no recipient decided: another round would not do better
		}
		todo = rest
	}
	s.wait(ours("4.3.2", "not tried"))
	return s.res
}

// batch does one transaction for some of the recipients. It returns false when no other should follow.
func (t *smtp) batch(ctx context.Context, ct *content, s *sheet, todo []int) bool {
	for fresh := false; ; fresh = true {
		c, err := t.pool.get(ctx, fresh)
		if err != nil {
			st := ours("4.3.2", "interrupted")
			var d *down
			if errors.As(err, &d) {
				st = d.st
			}
			s.wait(st)
			if d != nil && ctx.Err() == nil {
				s.down()
			}
			return false
		}
		n := t.o.MaxRcpts
		if c.rcptMax() > 0 {
			n = min(n, c.rcptMax())
		}
		x := transaction{c: c, ct: ct, s: s, todo: todo[:min(n, len(todo))], addr: t.addr}
		err = x.run(ctx)
		if err == nil {
			t.pool.put(c)
			return true
		}
		t.pool.drop(c)
		if x.unreadable {
			s.trouble(err)
			return false
		}
		if c.reused && !x.sending && ctx.Err() == nil {
			todo = s.openOf(todo)
			continue // the server had closed it while it lay idle: nothing of the mail was sent
		}
		var d *down
		if errors.As(err, &d) {
			s.wait(d.st)
			if !x.mailDone { // later it may be this mail that the server stumbles over
				s.down()
			}
			return false
		}
		s.wait(ours("4.4.2", fmt.Sprintf("lost connection with %s while %s: %s", t.addr, x.doing, reason(err))))
		return false
	}
}

// rcptMax is how many recipients the server takes at once (RFC 9422), 0 when it does not say.
func (c *client) rcptMax() int {
	for _, w := range strings.Fields(c.ext["LIMITS"]) {
		if v, ok := strings.CutPrefix(strings.ToUpper(w), "RCPTMAX="); ok {
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// transaction is one mail on one connection.
type transaction struct {
	c    *client
	ct   *content
	s    *sheet
	todo []int
	addr string

	doing      string // for people, when the connection breaks
	sending    bool   // content may have reached the server
	unreadable bool   // the error was about our own content
	mailDone   bool   // MAIL was accepted
	refused    bool   // MAIL was refused: later replies mean nothing
	accepted   []int
	dataCode   int
	dataText   []string
	waiting    []waiter
}

// waiter is a command whose reply has not come yet.
type waiter struct {
	doing string
	got   func(code int, lines []string) error
}

// window is how many commands may be on their way before their replies are read: few enough that the replies fit
// into any socket buffer.
const window = 100

// run does the transaction. On nil every recipient of todo is decided, or was told to come again in another one, and
// the connection is good for more. An error means that it is not.
func (x *transaction) run(ctx context.Context) error {
	release := onDone(ctx, x.c.cancel)
	defer func() { release() }()
	x.doing = "sending the envelope"
	body, err := x.ct.open()
	if err != nil {
		x.unreadable = true
		return err
	}
	defer body.Close()
	if ok, err := x.envelope(); !ok || err != nil {
		return err
	}
	if x.dataCode != 354 {
		return x.noData()
	}
	if len(x.accepted) == 0 {
		return x.nobody()
	}
	x.doing, x.sending = "sending the content", true
	d := &dotWriter{w: x.c.w}
	d.Write(x.ct.m.Header)
	if x.ct.inMem {
		if _, err := d.Write(x.ct.small); err != nil {
			return x.early(err)
		}
	} else if err := x.copy(d, body); err != nil {
		return err
	}
	if !release() {
		return ctx.Err()
	}
	// The dot decides: from here on a shutdown waits a little for the answer.
	release = onDone(ctx, func() { x.c.endBy(time.Now().Add(x.c.o.Grace)) })
	x.doing = "waiting for the answer to the final dot (the mail may have been taken)"
	d.end()
	if err := x.c.w.Flush(); err != nil {
		return x.early(err) // so the dot, which comes last, was not sent
	}
	return x.verdicts()
}

// copy streams the content. Whatever goes wrong, the dot is not sent.
func (x *transaction) copy(d *dotWriter, body io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, rerr := body.Read(buf)
		if n > 0 {
			if _, err := d.Write(buf[:n]); err != nil {
				return x.early(err)
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			x.unreadable = true
			return rerr
		}
	}
}

// early looks for the reply of a server that closed the connection while we were still sending. Only a refusal
// counts: without the dot nobody can have accepted the mail.
func (x *transaction) early(werr error) error {
	code, lines, err := x.c.reply(min(5*time.Second, x.c.o.Command))
	if err != nil || code < 400 || code == 421 {
		return werr
	}
	for _, i := range x.accepted {
		x.s.refuse(i, status(code, lines))
	}
	return werr
}

// envelope sends everything up to DATA, in one flight when the server allows it, and reads the replies. ok is false
// when the transaction ends here, decided.
func (x *transaction) envelope() (ok bool, err error) {
	o := &offer{c: x.c, ct: x.ct, mail: x.ct.m.Env.Mail}
	o.utf8 = o.mail.SMTPUTF8 || !ascii(o.mail.Sender)
	for _, i := range x.todo {
		o.utf8 = o.utf8 || !ascii(x.s.rcpt(i).Addr)
	}
	o.utf8 = o.utf8 && x.c.has("SMTPUTF8")
	mail, no := o.mailLine(time.Now())
	if no != nil {
		for _, i := range x.todo {
			x.s.fail(i, no.enhanced, no.text)
		}
		return false, nil
	}
	var rcpts []string
	var who []int
	for _, i := range x.todo {
		line, no := o.rcptLine(x.s.rcpt(i))
		if no != nil {
			x.s.fail(i, no.enhanced, no.text)
			continue
		}
		rcpts, who = append(rcpts, line), append(who, i)
	}
	if len(who) == 0 {
		return false, nil
	}
	if x.c.dirty {
		if err := x.send("RSET", "resetting", x.gotRset); err != nil {
			return false, err
		}
	}
	for _, cmd := range o.xforward() {
		if err := x.send(cmd, "sending XFORWARD", func(int, []string) error { return nil }); err != nil {
			return false, err
		}
	}
	if err := x.send(mail, "sending MAIL FROM", x.gotMail); err != nil {
		return false, err
	}
	for k, line := range rcpts {
		if x.refused {
			break
		}
		if err := x.send(line, "sending RCPT TO", func(code int, lines []string) error { return x.gotRcpt(who[k], code, lines) }); err != nil {
			return false, err
		}
	}
	if len(x.waiting) == 0 && (x.refused || len(x.accepted) == 0) {
		return false, nil
	}
	return true, x.data()
}

// data sends DATA and reads all replies that are still to come.
func (x *transaction) data() error {
	err := x.send("DATA", "sending DATA", func(code int, lines []string) error {
		x.dataCode, x.dataText = code, lines
		return nil
	})
	if err != nil {
		return err
	}
	return x.drain()
}

// send queues one command; it goes out when the window is full, at drain, or at once without PIPELINING.
func (x *transaction) send(cmd, doing string, got func(int, []string) error) error {
	x.c.w.WriteString(cmd)
	x.c.w.WriteString("\r\n")
	x.waiting = append(x.waiting, waiter{doing, got})
	if !x.c.has("PIPELINING") || len(x.waiting) >= window {
		return x.drain()
	}
	return nil
}

// drain flushes and reads the reply to every command sent. 421 means at any point that the server closes.
func (x *transaction) drain() error {
	if err := x.c.w.Flush(); err != nil {
		// What the server said before it went may still be there to read; if not, this error stands.
		if code, lines, rerr := x.c.reply(time.Second); rerr == nil && code == 421 {
			return &down{later(status(code, lines))}
		}
		return err
	}
	waiting := x.waiting
	x.waiting = nil
	for _, w := range waiting {
		x.doing = w.doing
		code, lines, err := x.c.reply(x.c.o.Command)
		if err != nil {
			return err
		}
		if code == 421 {
			return &down{later(status(code, lines))}
		}
		if err := w.got(code, lines); err != nil {
			return err
		}
	}
	return nil
}

func (x *transaction) gotRset(code int, lines []string) error {
	if code/100 != 2 {
		return fmt.Errorf("%w: RSET refused: %s", errProtocol, status(code, lines))
	}
	x.c.dirty = false
	return nil
}

func (x *transaction) gotMail(code int, lines []string) error {
	if code/100 == 2 {
		x.c.dirty, x.mailDone = true, true
		return nil
	}
	x.refused = true
	for _, i := range x.s.openOf(x.todo) {
		x.s.refuse(i, status(code, lines))
	}
	return nil
}

// gotRcpt notes the answer for one recipient. "Too many recipients" leaves it open for another transaction, if this
// one has any at all.
func (x *transaction) gotRcpt(i, code int, lines []string) error {
	st := status(code, lines)
	switch {
	case x.refused:
	case code/100 == 2:
		x.accepted = append(x.accepted, i)
	case (code == 452 || code == 552) && strings.HasSuffix(st.Enhanced, ".5.3"):
		if len(x.accepted) == 0 {
			x.s.refuse(i, envelope.Status{Code: 452, Enhanced: "4.5.3", Text: st.Text})
		}
	default:
		x.s.refuse(i, st)
	}
	return nil
}

// noData handles a refusal of DATA.
func (x *transaction) noData() error {
	if x.dataCode/100 < 4 {
		return fmt.Errorf("%w: reply %d to DATA", errProtocol, x.dataCode)
	}
	for _, i := range x.accepted {
		x.s.refuse(i, status(x.dataCode, x.dataText))
	}
	return nil
}

// nobody ends a DATA that was pipelined behind recipients of whom none was accepted (RFC 2920 section 3.1).
func (x *transaction) nobody() error {
	x.doing, x.c.dirty = "ending DATA without recipients", true
	_, _, err := x.c.ask(".")
	return err
}

// verdicts reads what the server says after the final dot: one reply, or one for each accepted recipient in LMTP.
func (x *transaction) verdicts() error {
	var code int
	var lines []string
	var err error
	for k, i := range x.accepted {
		if k == 0 || x.c.lmtp {
			if code, lines, err = x.c.reply(x.c.o.Final); err != nil {
				return err
			}
		}
		switch st := status(code, lines); {
		case code/100 == 2:
			x.taken(i, st)
		case code/100 == 3:
			return fmt.Errorf("%w: reply %d after the final dot", errProtocol, code)
		default:
			x.s.refuse(i, st)
		}
		if code == 421 && x.c.lmtp {
			return &down{later(status(code, lines))}
		}
	}
	x.c.dirty = false
	if code == 421 {
		return &down{later(status(code, lines))}
	}
	return nil
}

// taken notes an accepted recipient. A server with DSN has taken over what NOTIFY asks; without it the sender who
// wants to hear of success hears of the relay (RFC 3461 section 5.2.2); so does who asked for a trace of a deadline, and
// whose deadline ends at this server (RFC 2852). LMTP is delivery itself (RFC 2033).
func (x *transaction) taken(i int, st envelope.Status) {
	a := envelope.ActionDelivered
	by := x.ct.m.Env.Mail.By
	notify := x.s.rcpt(i).Notify
	untold := !x.c.has("DSN") && notify&envelope.NotifySuccess != 0
	traced := by != nil && (by.Trace || !x.c.has("DELIVERBY")) && notify&envelope.NotifyNever == 0
	if !x.c.lmtp && (untold || traced) {
		a = envelope.ActionRelayed
	}
	x.s.put(i, a, st)
	x.s.res[i].DSN = x.c.has("DSN")
}
