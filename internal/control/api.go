// Package control is the verbs behind every subcommand: an HTTP/JSON service on the control socket of a daemon, or the
// same handlers over an in-memory connection when no daemon runs (docs/control.md). It also assembles a node from its
// home: keys, spool, engine, listeners.
package control

import "time"

// Error is what a verb answers instead of its result: what failed, what would help, and the exit code (sysexits.h).
type Error struct {
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
	Exit    int    `json:"exit"`
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Exit codes of sysexits.h that verbs use.
const (
	ExitUsage       = 64
	ExitData        = 65
	ExitNoInput     = 66
	ExitUnavailable = 69
	ExitSoftware    = 70
	ExitCreate      = 73
	ExitIO          = 74
	ExitTemp        = 75
	ExitDenied      = 77
	ExitConfig      = 78
)

// Status is GET /v1/status.
type Status struct {
	Name       string          `json:"name"`
	ID         string          `json:"id"` // fingerprint
	Version    string          `json:"version"`
	Daemon     bool            `json:"daemon"`
	Started    time.Time       `json:"started"`
	Clock      string          `json:"clock,omitempty"` // why it is suspect
	Spool      SpoolStatus     `json:"spool"`
	Queues     []QueueStatus   `json:"queues"`
	Contacts   []ContactStatus `json:"contacts"`
	Peers      []PeerStatus    `json:"peers"`
	Dead       int             `json:"dead"`       // dead letters
	Quarantine int             `json:"quarantine"` // items
	Card       CardStatus      `json:"card"`
	ForReaders HeldStatus      `json:"for_readers"` // what is held because a summary of it went ahead
	Warnings   []string        `json:"warnings,omitempty"`
	Listen     []string        `json:"listen,omitempty"`
	Jobs       []JobChannel    `json:"jobs,omitempty"` // channels on which something waits
}

// CardStatus tells the dates of this node's card.
type CardStatus struct {
	Serial    uint64    `json:"serial"`
	UseUntil  time.Time `json:"use_until"`
	KeepUntil time.Time `json:"keep_until"`
}

// HeldStatus counts mails that are held.
type HeldStatus struct {
	Mails int   `json:"mails"`
	Bytes int64 `json:"bytes"`
}

// SpoolStatus tells about the disk.
type SpoolStatus struct {
	Free  int64 `json:"free"`
	Total int64 `json:"total"`
	Full  bool  `json:"full"`
}

// QueueStatus is one destination's queue.
type QueueStatus struct {
	Dest       string    `json:"dest"` // node name, delivery URL or "dead letters"
	Due        int       `json:"due"`
	Deferred   int       `json:"deferred"`
	Held       int       `json:"held"`
	Sealed     int       `json:"sealed"`
	Travelling int       `json:"travelling"`
	Arrived    int       `json:"arrived"`
	Bytes      int64     `json:"bytes"`
	Oldest     time.Time `json:"oldest,omitzero"`
}

// ContactStatus is one contact.
type ContactStatus struct {
	Node    string    `json:"node"`
	Carrier string    `json:"carrier"`
	When    string    `json:"when"`
	Running bool      `json:"running"`
	Last    time.Time `json:"last,omitzero"`
	OK      time.Time `json:"ok,omitzero"`
	Next    time.Time `json:"next,omitzero"`
	Error   string    `json:"error,omitempty"`
}

// PeerStatus is one peer, for status and GET /v1/peers.
type PeerStatus struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`        // fingerprint
	Full     string    `json:"full_id"`   // 52 characters
	CardEnds time.Time `json:"card_ends"` // use_until
	Heard    time.Time `json:"heard,omitzero"`
	SendAs   []string  `json:"send_as,omitempty"`
	SendTo   []string  `json:"send_to,omitempty"`
	RelayTo  []string  `json:"relay_to,omitempty"`
	Contacts []string  `json:"contacts,omitempty"`
	Domains  []string  `json:"domains,omitempty"` // hints of its card
}

// QueueItem is one envelope: one line of GET /v1/queue. The first seven keys are those of postqueue -j.
type QueueItem struct {
	QueueName    string           `json:"queue_name"` // active, deferred, hold, incoming; ended in a Trace
	QueueID      string           `json:"queue_id"`
	ArrivalTime  int64            `json:"arrival_time"`
	MessageSize  int64            `json:"message_size"`
	ForcedExpire bool             `json:"forced_expire"`
	Sender       string           `json:"sender"`
	Recipients   []QueueRecipient `json:"recipients"`
	Kind         string           `json:"kind"` // mail, report, transit
	Origin       string           `json:"origin"`
	Expires      time.Time        `json:"expires,omitzero"`
	Priority     int              `json:"priority,omitempty"`
	UID          int64            `json:"uid,omitempty"` // uid + 1 of a local submitter
	Legs         []QueueLeg       `json:"legs"`
}

// QueueRecipient is one recipient of a QueueItem.
type QueueRecipient struct {
	Address     string `json:"address"`
	DelayReason string `json:"delay_reason,omitempty"`
	State       string `json:"state"` // of its leg, or its final action
	Link        string `json:"link,omitempty"`
}

// ForReader begins the reason of a QueueLeg that is held because its summary went ahead.
const ForReader = "waits until a reader asks"

// QueueLeg is one way of a QueueItem.
type QueueLeg struct {
	Dest     string    `json:"dest"`
	State    string    `json:"state"`
	At       time.Time `json:"at,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Carrier  string    `json:"carrier,omitempty"`
	// Via names the neighbours that the way leads through, NextContact when one of them will be met by the timetable, and
	// Expected when the mail will be with the destination: with a neighbour, then. What depends on others is not there.
	Via         string    `json:"via,omitempty"`
	NextContact time.Time `json:"next_contact,omitzero"`
	Expected    time.Time `json:"expected_arrival,omitzero"`
}

