package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
	year = 365 * day
)

// maxDuration bounds what a configuration may say; it leaves room for adding two of them.
const maxDuration = 100 * year

// Duration is a time.Duration written as 90s, 5m, 4h, 60d, 8w or 5y (365 days), or as a descending run of them: 1d12h.
type Duration time.Duration

var durationUnits = []struct {
	suffix string
	len    time.Duration
}{{"y", year}, {"w", week}, {"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// ParseDuration reads the form above, at most 100y; "0" needs no unit.
func ParseDuration(s string) (Duration, error) {
	fail := func(why string) (Duration, error) {
		return 0, fmt.Errorf("%q is not a duration such as 90s, 5m, 4h, 60d or 8w: %s", s, why)
	}
	if s == "0" {
		return 0, nil
	}
	if s == "" {
		return fail("it is empty")
	}
	var sum time.Duration
	units := durationUnits
	for rest := s; rest != ""; {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		if n == 0 {
			return fail("a number is missing")
		}
		v, err := strconv.ParseUint(rest[:n], 10, 32)
		if err != nil {
			return fail("it is too long")
		}
		rest = rest[n:]
		if rest == "" {
			return fail("a unit is missing")
		}
		i := 0
		for i < len(units) && units[i].suffix[0] != rest[0] {
			i++
		}
		if i == len(units) {
			return fail("units are y, w, d, h, m, s, in this order, each once")
		}
		rest = rest[1:]
		if v > uint64(maxDuration/units[i].len) {
			return fail("it is longer than 100y")
		}
		sum += time.Duration(v) * units[i].len
		units = units[i+1:]
	}
	if sum > maxDuration {
		return fail("it is longer than 100y")
	}
	return Duration(sum), nil
}

// UnmarshalText is ParseDuration.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDuration(string(b))
	return err
}

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is the shortest form that reads back the same; fractions of a second are dropped. Years and weeks are
// written only when nothing is left over.
func (d Duration) String() string {
	rest := time.Duration(d).Truncate(time.Second)
	if rest <= 0 {
		return "0s"
	}
	for _, u := range durationUnits[:2] {
		if rest%u.len == 0 {
			return strconv.FormatInt(int64(rest/u.len), 10) + u.suffix
		}
	}
	var b strings.Builder
	for _, u := range durationUnits[2:] {
		if n := rest / u.len; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.suffix)
			rest -= n * u.len
		}
	}
	return b.String()
}

// Size is a number of bytes written as 512, 20k, 3M, 2G, 1T (powers of 1000) or 64KiB, 10MiB, 2GiB, 1TiB (powers of
// 1024). A final B is optional (20kB) and case does not matter.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}}

// ParseSize reads the form above.
func ParseSize(s string) (Size, error) {
	fail := func(why string) (Size, error) {
		return 0, fmt.Errorf("%q is not a size such as 20k or 10MiB: %s", s, why)
	}
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	if n == 0 {
		return fail("a whole number must come first")
	}
	v, err := strconv.ParseInt(s[:n], 10, 64)
	if err != nil {
		return fail("it is too large")
	}
	mul := int64(0)
	switch suffix := strings.ToLower(s[n:]); suffix {
	case "", "b":
		mul = 1
	default:
		for _, u := range sizeUnits {
			long := strings.ToLower(u.suffix)
			if suffix == long || suffix == strings.TrimSuffix(long, "b") || suffix == strings.TrimSuffix(long, "b")+"b" {
				mul = u.bytes
				break
			}
		}
	}
	switch {
	case mul == 0:
		return fail("units are k, M, G, T and KiB, MiB, GiB, TiB")
	case v > math.MaxInt64/mul:
		return fail("it is too large")
	}
	return Size(v * mul), nil
}

// UnmarshalText is ParseSize.
func (z *Size) UnmarshalText(b []byte) (err error) {
	*z, err = ParseSize(string(b))
	return err
}

// MarshalText is String.
func (z Size) MarshalText() ([]byte, error) { return []byte(z.String()), nil }

// String is the exact value with the largest unit that divides it.
func (z Size) String() string {
	best := strconv.FormatInt(int64(z), 10)
	if z <= 0 {
		return best
	}
	for _, u := range sizeUnits {
		if int64(z)%u.bytes == 0 {
			t := strconv.FormatInt(int64(z)/u.bytes, 10) + u.suffix
			if len(t) <= len(best) {
				best = t
			}
		}
	}
	return best
}
