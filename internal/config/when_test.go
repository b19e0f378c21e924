package config

import (
	"reflect"
	"testing"
	"time"
)

func TestParseWhen(t *testing.T) {
	good := map[string]string{
		"always":                          "always",
		" On-Call ":                       "on-call",
		"manual":                          "manual",
		"Every  90m":                      "every 1h30m",
		"Mo-Fr 06:00-08:00":               "Mo-Fr 06:00-08:00",
		"monday,Tue,we 6:00-08:00":        "Mo-We 06:00-08:00",
		"Su,Mo 00:00-24:00":               "Mo,Su 00:00-24:00",
		"Fr-Mo 22:00-06:00 utc":           "Mo,Fr-Su 22:00-06:00 UTC",
		"06:00-08:00; Sa,Su 12:00-13:30":  "06:00-08:00; Sa,Su 12:00-13:30",
		"Mo-Su 23:00-00:00":               "23:00-24:00",
		"Mo,We,Fr 01:00-02:00;03:00-4:00": "Mo,We,Fr 01:00-02:00; 03:00-04:00",
	}
	for in, want := range good {
		w, err := ParseWhen(in)
		if err != nil || w.String() != want {
			t.Errorf("ParseWhen(%q) = %q, %v; want %q", in, w, err, want)
		}
	}
	bad := map[string]string{
		"":                  "a window is DAYS HH:MM-HH:MM",
		"every 0s":          "it is shorter than 1s",
		"every":             "a window is DAYS HH:MM-HH:MM",
		"every 5":           `"5" is not a duration such as 90s, 5m, 4h, 60d or 8w: a unit is missing`,
		"never":             "a window is DAYS HH:MM-HH:MM",
		"Mo":                "a window is DAYS HH:MM-HH:MM",
		"Mo 06:00":          "a window is DAYS HH:MM-HH:MM",
		"Mo 06:00 - 08:00":  "a window is DAYS HH:MM-HH:MM",
		"Xx 06:00-08:00":    `"Xx" is not a day (Mo Tu We Th Fr Sa Su)`,
		"Mo- 06:00-08:00":   `"" is not a day (Mo Tu We Th Fr Sa Su)`,
		"Mo 25:00-26:00":    `"25:00" is not a time of day such as 06:30`,
		"Mo 06:60-07:00":    `"06:60" is not a time of day such as 06:30`,
		"Mo 6-8":            `"6" is not a time of day such as 06:30`,
		"Mo 06:00-24:01":    `"24:01" is not a time of day such as 06:30`,
		"Mo 24:00-06:00":    "a window cannot begin at 24:00",
		"Mo 06:00-06:00":    "a window from 06:00 to 06:00 is empty",
		"06:00-08:00;":      "a window is DAYS HH:MM-HH:MM",
		"always 06:00-8:00": `"always" is not a day (Mo Tu We Th Fr Sa Su)`,
	}
	for in, why := range bad {
		want := `"` + in + `" is not a time to make contact, such as always, on-call, manual, every 4h or Mo-Fr 06:00-08:00: ` + why
		if w, err := ParseWhen(in); err == nil || err.Error() != want {
			t.Errorf("ParseWhen(%q) = %q, error %v; want %s", in, w, err, want)
		}
	}
}

func TestWhenWeek(t *testing.T) {
	w, err := ParseWhen("Mo,Su 22:00-06:00; Tu 00:00-24:00 UTC")
	if err != nil {
		t.Fatal(err)
	}
	got, utc := w.Week()
	want := [][2]int{{6*1440 + 22*60, 6 * 60}, {22 * 60, 1440 + 6*60}, {1440, 2 * 1440}}
	if !utc || !reflect.DeepEqual(got, want) {
		t.Errorf("Week() = %v, %v; want %v in UTC", got, utc, want)
	}
	if got, _ := (When{}).Week(); got != nil {
		t.Errorf("Week() of always = %v", got)
	}
}