// QueueShape is GET /v1/qshape?by=neighbour|domain, with the filters of GET /v1/queue: what waits, by place and age.
type QueueShape struct {
	By      string     `json:"by"`
	Minutes []int      `json:"minutes"` // upper bounds of the ages; one more class has all that is older
	Total   ShapeRow   `json:"total"`
	Rows    []ShapeRow `json:"rows"` // most first
}

// ShapeRow counts the recipients (or, without any, the envelopes) for one place.
type ShapeRow struct {
	Name  string `json:"name"`
	Total int    `json:"total"`
	Ages  []int  `json:"ages"`
}

// QueueList is GET /v1/queue?after=ID&limit=N&state=S&dest=D&uid=N&match=TEXT: one page.
type QueueList struct {
	Items []QueueItem `json:"items"`
	More  bool        `json:"more"`
	Count int         `json:"count"` // envelopes in the whole spool; with a filter, those of the page
	Bytes int64       `json:"bytes"`
}

// QueueAction is POST /v1/queue: do something to envelopes.
type QueueAction struct {
	Verb string   `json:"verb"` // hold, release, retry, expire, bounce, remove, reroute, priority
	IDs  []string `json:"ids"`  // ids, unique beginnings of ids, or "ALL"
	// Where chooses envelopes instead of IDs: the parameters of GET /v1/queue.
	Where    map[string]string `json:"where,omitempty"`
	DryRun   bool              `json:"dry_run,omitempty"`  // only tell which
	To       string            `json:"to,omitempty"`       // of reroute: a node or delivery URL; empty: by the rules of now
	Priority int               `json:"priority,omitempty"` // of priority: -9 to 9
	Reason   string            `json:"reason,omitempty"`   // of bounce, for the sender
}

// QueueActed is its answer.
type QueueActed struct {
	Done []string `json:"done"`
}

// Trace is GET /v1/trace/ID.
type Trace struct {
	Item   QueueItem    `json:"item"`
	Done   bool         `json:"done"` // the envelope has ended
	Events []TraceEvent `json:"events"`
	Next   []string     `json:"next,omitempty"` // what will happen, in words
	Final  []TraceFinal `json:"final,omitempty"`
}

