package deliver

import (
	"errors"

	"mochila/internal/envelope"
)

// sheet gathers the results of one Deliver call. Recipients are counted by their place in Message.Rcpts.
type sheet struct {
	m   *Message
	mta string
	res []Result
	set []bool
}

func newSheet(m *Message, mta string) *sheet {
	return &sheet{m: m, mta: mta, res: make([]Result, len(m.Rcpts)), set: make([]bool, len(m.Rcpts))}
}

// rcpt is a recipient by its place.
func (s *sheet) rcpt(i int) *envelope.Recipient { return &s.m.Env.Mail.Recipients[s.m.Rcpts[i]] }

func (s *sheet) put(i int, a envelope.Action, st envelope.Status) {
	s.res[i] = Result{Rcpt: s.m.Rcpts[i], Action: a, Status: st, MTA: s.mta}
	s.set[i] = true
}

// reply decides a recipient by a refusal: 5xx is final, everything else can be tried again.
func (s *sheet) refuse(i int, st envelope.Status) {
	if st.Code/100 == 5 {
		if st.Enhanced == "" {
			st.Enhanced = "5.0.0"
		}
		s.put(i, envelope.ActionFailed, st)
		return
	}
	if st.Enhanced == "" || st.Enhanced[0] != '4' {
		st.Enhanced = "4.0.0"
	}
	s.put(i, envelope.ActionPending, st)
}

// fail ends a recipient for a reason of our own: no dialog, hence no code.
func (s *sheet) fail(i int, enhanced, text string) {
	s.put(i, envelope.ActionFailed, envelope.Status{Enhanced: enhanced, Text: cleanText(text)})
}

// open lists the recipients without a result.
func (s *sheet) open() []int {
	var out []int
	for i, done := range s.set {
		if !done {
			out = append(out, i)
		}
	}
	return out
}

// wait makes every recipient without a result pending.
func (s *sheet) wait(st envelope.Status) {
	for _, i := range s.open() {
		s.put(i, envelope.ActionPending, st)
	}
}

// trouble is wait for content that cannot be read, or is not what it was.
func (s *sheet) trouble(err error) {
	for _, i := range s.open() {
		s.put(i, envelope.ActionPending, ours("4.3.0", err.Error()))
		s.res[i].Corrupt = isCorrupt(err)
	}
}

// ours is a Status of this node's own making.
func ours(enhanced, text string) envelope.Status {
	return envelope.Status{Enhanced: enhanced, Text: cleanText(text)}
}

// openOf is those of the given recipients that have no result yet.
func (s *sheet) openOf(who []int) []int {
	var out []int
	for _, i := range who {
		if !s.set[i] {
			out = append(out, i)
		}
	}
	return out
}

// down marks what is pending as the fault of the place.
func (s *sheet) down() {
	for i := range s.res {
		if s.res[i].Action == envelope.ActionPending {
			s.res[i].Down = true
		}
	}
}

func isCorrupt(err error) bool { return errors.Is(err, errCorrupt) }
