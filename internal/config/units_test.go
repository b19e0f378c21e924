package config

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	good := map[string]time.Duration{
		"0": 0, "0s": 0, "90s": 90 * time.Second, "5m": 5 * time.Minute, "4h": 4 * time.Hour, "60d": 60 * day, "8w": 8 * week, "5y": 5 * year,
		"1d12h": 36 * time.Hour, "100y": maxDuration,
	}
	for in, want := range good {
		if got, err := ParseDuration(in); err != nil || time.Duration(got) != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	bad := map[string]string{
		"":            "it is empty",
		"5":           "a unit is missing",
		"h":           "a number is missing",
		"-5m":         "a number is missing",
		"1.5h":        "units are y, w, d, h, m, s, in this order, each once",
		"5min":        "a number is missing",
		"5 m":         "units are y, w, d, h, m, s, in this order, each once",
		"1h1d":        "units are y, w, d, h, m, s, in this order, each once",
		"1h1h":        "units are y, w, d, h, m, s, in this order, each once",
		"101y":        "it is longer than 100y",
		"100y1s":      "it is longer than 100y",
		"4294967295s": "it is longer than 100y",
		"4294967296s": "it is too long",
	}
	for in, want := range bad {
		want = `"` + in + `" is not a duration such as 90s, 5m, 4h, 60d or 8w: ` + want
		if got, err := ParseDuration(in); err == nil || err.Error() != want {
			t.Errorf("ParseDuration(%q) = %v, error %v; want %s", in, got, err, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 1500 * time.Millisecond: "1s", 90 * time.Second: "1m30s", 60 * day: "60d", 56 * day: "8w", 365 * day: "1y", 36 * time.Hour: "1d12h",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("Duration(%d).String() = %q, want %q", d, got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	good := map[string]Size{
		"0": 0, "512": 512, "512B": 512, "20k": 20_000, "20kB": 20_000, "20K": 20_000, "3M": 3_000_000, "2G": 2e9, "1T": 1e12,
		"64KiB": 64 << 10, "64Ki": 64 << 10, "10MiB": 10 << 20, "10mib": 10 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40,
	}
	for in, want := range good {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	bad := map[string]string{
		"":                    "a whole number must come first",
		"k":                   "a whole number must come first",
		"-1":                  "a whole number must come first",
		"1.5M":                "units are k, M, G, T and KiB, MiB, GiB, TiB",
		"1 M":                 "units are k, M, G, T and KiB, MiB, GiB, TiB",
		"1X":                  "units are k, M, G, T and KiB, MiB, GiB, TiB",
		"1iB":                 "units are k, M, G, T and KiB, MiB, GiB, TiB",
		"9223372036854775808": "it is too large",
		"9223372036854775807": "",
		"9223373T":            "it is too large",
	}
	for in, why := range bad {
		got, err := ParseSize(in)
		if why == "" {
			if err != nil {
				t.Errorf("ParseSize(%q): %v", in, err)
			}
			continue
		}
		if want := `"` + in + `" is not a size such as 20k or 10MiB: ` + why; err == nil || err.Error() != want {
			t.Errorf("ParseSize(%q) = %d, error %v; want %s", in, got, err, want)
		}
	}
	for z, want := range map[Size]string{0: "0", -1: "-1", 1: "1", 1000: "1k", 1024: "1KiB", 50 << 20: "50MiB", 1e9: "1G", 1<<30 + 1: "1073741825"} {
		if got := z.String(); got != want {
			t.Errorf("Size(%d).String() = %q, want %q", int64(z), got, want)
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"90s", "1d12h", "8w", "100y", "0", "1h1d", "99999999999s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if d < 0 || time.Duration(d) > maxDuration {
			t.Fatalf("ParseDuration(%q) = %d is out of range", s, d)
		}
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%q is %d, printed %q, read back %d, %v", s, d, d, again, err)
		}
	})
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"20k", "10MiB", "9223372036854775807", "1T", "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		z, err := ParseSize(s)
		if err != nil {
			return
		}
		if again, err := ParseSize(z.String()); z < 0 || err != nil || again != z {
			t.Fatalf("%q is %d, printed %q, read back %d, %v", s, int64(z), z, int64(again), err)
		}
	})
}