// TraceEvent is one custody event.
type TraceEvent struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Detail string    `json:"detail"`
}

// TraceFinal is how one recipient ended.
type TraceFinal struct {
	Address string    `json:"address"`
	Action  string    `json:"action"`
	Status  string    `json:"status"`
	MTA     string    `json:"mta,omitempty"`
	At      time.Time `json:"at,omitzero"`
}

// RouteTest is GET /v1/route?to=ADDR&from=ADDR&size=N.
type RouteTest struct {
	Address string   `json:"address"`
	Result  string   `json:"result"` // one line: where it goes, or the refusal
	OK      bool     `json:"ok"`
	Why     []string `json:"why"`            // each rule, and why it did or did not take it
	Next    string   `json:"next,omitempty"` // the contact it waits for
	Status  error    `json:"-"`              // the refusal, when Result is one
}

// SyncRequest is POST /v1/sync. Targets are node names, carrier URLs or folders; none means every contact that is due.
type SyncRequest struct {
	Targets []string `json:"targets"`
}

// SyncLine is one line of its answer, which is a stream of JSON lines: progress, then results, then a last line with
// End set.
type SyncLine struct {
	Node       string `json:"node,omitempty"`
	Carrier    string `json:"carrier,omitempty"`
	PacketsIn  int    `json:"packets_in"`
	PacketsOut int    `json:"packets_out"`
	BytesIn    int64  `json:"bytes_in"`
	BytesOut   int64  `json:"bytes_out"`
	Refused    int    `json:"refused,omitempty"`
	Incomplete int    `json:"incomplete,omitempty"`
	Lying      int    `json:"lying,omitempty"` // own packets that lie on the medium
	Delivered  int    `json:"delivered,omitempty"`
	Paired     string `json:"paired,omitempty"` // a guest that has become a peer
	Folder     bool   `json:"folder,omitempty"` // "safe to remove" applies
	Error      string `json:"error,omitempty"`
	Hint       string `json:"hint,omitempty"`     // what would help
	Absent     bool   `json:"absent,omitempty"`   // the medium is not there
	Full       bool   `json:"full,omitempty"`     // it has no room for the rest
	Progress   bool   `json:"progress,omitempty"` // not a result yet
	End        bool   `json:"end,omitempty"`
}

// InviteRequest is POST /v1/invite.
type InviteRequest struct {
	Name string `json:"name"` // what the guest will be called here
	URL  string `json:"url"`  // carrier URL, or a folder
}

// InviteReply is its answer. Text is the invitation for carriers that cannot hold it.
type InviteReply struct {
	Where string `json:"where,omitempty"` // file it was written to
	Text  string `json:"text,omitempty"`
	Join  string `json:"join"` // what to type at the guest
}

// JoinRequest is POST /v1/join.
type JoinRequest struct {
	URL  string `json:"url"`
	As   string `json:"as,omitempty"`   // what the inviter will be called here; default: its own name
	Text string `json:"text,omitempty"` // the invitation, when it is not on the medium
}

// JoinReply is its answer.
type JoinReply struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Carrier string `json:"carrier"`
}

// PeerAdd is POST /v1/peers.
type PeerAdd struct {
	Name          string   `json:"name"`
	Card          string   `json:"card"` // text
	Carrier       string   `json:"carrier,omitempty"`
	When          string   `json:"when,omitempty"`
	Routes        []string `json:"routes,omitempty"` // further patterns routed to it
	AcceptDomains bool     `json:"accept_domains,omitempty"`
	SendAs        []string `json:"send_as,omitempty"`
	SendTo        []string `json:"send_to,omitempty"`
	RelayTo       []string `json:"relay_to,omitempty"`
	Path          []string `json:"path,omitempty"` // relay chain to it
}

