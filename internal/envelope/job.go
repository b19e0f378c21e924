package envelope

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// JobKind says what a job asks for.
type JobKind uint8

const (
	JobCommand JobKind = 0 // run a handler
	JobNop     JobKind = 1 // nothing: it only takes its number
	JobBarrier JobKind = 2 // stop the channel until a person lets it go on
	JobVoid    JobKind = 3 // takes the place of a job that was cancelled
)

// String is the word for the kind.
func (k JobKind) String() string {
	words := [...]string{"command", "nop", "barrier", "void"}
	if int(k) < len(words) {
		return words[k]
	}
	return fmt.Sprintf("job kind %d", uint8(k))
}

// Bounds of a job, in bytes unless said otherwise.
const (
	MaxJobName   = 64        // of a channel or handler
	MaxJobArgs   = 1000      // number of arguments, and of variables
	MaxJobText   = 128 << 10 // one argument or value
	MaxJobHeader = 1 << 20   // all of them together
	MaxJobKey    = 128       // Supersede
	MaxReason    = 500       // Result.Reason and ChannelReport.Reason
)

// Job is one entry of a channel: an ordered stream from its origin node to one destination node. The content of its
// envelope is the program's standard input.
//
// A job is named by (origin, channel, epoch, number) and, besides, by the id of its envelope: the same number with
// another id is a fault, never a second job.
type Job struct {
	Channel   string
	Epoch     [8]byte // incarnation of the origin in which the numbering began; zero when Seq is
	Seq       uint64  // from 1; 0 in no order
	Kind      JobKind
	Handler   string      // command only
	Args      []string    // bytes without NUL; never joined into a line
	Env       [][2]string // name and value, in the order they were given
	NotBefore time.Time
	After     ID     // runs only when this job has succeeded at the same destination
	Supersede string // a later job of the channel with the same key takes its place while it waits
	Voids     ID     // JobVoid: the cancelled job

	// The first job of an epoch states what came before it: the previous epoch and its last number, or zero.
	PrevEpoch [8]byte
	PrevSeq   uint64
}

// Fields of a job.
const (
	jobChannel   = 1
	jobEpoch     = 2
	jobSeq       = 3
	jobKind      = 4
	jobHandler   = 5
	jobArg       = 6
	jobEnv       = 7
	jobNotBefore = 8
	jobAfter     = 9
	jobSupersede = 10
	jobVoids     = 11
	jobPrevEpoch = 12
	jobPrevSeq   = 13

	envName  = 1
	envValue = 2
)

// fixed writes a field of fixed length, unless it is all zeros.
func (e *Enc) fixed(tag uint64, v []byte) {
	for _, c := range v {
		if c != 0 {
			e.Item(tag, v)
			return
		}
	}
}

// nonzero reads a field of fixed length that must not be all zeros.
func (d *Dec) nonzero(dst []byte) {
	d.Fixed(dst)
	for _, c := range dst {
		if c != 0 {
			return
		}
	}
	d.fail("field %d is all zeros", d.Tag)
}

func (j *Job) fields(w *Enc) {
	w.String(jobChannel, j.Channel)
	w.fixed(jobEpoch, j.Epoch[:])
	w.Uint(jobSeq, j.Seq)
	w.Uint(jobKind, uint64(j.Kind))
	w.String(jobHandler, j.Handler)
	for _, a := range j.Args {
		w.Item(jobArg, []byte(a))
	}
	for _, v := range j.Env {
		m := w.Begin(jobEnv)
		w.String(envName, v[0])
		w.String(envValue, v[1])
		w.End(m)
	}
	w.Time(jobNotBefore, j.NotBefore)
	w.fixed(jobAfter, j.After[:])
	w.String(jobSupersede, j.Supersede)
	w.fixed(jobVoids, j.Voids[:])
	w.fixed(jobPrevEpoch, j.PrevEpoch[:])
	w.Uint(jobPrevSeq, j.PrevSeq)
}

