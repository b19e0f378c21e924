package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"mochila/bridge/route"
	"mochila/internal/envelope"
)

// The exit codes of sysexits.h that say more than "try again later".
const (
	exUsage       = 64
	exDataErr     = 65
	exNoUser      = 67
	exNoHost      = 68
	exUnavailable = 69
	exSoftware    = 70
	exTempFail    = 75
	exProtocol    = 76
	exNoPerm      = 77
)

// program runs one program per attempt. Its input is gathered in a file first and checked there, so that not even a
// crash of this process makes a program take half a mail for a whole one.
type program struct {
	path string
	o    Options
	mta  string
}

func newProgram(path, mta string, o Options) (program, error) {
	path, err := localPath(path, o)
	if err == nil && strings.Contains(path, " ") {
		if _, serr := os.Stat(path); serr != nil {
			err = fmt.Errorf("%q is not a program (arguments are not possible here: wrap it in a script)", path)
		}
	}
	return program{path: path, o: o, mta: mta}, err
}

// Close does nothing: programs run within Deliver only.
func (p *program) Close() error { return nil }

// input gathers the mail with LF lines in a file without a name, ready to be read.
func (p *program) input(ct *content) (*os.File, error) {
	f, err := os.CreateTemp(p.o.TempDir, ".mochila-deliver-*")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), writeLocal(f, ct, "")); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ended tells how a run ended.
type ended struct {
	code int    // exit code, -1 when there is none
	text string // first line of what it printed
	why  string // in place of a code: "killed by signal 9", "took longer than 10m0s"
}

// run starts the program in a process group of its own and waits for it. After the time limit, or the grace that
// follows the end of ctx, the whole group is killed.
func (p *program) run(ctx context.Context, args, env []string, in io.Reader) ended {
	if ctx.Err() != nil {
		return ended{code: -1, why: "not started: interrupted"}
	}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.o.Run)
	release := onDone(ctx, func() {
		t := time.NewTimer(p.o.Grace)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-rctx.Done():
		}
	})
	defer release()
	defer cancel()
	cmd := exec.CommandContext(rctx, p.path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // for output that a process outside the group holds open
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}, env...)
	cmd.Dir = "/"
	var out head
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &out
	err := cmd.Run()
	e := ended{code: -1, text: firstLine(out.b)}
	switch st := cmd.ProcessState; {
	case st == nil:
		e.why = fmt.Sprintf("cannot start %s: %s", p.path, reason(err))
	case rctx.Err() == context.DeadlineExceeded && !st.Success():
		e.why = fmt.Sprintf("%s took longer than %s", filepath.Base(p.path), p.o.Run)
	case rctx.Err() != nil && !st.Success():
		e.why = "interrupted"
	case st.ExitCode() < 0:
		e.why = filepath.Base(p.path) + " was " + st.String()
	default:
		e.code = st.ExitCode()
	}
	return e
}

// head keeps the first bytes that are written to it.
type head struct{ b []byte }

