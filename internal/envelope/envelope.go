// Package envelope holds the nouns that travel: mail, jobs and reports with everything their senders said
// about them, and the receipts that move custody. Its encodings are canonical (one value, one byte string),
// bounded (every length is checked before it is believed) and described in docs/format.md.
//
// It never opens files, sockets or keys.
package envelope

import "time"

// Kind tells what an envelope carries.
type Kind uint8

const (
	KindMail    Kind = 1 // Mail is set; the content is the message
	KindJob     Kind = 2 // Job is set; the content is stdin
	KindReport  Kind = 3 // Report is set; no content, or an excerpt
	KindTransit Kind = 4 // never on the wire: a bundle that this node only relays, as the spool keeps it
	KindResult  Kind = 5 // Result is set; the content is stdout, then stderr
)

// Envelope is one mail, job or report: what users see, name and trace.
type Envelope struct {
	ID       ID
	Origin   NodeID // the node that accepted it from its user; not on the wire, the session says it
	Kind     Kind
	Created  time.Time // accepted at the origin, by its clock, milliseconds
	Expires  time.Time // afterwards no node delivers it; seconds are enough
	Priority int       // RFC 6710: -9 to 9, 0 normal
	Size     int64     // content bytes
	Sum      [32]byte  // hash of the content (SumOf)
	Hops     int       // nodes it has passed; loops end at 20
	// Age is how long it had waited in queues when it was sealed, each node counting by its own running time: a lower
	// bound of its true age that no wrong clock spoils. Whole seconds.
	Age    time.Duration
	Mail   *Mail
	Report *Report
	Job    *Job
	Result *Result
}

// Mail is an SMTP envelope (RFC 5321) with its extensions. Addresses are wire text: quotes kept, no angle brackets.
type Mail struct {
	Sender     string // "" is the null reverse-path
	Recipients []Recipient
	Ret        string    // RFC 3461: "FULL", "HDRS" or ""
	EnvID      string    // RFC 3461: xtext as it came
	Body       string    // "7BIT", "8BITMIME", "BINARYMIME" or ""
	SMTPUTF8   bool      // RFC 6531
	RequireTLS bool      // RFC 8689
	By         *By       // RFC 2852
	HoldUntil  time.Time // RFC 4865, HOLDFOR made absolute
	Priority   int       // RFC 6710: MT-PRIORITY as the client asked; Envelope.Priority is what counts
	Auth       *string   // RFC 4954 AUTH= as it came (xtext, "<>" included); nil when absent
	Client     Client
}

// Recipient is one forward-path with its parameters.
type Recipient struct {
	Addr   string
	Notify Notify // RFC 3461
	ORcpt  string // RFC 3461: "type;xtext" as it came
}

// Notify is the set of RFC 3461 section 4.1; zero means the parameter was absent.
type Notify uint8

const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// By is a DELIVERBY request with its deadline made absolute.
type By struct {
	Deadline time.Time
	Return   bool // mode R; else N
	Trace    bool
}

// Client says who handed a mail to the first mochila node: what XFORWARD and Received tell.
type Client struct {
	Proto  string // "SMTP", "ESMTP", "ESMTPSA", "LMTP", "local", "bsmtp"
	Name   string // reverse DNS or XFORWARD NAME
	Addr   string // IP address
	Port   string
	Helo   string
	Ident  string // upstream queue id
	Source string // XFORWARD SOURCE: "LOCAL" or "REMOTE"
	User   string // authenticated user, or local user name
	UID    int64  // local uid + 1, 0 when not local
	TLS    string // "TLSv1.3 TLS_AES_128_GCM_SHA256", or ""
}

// Report tells the origin node how deliveries of one of its envelopes ended. The origin alone turns it
// into a DSN or a job result.
type Report struct {
	Ref        ID     // the envelope it speaks of
	Node       string // name of the reporting node, for people
	Recipients []Outcome
}

// Action is the RFC 3464 word for what happened to a recipient.
type Action uint8

const (
	ActionPending Action = iota // nothing final yet
	ActionDelivered
	ActionFailed
	ActionRelayed // handed to a system that gives no delivery status
	ActionExpanded
	ActionDelayed
)

// String is the word that RFC 3464 section 2.3.3 uses.
func (a Action) String() string {
	switch a {
	case ActionDelivered:
		return "delivered"
	case ActionFailed:
		return "failed"
	case ActionRelayed:
		return "relayed"
	case ActionExpanded:
		return "expanded"
	case ActionDelayed:
		return "delayed"
	}
	return "pending"
}

// Final reports whether nothing more will happen to the recipient.
func (a Action) Final() bool { return a != ActionPending && a != ActionDelayed }

// Outcome is the state of one recipient of one envelope.
type Outcome struct {
	Addr   string
	Action Action
	Status Status // Code 0 where no SMTP dialog was held
	MTA    string // the host that said so, "" for this node
	At     time.Time
	DSN    bool // that host took over the duty to tell the sender what NOTIFY asks for (RFC 3461 section 5.2.2)
}

// Status is an SMTP reply: it serves as error at the SMTP edge and as diagnosis in a DSN.
type Status struct {
	Code     int    // 250, 451, 550 …
	Enhanced string // "5.1.1"; "" when the peer gave none
	Text     string // one line
}

// Error is the reply as one line.
func (s *Status) Error() string { return s.String() }