func (j *Job) parse(d *Dec) {
	for d.Next() {
		switch d.Tag {
		case jobChannel:
			j.Channel = d.String()
		case jobEpoch:
			d.nonzero(j.Epoch[:])
		case jobSeq:
			j.Seq = d.Max(MaxSeq)
		case jobKind:
			j.Kind = JobKind(d.Max(math.MaxUint8))
		case jobHandler:
			j.Handler = d.String()
		case jobArg:
			if v := d.List(); len(j.Args) < MaxJobArgs {
				j.Args = append(j.Args, string(v))
			} else {
				d.Fail("more than %d arguments", MaxJobArgs)
			}
		case jobEnv:
			d.List()
			if len(j.Env) >= MaxJobArgs {
				d.Fail("more than %d variables", MaxJobArgs)
				return
			}
			var v [2]string
			d.Sub(func(d *Dec) {
				for d.Next() {
					switch d.Tag {
					case envName:
						v[0] = d.String()
					case envValue:
						v[1] = d.String()
					default:
						d.Unknown()
					}
				}
			})
			j.Env = append(j.Env, v)
		case jobNotBefore:
			j.NotBefore = d.Time()
		case jobAfter:
			d.nonzero(j.After[:])
		case jobSupersede:
			j.Supersede = d.String()
		case jobVoids:
			d.nonzero(j.Voids[:])
		case jobPrevEpoch:
			d.nonzero(j.PrevEpoch[:])
		case jobPrevSeq:
			j.PrevSeq = d.Max(MaxSeq)
		default:
			d.Unknown()
		}
	}
}

// CheckJobName reports whether s can name a channel or a handler: 1 to 64 of a-z, A-Z, 0-9, ".", "_", "-", and not one of
// the last two or a point in front. Names so formed are safe in file names, log lines and addresses.
func CheckJobName(what, s string) error {
	ok := s != "" && len(s) <= MaxJobName && s[0] != '.' && s[0] != '-' && s[0] != '_'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
	}
	if !ok {
		return fmt.Errorf("%w: %s %q is not 1 to %d letters, digits, points, underscores and hyphens", ErrFormat, what, OneLine(s, 80), MaxJobName)
	}
	return nil
}

// Check reports whether the job may travel.
func (j *Job) Check() error {
	if err := CheckJobName("channel", j.Channel); err != nil {
		return err
	}
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrFormat}, a...)...)
	}
	switch {
	case j.Kind > JobVoid:
		return bad("%v", j.Kind)
	case (j.Seq == 0) != (j.Epoch == [8]byte{}):
		return bad("a number without epoch, or an epoch without number")
	case j.Seq > MaxSeq || j.PrevSeq > MaxSeq:
		return bad("job number past the last one")
	case (j.PrevSeq == 0) != (j.PrevEpoch == [8]byte{}) || j.PrevSeq != 0 && j.Seq != 1 || j.PrevSeq != 0 && j.PrevEpoch == j.Epoch:
		return bad("only the first job of an epoch names the one before it")
	case (j.Kind == JobVoid) != (j.Voids != ID{}):
		return bad("a void job names what it voids, no other does")
	case j.Kind != JobCommand && (j.Handler != "" || len(j.Args) > 0 || len(j.Env) > 0):
		return bad("a %v job runs nothing", j.Kind)
	case (j.Kind == JobVoid || j.Kind == JobBarrier) && j.Seq == 0:
		return bad("a %v job without number", j.Kind)
	case len(j.Supersede) > MaxJobKey:
		return bad("key of %d bytes, more than %d", len(j.Supersede), MaxJobKey)
	case len(j.Args) > MaxJobArgs || len(j.Env) > MaxJobArgs:
		return bad("%d arguments and %d variables, more than %d", len(j.Args), len(j.Env), MaxJobArgs)
	}
	if err := checkText("supersede key", j.Supersede, MaxJobKey); err != nil {
		return err
	}
	if j.Kind == JobCommand {
		if err := CheckJobName("handler", j.Handler); err != nil {
			return err
		}
	}
	total := 0
	text := func(what, s string) error {
		if total += len(s) + 8; len(s) > MaxJobText || total > MaxJobHeader {
			return bad("%s is too long, or all of them together", what)
		}
		if strings.IndexByte(s, 0) >= 0 {
			return bad("%s has a zero byte", what)
		}
		return nil
	}
	for _, a := range j.Args {
		if err := text("argument", a); err != nil {
			return err
		}
	}
	for _, v := range j.Env {
		if v[0] == "" || strings.IndexByte(v[0], '=') >= 0 || len(v[0]) > 255 || checkText("", v[0], 255) != nil {
			return bad("%q is not the name of a variable", OneLine(v[0], 80))
		}
		if err := text("variable", v[1]); err != nil {
			return err
		}
	}
	return nil
}

