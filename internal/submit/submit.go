// Package submit is the local sendmail command: it reads argv and a message, repairs the header, and hands the mail
// to the daemon over the submission socket or, when no daemon answers, leaves it in the maildrop. docs/submission.md
// has the frame format and the rules.
//
// It promises that exit status 0 means the mail is on stable storage, and that anything else means nothing of it is
// queued (except after a reply that never came, see Node.Submit). It never talks to a network, needs neither HOME,
// USER nor PATH, and imports almost nothing: the start of the process is most of what a caller waits for, so package
// os, time, fmt, strings and everything that pulls them in stay out (TestImports keeps the list).
package submit

import "errors"

// Version is printed by --version.
const Version = "mochila sendmail 1"

// Exit codes of sysexits.h.
const (
	ExOK          = 0
	ExUsage       = 64 // bad flag or argument
	ExDataErr     = 65 // bad message
	ExNoInput     = 66 // stdin is not there
	ExNoUser      = 67
	ExNoHost      = 68
	ExUnavailable = 69 // neither daemon nor maildrop
	ExSoftware    = 70
	ExOSErr       = 71
	ExCantCreat   = 73
	ExIOErr       = 74 // disk full, input or output broken
	ExTempFail    = 75 // the same command may succeed later
	ExProtocol    = 76 // the other end of the socket speaks another language
	ExNoPerm      = 77
	ExConfig      = 78
)

// Fault is an error with the exit status that tells it to the caller, and what a person could do about it.
type Fault struct {
	Code int
	Text string
	Hint string // "" or a command that would help
}

// Error is the text without the hint.
func (f *Fault) Error() string { return f.Text }

func fault(code int, text string) *Fault { return &Fault{Code: code, Text: text} }

// asFault gives every error an exit status; what is not a Fault is an input or output error.
func asFault(err error, doing string) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return fault(ExIOErr, doing+": "+err.Error())
}