// Write keeps the beginning of what a program says, and takes the rest without keeping it.
func (h *head) Write(p []byte) (int, error) {
	if room := 4096 - len(h.b); room > 0 {
		h.b = append(h.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func firstLine(b []byte) string {
	for l := range bytes.Lines(b) {
		if s := cleanText(string(l)); s != "" {
			return s
		}
	}
	return ""
}

// verdict reads a failed run. A code like 5.1.1 or 4.4.1 in front of the first output line refines what the exit
// code says; where the two disagree, the mail is kept and tried again. permanent names the exit codes that are final.
func (e ended) verdict(name string, permanent map[int]string) (envelope.Action, envelope.Status) {
	code, text, ok := cutEnhanced(e.text)
	if !ok || code[0] == '2' {
		code, text = "", e.text
	}
	enhanced, final := permanent[e.code]
	switch {
	case e.why != "" || e.code == exTempFail || code != "" && code[0] == '4':
		final = false
	case code != "": // 5.x.y with an exit code that is not a plain "later"
		final = true
	}
	if code != "" {
		enhanced = code
	}
	if enhanced == "" {
		enhanced = "4.3.0"
	}
	if !final {
		enhanced = "4" + enhanced[1:]
	}
	if e.why != "" {
		text = strings.TrimSuffix(e.why+": "+text, ": ")
	} else if text == "" {
		text = fmt.Sprintf("%s exited with status %d", name, e.code)
	}
	a := envelope.ActionPending
	if final {
		a = envelope.ActionFailed
	}
	return a, ours(enhanced, text)
}

// pipe hands mail to a program, once for each recipient: the mail on stdin, SENDER ("" for the null sender),
// RECIPIENT and MOCHILA_ID in the environment, no arguments. Exit 0 is delivery.
type pipe struct{ program }

// pipeFailures are the exit codes that end in a failure. Others, 1 among them, may be an accident of the script or
// the machine and are tried again.
var pipeFailures = map[int]string{
	exDataErr: "5.6.0", exNoUser: "5.1.1", exNoHost: "5.1.2", exUnavailable: "5.3.0", exSoftware: "5.3.0",
	exProtocol: "5.5.0", exNoPerm: "5.7.0",
}

func newPipe(path string, o Options) (Transport, error) {
	p, err := newProgram(path, "pipe", o)
	return &pipe{p}, err
}

// Deliver runs the program for one recipient after the other.
func (p *pipe) Deliver(ctx context.Context, m *Message) []Result {
	s := newSheet(m, p.mta)
	ct, err := load(m, false)
	if err != nil {
		s.trouble(err)
		return s.res
	}
	sender := m.Env.Mail.Sender
	for _, i := range s.open() {
		rcpt := s.rcpt(i).Addr
		switch {
		case ctx.Err() != nil:
			s.wait(ours("4.3.2", "not tried: interrupted"))
			return s.res
		case sender != "" && !route.SafePath(sender):
			s.fail(i, "5.1.7", fmt.Sprintf("sender address %q is none", sender))
			continue
		case !route.SafePath(rcpt):
			s.fail(i, "5.1.3", fmt.Sprintf("recipient address %q is none", rcpt))
			continue
		}
		in, err := p.input(ct)
		if err != nil {
			s.trouble(err)
			return s.res
		}
		e := p.run(ctx, nil, []string{"SENDER=" + sender, "RECIPIENT=" + rcpt, "MOCHILA_ID=" + m.Env.ID.String()}, in)
		in.Close()
		if e.code == 0 {
			s.put(i, envelope.ActionDelivered, envelope.Status{Enhanced: "2.0.0", Text: "delivered to " + p.path})
			continue
		}
		a, st := e.verdict(filepath.Base(p.path), pipeFailures)
		s.put(i, a, st)
	}
	return s.res
}

// sendmail hands mail to a program with sendmail's command line.
type sendmail struct {
	program

	mu    sync.Mutex
	exim  *bool // nil: not asked yet
	plain bool  // it knows no -G
}

// sendmailFailures are final; a sendmail that ends in any other way has queued nothing, and may later.
var sendmailFailures = map[int]string{
	exDataErr: "5.6.0", exNoUser: "5.1.1", exNoHost: "5.1.2", exProtocol: "5.5.0", exNoPerm: "5.7.0",
}

func newSendmail(path string, o Options) (Transport, error) {
	p, err := newProgram(path, "sendmail", o)
	return &sendmail{program: p}, err
}

// Deliver runs the program once for all recipients with the same NOTIFY, and one by one after a final failure of
// several, to find out whose it was.
func (p *sendmail) Deliver(ctx context.Context, m *Message) []Result {
	s := newSheet(m, p.mta)
	mail := m.Env.Mail
	ct, err := load(m, true)
	switch {
	case err != nil:
		s.trouble(err)
		return s.res
	case mail.Sender != "" && !route.SafePath(mail.Sender):
		for _, i := range s.open() {
			s.fail(i, "5.1.7", fmt.Sprintf("sender address %q is none", mail.Sender))
		}
		return s.res
	case mail.RequireTLS:
		for _, i := range s.open() {
			s.fail(i, "5.7.30", "REQUIRETLS was asked for, and sendmail has no way to say so")
		}
		return s.res
	case m.unsupported() != nil:
		for _, i := range s.open() {
			s.fail(i, m.unsupported().enhanced, m.unsupported().text)
		}
		return s.res
	}
	groups := map[envelope.Notify][]int{}
	var order []envelope.Notify
	for _, i := range s.open() {
		r := s.rcpt(i)
		if !route.SafePath(r.Addr) {
			s.fail(i, "5.1.3", fmt.Sprintf("recipient address %q is none", r.Addr))
			continue
		}
		if groups[r.Notify] == nil {
			order = append(order, r.Notify)
		}
		groups[r.Notify] = append(groups[r.Notify], i)
	}
	for _, n := range order {
		for g := groups[n]; len(g) > 0; {
			k := min(len(g), p.o.MaxRcpts)
			p.group(ctx, ct, s, g[:k])
			g = g[k:]
		}
	}
	s.wait(ours("4.3.2", "not tried: interrupted"))
	return s.res
}

// group runs the program for some recipients.
func (p *sendmail) group(ctx context.Context, ct *content, s *sheet, who []int) {
	if ctx.Err() != nil {
		return
	}
	e, err := p.attempt(ctx, ct, s, who)
	if err != nil {
		s.trouble(err)
		return
	}
	if e.code == 0 {
		for _, i := range who {
			s.put(i, envelope.ActionRelayed, envelope.Status{Enhanced: "2.0.0", Text: "taken by " + p.path})
		}
		return
	}
	a, st := e.verdict(filepath.Base(p.path), sendmailFailures)
	if a == envelope.ActionFailed && len(who) > 1 {
		for k := range who {
			p.group(ctx, ct, s, who[k:k+1])
		}
		return
	}
	for _, i := range who {
		s.put(i, a, st)
	}
}

// attempt is one run, or two when the program turns out not to know -G.
func (p *sendmail) attempt(ctx context.Context, ct *content, s *sheet, who []int) (ended, error) {
	for {
		args, gateway := p.args(ctx, ct, s, who)
		in, err := p.input(ct)
		if err != nil {
			return ended{}, err
		}
		e := p.run(ctx, args, nil, in)
		in.Close()
		if !gateway || e.code != exUsage && e.code != 1 || !blamesOption(e.text) {
			return e, nil
		}
		p.mu.Lock()
		p.plain = true
		p.mu.Unlock()
	}
}

// blamesOption reports whether a program complains of its command line, as OpenSMTPD and dma do of -G.
func blamesOption(text string) bool {
	t := strings.ToLower(text)
	return strings.Contains(t, "option") || strings.Contains(t, "usage")
}

// args is the command line. What comes from the mail is either behind an option that takes the next argument
// whatever it looks like, or behind --.
func (p *sendmail) args(ctx context.Context, ct *content, s *sheet, who []int) (args []string, gateway bool) {
	mail := s.m.Env.Mail
	p.mu.Lock()
	gateway = !p.plain
	p.mu.Unlock()
	if gateway {
		args = append(args, "-G")
	}
	sender := mail.Sender
	if sender == "" {
		sender = "<>"
	}
	args = append(args, "-i", "-f", sender)
	if ct.eight {
		args = append(args, "-B", "8BITMIME")
	}
	notify := notifyText(s.rcpt(who[0]).Notify)
	envid, _ := UnXtext(mail.EnvID)
	if (notify != "" || mail.Ret != "" || envid != "") && !p.isExim(ctx) {
		if notify != "" {
			args = append(args, "-N", strings.ToLower(notify))
		}
		switch mail.Ret {
		case "FULL":
			args = append(args, "-R", "full")
		case "HDRS":
			args = append(args, "-R", "hdrs")
		}
		if token(envid, false) && envid[0] != '-' {
			args = append(args, "-V", envid)
		}
	}
	args = append(args, "--")
	for _, i := range who {
		args = append(args, s.rcpt(i).Addr)
	}
	return args, gateway
}

// isExim asks the program once whether it is Exim, for which -N means "do not deliver" and -R a queue run. Asking
// is harmless elsewhere: no recipients, no input. A program that does not answer is not given DSN options either.
func (p *sendmail) isExim(ctx context.Context) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exim != nil {
		return *p.exim
	}
	probe := p.program
	probe.o.Run = min(probe.o.Run, 10*time.Second)
	e := probe.run(ctx, []string{"-bV"}, nil, nil)
	if e.why != "" && ctx.Err() != nil {
		return true // says nothing about the program: ask again next time
	}
	yes := e.why != "" || strings.Contains(strings.ToLower(e.text), "exim")
	p.exim = &yes
	return yes
}

// UnXtext decodes xtext (RFC 3461 section 4). ok is false, and the text comes back as it was, when it is none.
func UnXtext(s string) (text string, ok bool) {
	if !strings.Contains(s, "+") {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return s, false
		}
		hi, lo := strings.IndexByte("0123456789ABCDEF", s[i+1]), strings.IndexByte("0123456789ABCDEF", s[i+2])
		if hi < 0 || lo < 0 {
			return s, false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), true
}