// JobState is how a job ended, or stands.
type JobState uint8

const (
	JobDone       JobState = 1 // exit status 0
	JobFailed     JobState = 2 // another status, or a signal
	JobRefused    JobState = 3 // not granted, or impossible here
	JobExpired    JobState = 4
	JobSuperseded JobState = 5
	JobCancelled  JobState = 6
	JobUnknown    JobState = 7 // it was started, and nobody knows how it went
	JobTimeout    JobState = 8 // killed after its time
	JobSkipped    JobState = 9 // passed over by a person
)

const lastJobState = JobSkipped

// String is the word for the state.
func (s JobState) String() string {
	words := [...]string{"waiting", "done", "failed", "refused", "expired", "superseded", "cancelled", "unknown", "timeout", "skipped"}
	if int(s) < len(words) {
		return words[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Result tells the origin of a job how it ended. The content of its envelope is what the program wrote: Stdout bytes of
// standard output, then Stderr bytes of standard error.
type Result struct {
	Ref                    ID     // the job's envelope
	Node                   string // name of the reporting node, for people
	Channel                string
	Epoch                  [8]byte
	Seq                    uint64
	State                  JobState
	Exit                   int  // 0 to 255, with done and failed
	Signal                 int  // that ended the program, 0 for none
	Held                   bool // not the last word: the channel waits for a person
	Tries                  int
	Started, Ended         time.Time // by the destination's clock, milliseconds
	Stdout, Stderr         int64     // bytes in the content
	DroppedOut, DroppedErr int64     // bytes above the cap
	Reason                 string    // one line
}

// Fields of a result.
const (
	resRef        = 1
	resNode       = 2
	resChannel    = 3
	resEpoch      = 4
	resSeq        = 5
	resState      = 6
	resExit       = 7
	resSignal     = 8
	resHeld       = 9
	resTries      = 10
	resStarted    = 11
	resEnded      = 12
	resStdout     = 13
	resStderr     = 14
	resDroppedOut = 15
	resDroppedErr = 16
	resReason     = 17
)

func (r *Result) fields(w *Enc) {
	w.Item(resRef, r.Ref[:])
	w.String(resNode, OneLine(r.Node, MaxNodeName))
	w.String(resChannel, r.Channel)
	w.fixed(resEpoch, r.Epoch[:])
	w.Uint(resSeq, r.Seq)
	w.Uint(resState, uint64(r.State))
	w.Uint(resExit, uint64(max(r.Exit, 0)))
	w.Uint(resSignal, uint64(max(r.Signal, 0)))
	w.Bool(resHeld, r.Held)
	w.Uint(resTries, uint64(max(r.Tries, 0)))
	w.Time(resStarted, r.Started)
	w.Time(resEnded, r.Ended)
	w.Uint(resStdout, uint64(max(r.Stdout, 0)))
	w.Uint(resStderr, uint64(max(r.Stderr, 0)))
	w.Uint(resDroppedOut, uint64(max(r.DroppedOut, 0)))
	w.Uint(resDroppedErr, uint64(max(r.DroppedErr, 0)))
	w.String(resReason, OneLine(r.Reason, MaxReason))
}

func (r *Result) parse(d *Dec) {
	ref := false
	for d.Next() {
		switch d.Tag {
		case resRef:
			d.nonzero(r.Ref[:])
			ref = true
		case resNode:
			r.Node = d.oneLine(MaxNodeName)
		case resChannel:
			r.Channel = d.String()
		case resEpoch:
			d.nonzero(r.Epoch[:])
		case resSeq:
			r.Seq = d.Max(MaxSeq)
		case resState:
			r.State = JobState(d.Max(math.MaxUint8))
		case resExit:
			r.Exit = int(d.Max(255))
		case resSignal:
			r.Signal = int(d.Max(255))
		case resHeld:
			r.Held = d.Bool()
		case resTries:
			r.Tries = int(d.Max(math.MaxInt32))
		case resStarted:
			r.Started = d.Time()
		case resEnded:
			r.Ended = d.Time()
		case resStdout:
			r.Stdout = int64(d.Max(math.MaxInt64))
		case resStderr:
			r.Stderr = int64(d.Max(math.MaxInt64))
		case resDroppedOut:
			r.DroppedOut = int64(d.Max(math.MaxInt64))
		case resDroppedErr:
			r.DroppedErr = int64(d.Max(math.MaxInt64))
		case resReason:
			r.Reason = d.oneLine(MaxReason)
		default:
			d.Unknown()
		}
	}
	if !ref {
		d.Fail("a result of nothing")
	}
}

// check reports whether the result may travel; size is the length of its content.
func (r *Result) check(size int64) error {
	if err := CheckJobName("channel", r.Channel); err != nil {
		return err
	}
	switch {
	case r.Ref.IsZero():
		return fmt.Errorf("%w: a result of nothing", ErrFormat)
	case (r.Seq == 0) != (r.Epoch == [8]byte{}) || r.Seq > MaxSeq:
		return fmt.Errorf("%w: result with a number without epoch, or an epoch without number", ErrFormat)
	case r.State == 0 || r.State > lastJobState:
		return fmt.Errorf("%w: result with state %d", ErrFormat, r.State)
	case r.Exit < 0 || r.Exit > 255 || r.Signal < 0 || r.Signal > 255 || r.Tries < 0:
		return fmt.Errorf("%w: result with status %d, signal %d", ErrFormat, r.Exit, r.Signal)
	case r.Stdout < 0 || r.Stderr < 0 || r.Stdout > size || r.Stdout+r.Stderr != size:
		return fmt.Errorf("%w: result with %d and %d bytes of output, and content of %d", ErrFormat, r.Stdout, r.Stderr, size)
	case r.DroppedOut < 0 || r.DroppedErr < 0:
		return fmt.Errorf("%w: result without %d bytes", ErrFormat, r.DroppedOut)
	}
	return nil
}

// ChannelReport is the state of one channel as its destination sees it: what it waits for is what the origin sends
// again. Reports with a lower number than one taken before are old news.
type ChannelReport struct {
	Channel     string
	Epoch       [8]byte
	Report      uint64  // counts the reports on this epoch, from 1
	Incarnation [8]byte // of the sender of this record
	Next        uint64  // lowest number without outcome
	Held        Ranges  // numbers above that are here; no checks
	Lost        bool    // the sender lost its memory, and starts nothing before a resume
	Reason      string  // why the channel does not go on, for people; one line
}

// Resume is the origin's answer to a destination that asks for what the origin no longer has, or that lost its memory.
type Resume struct {
	Channel string
	Epoch   [8]byte
	Number  uint64  // counts the resumes of this channel, from 1
	For     [8]byte // the incarnation of the destination that it speaks to
	Floor   uint64  // lowest number without outcome at the origin: whatever is below has ended
	Next    uint64  // the number after the last one given out in this epoch
	Maybe   Ranges  // numbers without outcome that may have been started before the memory was lost; no checks
	Ended   Ranges  // numbers above Floor that have ended as well; no checks
}

// Fields of channel records.
const (
	chanChannel     = 1
	chanEpoch       = 2
	chanReport      = 3
	chanIncarnation = 4
	chanNext        = 5
	chanHeld        = 6
	chanLost        = 7
	chanReason      = 8

	resumeNumber = 3
	resumeFor    = 4
	resumeFloor  = 5
	resumeNext   = 6
	resumeMaybe  = 7
	resumeEnded  = 8
)

// Append appends the record's body.
func (c *ChannelReport) Append(b []byte) []byte {
	w := Enc{B: b}
	w.String(chanChannel, c.Channel)
	w.fixed(chanEpoch, c.Epoch[:])
	w.Uint(chanReport, c.Report)
	w.fixed(chanIncarnation, c.Incarnation[:])
	w.Uint(chanNext, c.Next)
	if len(c.Held) > 0 {
		m := w.Begin(chanHeld)
		w.B = appendRanges(w.B, c.Held, false)
		w.End(m)
	}
	w.Bool(chanLost, c.Lost)
	w.String(chanReason, OneLine(c.Reason, MaxReason))
	return w.B
}

// ParseChannelReport reads what Append wrote.
func ParseChannelReport(b []byte) (*ChannelReport, error) {
	c := new(ChannelReport)
	d := Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case chanChannel:
			c.Channel = d.String()
		case chanEpoch:
			d.nonzero(c.Epoch[:])
		case chanReport:
			c.Report = d.Uint()
		case chanIncarnation:
			d.nonzero(c.Incarnation[:])
		case chanNext:
			c.Next = d.Max(MaxSeq + 1)
		case chanHeld:
			c.Held = d.ranges(false)
		case chanLost:
			c.Lost = d.Bool()
		case chanReason:
			c.Reason = d.oneLine(MaxReason)
		default:
			d.Unknown()
		}
	}
	d.channel(c.Channel, c.Epoch, c.Report, c.Next)
	return done(c, &d, RecordChannel)
}

// channel refuses a channel record without its name, epoch or numbers.
func (d *Dec) channel(name string, epoch [8]byte, number, next uint64) {
	if d.Err != nil {
		return
	}
	if err := CheckJobName("channel", name); err != nil {
		d.Err = err
		return
	}
	if epoch == [8]byte{} || number == 0 || next == 0 {
		d.Fail("a channel without epoch or number")
	}
}

// Append appends the record's body.
func (r *Resume) Append(b []byte) []byte {
	w := Enc{B: b}
	w.String(chanChannel, r.Channel)
	w.fixed(chanEpoch, r.Epoch[:])
	w.Uint(resumeNumber, r.Number)
	w.fixed(resumeFor, r.For[:])
	w.Uint(resumeFloor, r.Floor)
	w.Uint(resumeNext, r.Next)
	if len(r.Maybe) > 0 {
		m := w.Begin(resumeMaybe)
		w.B = appendRanges(w.B, r.Maybe, false)
		w.End(m)
	}
	if len(r.Ended) > 0 {
		m := w.Begin(resumeEnded)
		w.B = appendRanges(w.B, r.Ended, false)
		w.End(m)
	}
	return w.B
}

// ParseResume reads what Append wrote.
func ParseResume(b []byte) (*Resume, error) {
	r := new(Resume)
	d := Dec{B: b}
	for d.Next() {
		switch d.Tag {
		case chanChannel:
			r.Channel = d.String()
		case chanEpoch:
			d.nonzero(r.Epoch[:])
		case resumeNumber:
			r.Number = d.Uint()
		case resumeFor:
			d.nonzero(r.For[:])
		case resumeFloor:
			r.Floor = d.Max(MaxSeq + 1)
		case resumeNext:
			r.Next = d.Max(MaxSeq + 1)
		case resumeMaybe:
			r.Maybe = d.ranges(false)
		case resumeEnded:
			r.Ended = d.ranges(false)
		default:
			d.Unknown()
		}
	}
	d.channel(r.Channel, r.Epoch, r.Number, r.Next)
	if d.Err == nil && (r.Floor == 0 || r.Floor > r.Next) {
		d.Fail("a floor of %d, above the next number", r.Floor)
	}
	return done(r, &d, RecordResume)
}