// 2026-03-02 is a Monday.
func TestWhenOpenNext(t *testing.T) {
	const form = "2006-01-02 15:04"
	tests := []struct {
		when, now, until, next string // until "" closed, "ever" for ever; next "" never
	}{
		{"always", "2026-03-02 05:00", "ever", "2026-03-02 05:00"},
		{"manual", "2026-03-02 05:00", "", ""},
		{"on-call", "2026-03-02 05:00", "", ""},
		{"Mo-Fr 06:00-08:00", "2026-03-02 05:59", "", "2026-03-02 06:00"},
		{"Mo-Fr 06:00-08:00", "2026-03-02 06:00", "2026-03-02 08:00", "2026-03-02 06:00"},
		{"Mo-Fr 06:00-08:00", "2026-03-02 08:00", "", "2026-03-03 06:00"},
		{"Mo-Fr 06:00-08:00", "2026-03-06 08:00", "", "2026-03-09 06:00"},
		{"Mo 06:00-08:00", "2026-03-02 08:00", "", "2026-03-09 06:00"},
		{"Mo 06:00-08:00", "2026-03-02 07:59", "2026-03-02 08:00", "2026-03-02 07:59"},
		{"22:00-06:00", "2026-03-02 05:00", "2026-03-02 06:00", "2026-03-02 05:00"},
		{"Mo 22:00-06:00", "2026-03-02 05:00", "", "2026-03-02 22:00"},
		{"Mo 22:00-06:00", "2026-03-03 05:00", "2026-03-03 06:00", "2026-03-03 05:00"},
		{"00:00-24:00", "2026-03-02 05:00", "ever", "2026-03-02 05:00"},
		{"Mo 00:00-24:00; Tu 00:00-12:00", "2026-03-02 05:00", "2026-03-03 12:00", "2026-03-02 05:00"},
		{"06:00-08:00; 07:00-09:00; 09:00-10:00", "2026-03-02 06:30", "2026-03-02 10:00", "2026-03-02 06:30"},
	}
	for _, tt := range tests {
		w, err := ParseWhen(tt.when)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.ParseInLocation(form, tt.now, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		until, open := w.Open(now)
		got := ""
		switch {
		case open && until.IsZero():
			got = "ever"
		case open:
			got = until.Format(form)
		}
		if got != tt.until {
			t.Errorf("%q at %s is open until %q, want %q", tt.when, tt.now, got, tt.until)
		}
		next, ok := w.Next(now)
		if got = ""; ok {
			got = next.Format(form)
		}
		if got != tt.next {
			t.Errorf("%q at %s opens next %q, want %q", tt.when, tt.now, got, tt.next)
		}
	}
}

func TestWhenZones(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatalf("the zone database is needed: %v", err)
	}
	local, _ := ParseWhen("06:00-08:00")
	utc, _ := ParseWhen("06:00-08:00 UTC")
	// On 2026-03-29 clocks go from 02:00 to 03:00; 06:00 is 04:00 UTC afterwards and 05:00 UTC before.
	for _, tt := range []struct {
		w    When
		from string
		want string
	}{
		{local, "2026-03-28T12:00:00Z", "2026-03-29T04:00:00Z"},
		{local, "2026-03-27T12:00:00Z", "2026-03-28T05:00:00Z"},
		{utc, "2026-03-28T12:00:00Z", "2026-03-29T06:00:00Z"},
	} {
		from, _ := time.Parse(time.RFC3339, tt.from)
		next, ok := tt.w.Next(from.In(berlin))
		if got := next.UTC().Format(time.RFC3339); !ok || got != tt.want {
			t.Errorf("%q from %s opens %s, want %s", tt.w, tt.from, got, tt.want)
		}
	}
	// A window inside the hour that the clock skips does not make Next or Open fail.
	skipped, _ := ParseWhen("Su 02:10-02:50")
	from := time.Date(2026, 3, 28, 12, 0, 0, 0, berlin)
	if next, ok := skipped.Next(from); !ok || next.Before(from) || next.Sub(from) > 9*day {
		t.Errorf("a skipped window opens %v, %v", next, ok)
	}
}

func FuzzWhen(f *testing.F) {
	for _, s := range []string{"always", "on-call", "Mo-Fr 06:00-08:00", "Fr-Mo 22:00-06:00 UTC", "06:00-08:00; Sa,Su 12:00-13:30", "23:00-00:00", "every 4h"} {
		f.Add(s, int64(1_770_000_000))
	}
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		w, err := ParseWhen(s)
		if err != nil {
			return
		}
		again, err := ParseWhen(w.String())
		if err != nil || again.String() != w.String() {
			t.Fatalf("%q printed %q, read back %q, %v", s, w, again, err)
		}
		now := time.Unix(unix%(1<<33), 0).UTC()
		until, open := w.Open(now)
		if open && !until.IsZero() {
			if _, still := w.Open(until); still || !until.After(now) {
				t.Fatalf("%q at %v is open until %v, when it is open still: %v", w, now, until, still)
			}
		}
		next, ok := w.Next(now)
		if windows := len(w.windows) > 0; windows != (ok && !w.Always() && w.Every() == 0) {
			t.Fatalf("%q has windows: %v, but opens: %v", w, windows, ok)
		}
		if _, at := w.Open(next); ok && !at {
			t.Fatalf("%q opens next at %v, but is closed then", w, next)
		}
	})
}
