package spool

import "strconv"

// State is the custody state of a leg. The zero value is no state.
type State uint8

const (
	Due        State = iota + 1 // may be sent now
	Deferred                    // may be sent from Leg.At on
	Held                        // waits for a person, or for a rule's condition
	Sealed                      // given to a carrier; no receipt yet
	Travelling                  // the next hop has custody; our copy stays
	Arrived                     // the destination has it durably; its outcome is not known yet
	Done                        // ended: delivered, failed or expired
)

// NumStates is one more than the highest State.
const NumStates = int(Done) + 1

// String is the state's name in listings.
func (s State) String() string {
	switch s {
	case Due:
		return "due"
	case Deferred:
		return "deferred"
	case Held:
		return "held"
	case Sealed:
		return "sealed"
	case Travelling:
		return "travelling"
	case Arrived:
		return "arrived"
	case Done:
		return "done"
	}
	return "state " + strconv.Itoa(int(s))
}

// ParseState reads what String wrote.
func ParseState(text string) (State, bool) {
	for s := Due; s <= Done; s++ {
		if s.String() == text {
			return s, true
		}
	}
	return 0, false
}

// Event is something that happens to a leg.
type Event uint8

const (
	Seal        Event = iota + 1 // sealed into a bundle that goes to a carrier
	HopHeld                      // receipt: the next hop has it durably
	DestHeld                     // receipt: the destination has it durably
	Outcome                      // report: how it ended at the destination
	Overdue                      // no news in the time the path usually needs
	Refuse                       // a hop could not use it
	PeerRenewed                  // the destination lost or renewed its memory and has no outcome for it
	Defer                        // a try failed for now, or it must not go yet
	Wake                         // the time of a deferred leg has come
	Hold                         // an operator or rule stops it
	Release                      // an operator or rule lets it go
	Finish                       // delivered here, failed for good, expired, or (relay) in the next hop's custody
)

// NumEvents is one more than the highest Event.
const NumEvents = int(Finish) + 1

// String is the event's name in logs.
func (e Event) String() string {
	names := [NumEvents]string{"", "seal", "hop-held", "dest-held", "outcome", "overdue", "refuse", "peer-renewed", "defer", "wake", "hold", "release", "finish"}
	if int(e) < NumEvents && e != 0 {
		return names[e]
	}
	return "event " + strconv.Itoa(int(e))
}

// transitions is the custody table (docs/spool.md, "States"). Rows are states, columns events in the order of their
// declaration; 0 means that the event cannot happen in that state. Receipts may come late, twice and out of order, so
// each of the first seven columns but Seal and Overdue has an answer in every row.
var transitions = [NumStates][NumEvents]State{
	//           -  Seal    HopHeld     DestHeld Outcome Overdue Refuse    Renewed   Defer     Wake Hold  Release Finish
	Due:        {0, Sealed, Due, Arrived, Done, 0, Due, Due, Deferred, Due, Held, Due, Done},
	Deferred:   {0, 0, Deferred, Arrived, Done, 0, Deferred, Deferred, Deferred, Due, Held, Due, Done},
	Held:       {0, 0, Held, Arrived, Done, 0, Held, Held, 0, 0, Held, Due, Done},
	Sealed:     {0, Sealed, Travelling, Arrived, Done, Due, Due, Due, Deferred, 0, Held, 0, Done},
	Travelling: {0, 0, Travelling, Arrived, Done, Due, Due, Due, 0, 0, Held, 0, Done},
	Arrived:    {0, 0, Arrived, Arrived, Done, 0, Arrived, Due, 0, 0, 0, 0, Done},
	Done:       {0, 0, Done, Done, Done, 0, Done, Done, 0, 0, 0, 0, Done},
}

// Next returns the state that follows s when e happens, and false when e has no meaning in s.
func Next(s State, e Event) (State, bool) {
	if int(s) >= NumStates || int(e) >= NumEvents {
		return s, false
	}
	if n := transitions[s][e]; n != 0 {
		return n, true
	}
	return s, false
}
