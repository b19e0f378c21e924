package spool

import (
	"strings"
	"testing"
)

// custody is the table of docs/spool.md, written down a second time by hand: "-" means that the event cannot happen.
const custody = `
            seal    hop-held    dest-held  outcome  overdue  refuse    peer-renewed  defer     wake  hold  release  finish
due         sealed  due         arrived    done     -        due       due           deferred  due   held  due      done
deferred    -       deferred    arrived    done     -        deferred  deferred      deferred  due   held  due      done
held        -       held        arrived    done     -        held      held          -         -     held  due      done
sealed      sealed  travelling  arrived    done     due      due       due           deferred  -     held  -        done
travelling  -       travelling  arrived    done     due      due       due           -         -     held  -        done
arrived     -       arrived     arrived    done     -        arrived   due           -         -     -     -        done
done        -       done        done       done     -        done      done          -         -     -     -        done
`

func TestNext(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(custody), "\n")
	events := strings.Fields(lines[0])
	if len(events) != NumEvents-1 || len(lines)-1 != NumStates-1 {
		t.Fatalf("the table has %d events and %d states", len(events), len(lines)-1)
	}
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		from, ok := ParseState(cells[0])
		if !ok {
			t.Fatalf("unknown state %q", cells[0])
		}
		for i, want := range cells[1:] {
			e := Event(i + 1)
			if e.String() != events[i] {
				t.Fatalf("event %d is %q, the table says %q", e, e, events[i])
			}
			got, ok := Next(from, e)
			switch {
			case want == "-" && (ok || got != from):
				t.Errorf("%s on %s: got %s, %v; it cannot happen", from, e, got, ok)
			case want != "-" && (!ok || got.String() != want):
				t.Errorf("%s on %s: got %s, %v; want %s", from, e, got, ok, want)
			}
		}
	}
}

// TestNextEnds: nothing leaves Done, whatever arrives late; and every state can end.
func TestNextEnds(t *testing.T) {
	for e := Event(0); int(e) <= NumEvents+1; e++ {
		if got, _ := Next(Done, e); got != Done {
			t.Errorf("done on %s becomes %s", e, got)
		}
	}
	for s := Due; s <= Done; s++ {
		for _, e := range []Event{Finish, Outcome} {
			if got, ok := Next(s, e); !ok || got != Done {
				t.Errorf("%s on %s becomes %s, %v", s, e, got, ok)
			}
		}
	}
	for _, s := range []State{0, Done + 1, 255} {
		if got, ok := Next(s, Finish); ok || got != s {
			t.Errorf("no state at all became %s", got)
		}
	}
}

// TestReceiptsCommute: custody never goes back by a receipt, in whatever order receipts come.
func TestReceiptsCommute(t *testing.T) {
	rank := map[State]int{Due: 0, Deferred: 0, Held: 0, Sealed: 1, Travelling: 2, Arrived: 3, Done: 4}
	for s := Due; s <= Done; s++ {
		for _, e := range []Event{HopHeld, DestHeld, Outcome} {
			got, ok := Next(s, e)
			if !ok || rank[got] < rank[s] {
				t.Errorf("%s on %s becomes %s, %v", s, e, got, ok)
			}
			if again, _ := Next(got, e); again != got {
				t.Errorf("%s on %s twice: %s, then %s", s, e, got, again)
			}
		}
	}
}
