package config

import (
	"fmt"
	"strings"
	"time"
)

// When says at what times a contact may be made:
//
//	always                    whenever something is due, and every= to look for more
//	on-call                   never by this node: the neighbour calls
//	manual                    only by `mochila sync`
//	every 4h                  then, whatever is due
//	Mo-Fr 06:00-08:00         as always, inside weekly windows; several are separated by ";", days by ","
//	22:00-06:00 UTC           every day; a window that ends before it begins ends on the next day
//
// Windows are local time unless UTC follows the last one. The zero value is always.
type When struct {
	mode    string // "" always
	every   Duration
	windows []Window
	utc     bool
}

// Window is one weekly opening: on each of Days from Start until End, both since midnight; End may lie up to 24 hours
// after the day's end.
type Window struct {
	Days       [7]bool // indexed by time.Weekday
	Start, End time.Duration
}

const (
	modeOnCall = "on-call"
	modeManual = "manual"
)

var dayNames = [7]string{"Su", "Mo", "Tu", "We", "Th", "Fr", "Sa"}

// ParseWhen reads the grammar above. Day names may be in any case and in full.
func ParseWhen(s string) (When, error) {
	fail := func(why string) (When, error) {
		return When{}, fmt.Errorf("%q is not a time to make contact, such as always, on-call, manual, every 4h or Mo-Fr 06:00-08:00: %s", s, why)
	}
	t := strings.TrimSpace(s)
	switch strings.ToLower(t) {
	case "always":
		return When{}, nil
	case modeOnCall, modeManual:
		return When{mode: strings.ToLower(t)}, nil
	}
	if words := strings.Fields(t); len(words) == 2 && strings.EqualFold(words[0], "every") {
		every, err := ParseDuration(words[1])
		if err != nil {
			return fail(err.Error())
		}
		if every < Duration(time.Second) {
			return fail("it is shorter than 1s")
		}
		return When{every: every}, nil
	}
	var w When
	if rest, ok := cutFoldSuffix(t, " utc"); ok {
		t, w.utc = rest, true
	}
	for part := range strings.SplitSeq(t, ";") {
		win, err := parseWindow(strings.Fields(part))
		if err != nil {
			return fail(err.Error())
		}
		w.windows = append(w.windows, win)
		if len(w.windows) > 100 {
			return fail("it has more than 100 windows")
		}
	}
	return w, nil
}

func cutFoldSuffix(s, suffix string) (string, bool) {
	if len(s) >= len(suffix) && strings.EqualFold(s[len(s)-len(suffix):], suffix) {
		return s[:len(s)-len(suffix)], true
	}
	return s, false
}

func parseWindow(fields []string) (Window, error) {
	var w Window
	switch len(fields) {
	case 1:
		w.Days = [7]bool{true, true, true, true, true, true, true}
	case 2:
		if err := w.parseDays(fields[0]); err != nil {
			return w, err
		}
	default:
		return w, fmt.Errorf("a window is DAYS HH:MM-HH:MM")
	}
	from, to, ok := strings.Cut(fields[len(fields)-1], "-")
	if !ok {
		return w, fmt.Errorf("a window is DAYS HH:MM-HH:MM")
	}
	var err error
	if w.Start, err = parseClock(from); err != nil {
		return w, err
	}
	if w.End, err = parseClock(to); err != nil {
		return w, err
	}
	if w.Start == day {
		return w, fmt.Errorf("a window cannot begin at 24:00")
	}
	if w.End == w.Start {
		return w, fmt.Errorf("a window from %s to %s is empty", from, to)
	}
	if w.End < w.Start {
		w.End += day
	}
	return w, nil
}

func (w *Window) parseDays(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := parseDay(from)
		if err != nil {
			return err
		}
		b := a
		if isRange {
			if b, err = parseDay(to); err != nil {
				return err
			}
		}
		for d := a; ; d = (d + 1) % 7 {
			w.Days[d] = true
			if d == b {
				break
			}
		}
	}
	return nil
}