// CheckReport is GET /v1/check.
type CheckReport struct {
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

// FsckReport is POST /v1/fsck?fix=1.
type FsckReport struct {
	OK    bool     `json:"ok"`
	Lines []string `json:"lines"`
}

// ReceiveReply is POST /v1/receive and /v1/receive/mail.
type ReceiveReply struct {
	Packets int  `json:"packets"`
	Refused int  `json:"refused"`           // always 0: a refusal is an error
	Parts   int  `json:"parts,omitempty"`   // of packets, that came as mail
	Bounced bool `json:"bounced,omitempty"` // a mail server sent one of this node's letters back
}

// ExportRequest is POST /v1/export. The answer is the stream; its trailer ExportTrailer has an ExportReply.
type ExportRequest struct {
	Nodes  []string `json:"nodes"`
	Size   int64    `json:"size,omitempty"`   // of each part, in bytes; 0: no limit
	Parts  int      `json:"parts,omitempty"`  // that restore it; 0: 1
	Parity int      `json:"parity,omitempty"` // further ones that may be lost
	Block  int      `json:"block,omitempty"`  // bytes; 0: 64 KiB
	One    bool     `json:"one,omitempty"`    // all parts share one medium: the size is that of all together
}

// ExportTrailer is the HTTP trailer behind the stream of an export.
const ExportTrailer = "Mochila-Export"

// ExportNames is the HTTP header of an export that has the names of its sets, joined by commas: what /v1/export/undo takes.
const ExportNames = "Mochila-Exports"

// ExportReply is how an export went.
type ExportReply struct {
	Sets  []ExportSet `json:"sets"`
	Bytes int64       `json:"bytes"` // of the stream
	Error string      `json:"error,omitempty"`
	Hint  string      `json:"hint,omitempty"`
	Exit  int         `json:"exit,omitempty"`
}

// ExportSet is what was written for one neighbour.
type ExportSet struct {
	Node      string `json:"node"`
	Export    string `json:"export"` // its name in the queue and for /v1/export/undo
	Packets   int    `json:"packets"`
	Envelopes int    `json:"envelopes"`
	Left      int    `json:"left"` // that are due and found no room
}

// ImportReply is POST /v1/import (export streams as the body).
type ImportReply struct {
	Sets      []ImportSet `json:"sets"`
	Blocks    int64       `json:"blocks"`           // that were read
	Damaged   int64       `json:"damaged"`          // blocks that were
	Rubbish   int64       `json:"rubbish"`          // bytes that belong to no block
	Others    int64       `json:"others,omitempty"` // blocks for other nodes
	Strangers int64       `json:"strangers,omitempty"`
	Delivered int         `json:"delivered"` // mails handed to the local mail system meanwhile
	Error     string      `json:"error,omitempty"`
	Hint      string      `json:"hint,omitempty"`
}

// ImportSet is what came of one export.
type ImportSet struct {
	Node     string `json:"node"` // who wrote it
	Set      string `json:"set"`
	Packets  int    `json:"packets"` // taken now
	Bytes    int64  `json:"bytes"`   // of these
	Known    int    `json:"known"`   // that were here before
	Refused  int    `json:"refused"`
	Damaged  int    `json:"damaged"`
	Complete bool   `json:"complete"`
	Parts    []int  `json:"parts,omitempty"` // of which something is here; not for complete ones
	Need     int    `json:"need"`            // parts that restore it
	Of       int    `json:"of"`              // parts that there are
	Missing  int64  `json:"missing"`         // stripes that are not there yet, as far as is known
	Waiting  int    `json:"waiting"`         // packets that wait for them, as far as is known
	End      bool   `json:"end"`             // whether the end of it was seen
}

// QuarantineItem is one line of GET /v1/quarantine.
type QuarantineItem struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	From   string    `json:"from"`
	Size   int64     `json:"size"`
}

// FlushRequest is POST /v1/flush.
type FlushRequest struct {
	Site string `json:"site,omitempty"` // a peer, or a domain or address: what goes where mail for it goes; "" for everything
}

// FlushReply tells what is due now.
type FlushReply struct {
	Dest string `json:"dest,omitempty"` // as in the queue; "" for everything
}