func parseDay(s string) (time.Weekday, error) {
	for i, short := range dayNames {
		full := time.Weekday(i).String()
		if strings.EqualFold(s, short) || strings.EqualFold(s, full[:3]) || strings.EqualFold(s, full) {
			return time.Weekday(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not a day (Mo Tu We Th Fr Sa Su)", s)
}

// parseClock reads H:MM or HH:MM up to 24:00.
func parseClock(s string) (time.Duration, error) {
	h, m, ok := strings.Cut(s, ":")
	hour, okh := digits(h)
	minute, okm := digits(m)
	if !ok || !okh || !okm || len(m) != 2 || minute > 59 || hour > 24 || hour == 24 && minute > 0 {
		return 0, fmt.Errorf("%q is not a time of day such as 06:30", s)
	}
	return time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute, nil
}

// digits reads one or two decimal digits.
func digits(s string) (n int, ok bool) {
	if len(s) == 0 || len(s) > 2 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// UnmarshalText is ParseWhen.
func (w *When) UnmarshalText(b []byte) (err error) {
	*w, err = ParseWhen(string(b))
	return err
}

// MarshalText is String.
func (w When) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// String is the canonical form that ParseWhen reads.
func (w When) String() string {
	if w.mode != "" {
		return w.mode
	}
	if w.every > 0 {
		return "every " + w.every.String()
	}
	if len(w.windows) == 0 {
		return "always"
	}
	parts := make([]string, len(w.windows))
	for i, win := range w.windows {
		parts[i] = win.String()
	}
	s := strings.Join(parts, "; ")
	if w.utc {
		s += " UTC"
	}
	return s
}

// String is DAYS HH:MM-HH:MM, without DAYS when it is every day.
func (w Window) String() string {
	clock := func(d time.Duration) string {
		if d > day {
			d -= day
		}
		return fmt.Sprintf("%02d:%02d", d/time.Hour, d%time.Hour/time.Minute)
	}
	t := clock(w.Start) + "-" + clock(w.End)
	monday := func(i int) time.Weekday { return time.Weekday((i + 1) % 7) } // weeks are written from Monday on
	var days []string
	for i := 0; i < 7; i++ {
		if !w.Days[monday(i)] {
			continue
		}
		first := i
		for i < 6 && w.Days[monday(i+1)] {
			i++
		}
		a, b := dayNames[monday(first)], dayNames[monday(i)]
		switch i - first {
		case 6:
			return t
		case 0:
			days = append(days, a)
		case 1:
			days = append(days, a, b)
		default:
			days = append(days, a+"-"+b)
		}
	}
	return strings.Join(days, ",") + " " + t
}

// Always reports whether the contact is made whenever something is due.
func (w When) Always() bool { return w.mode == "" && w.every == 0 && len(w.windows) == 0 }

// Every is the interval of "every 4h", 0 for all others.
func (w When) Every() Duration { return w.every }

// OnCall reports whether only the neighbour makes the contact.
func (w When) OnCall() bool { return w.mode == modeOnCall }

// Manual reports whether only `mochila sync` makes the contact.
func (w When) Manual() bool { return w.mode == modeManual }

// Open reports whether this node may make the contact by itself now, and until when; the zero time means for ever.
// "every 4h" is always open: the interval is the caller's to keep.
func (w When) Open(now time.Time) (until time.Time, open bool) {
	if w.mode != "" {
		return time.Time{}, false
	}
	if len(w.windows) == 0 {
		return time.Time{}, true
	}
	// Windows that touch or overlap are one opening; a chain of them that spans a week never closes.
	for at := now; ; at = until {
		end := w.longest(at)
		if end.IsZero() {
			return until, open
		}
		until, open = end, true
		if until.Sub(now) > week {
			return time.Time{}, true
		}
	}
}

// longest is the latest end of the windows that are open at that time.
func (w When) longest(at time.Time) (end time.Time) {
	w.around(at, -1, 0, func(s, e time.Time) {
		if !at.Before(s) && at.Before(e) && e.After(end) {
			end = e
		}
	})
	return end
}

// Next returns when the contact opens next: now if it is open. ok is false when it never does by itself.
func (w When) Next(now time.Time) (next time.Time, ok bool) {
	if _, open := w.Open(now); open {
		return now, true
	}
	w.around(now, 0, 8, func(s, _ time.Time) {
		if s.After(now) && (!ok || s.Before(next)) {
			next, ok = s, true
		}
	})
	return next, ok
}

// around calls f for the windows of the days from now's day + first to now's day + last, in no special order.
// Clock times that a change to or from summer time skips or repeats are what time.Date makes of them.
func (w When) around(now time.Time, first, last int, f func(start, end time.Time)) {
	if w.utc {
		now = now.UTC()
	}
	y, m, d := now.Date()
	for off := first; off <= last; off++ {
		noon := time.Date(y, m, d+off, 12, 0, 0, 0, now.Location())
		for _, win := range w.windows {
			if !win.Days[noon.Weekday()] {
				continue
			}
			at := func(t time.Duration) time.Time {
				return time.Date(y, m, d+off, int(t/time.Hour), int(t%time.Hour/time.Minute), 0, 0, now.Location())
			}
			if s, e := at(win.Start), at(win.End); e.After(s) {
				f(s, e)
			}
		}
	}
}

// Week returns the openings as half-open stretches of minutes since Monday 00:00, which wrap around where the first is
// larger, and whether they are in UTC; nil for all that has no windows.
func (w When) Week() (stretches [][2]int, utc bool) {
	const whole = 7 * 24 * 60
	for _, win := range w.windows {
		for d, on := range win.Days {
			if !on {
				continue
			}
			monday := (d + 6) % 7 * 24 * 60
			stretches = append(stretches, [2]int{monday + int(win.Start/time.Minute), (monday + int(win.End/time.Minute)) % whole})
		}
	}
	return stretches, w.utc
}
