package handler

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Bounds of what a job may bring, whatever the policy. The kernel's own are 128 KiB for one and about 2 MiB for all.
const (
	MaxArgs     = 1000
	MaxArg      = 64 << 10  // bytes of one argument
	MaxArgBytes = 256 << 10 // of all arguments
	MaxEnv      = 256
	MaxEnvValue = 64 << 10
	MaxEnvBytes = 256 << 10
)

// Mode is a kind of ArgPolicy.
type Mode uint8

// The zero value lets no argument through.
const (
	ArgsNone    Mode = iota
	ArgsFixed        // one of the lists that the configuration spells out
	ArgsPattern      // each argument matches the expression in its place
	ArgsFree         // any
)

// ArgPolicy decides about the arguments of a job. They go to the program as they are, one by one, behind those of the
// configuration; no shell sees them.
type ArgPolicy struct {
	Mode     Mode
	Fixed    [][]string       // ArgsFixed: the allowed lists of arguments; one may be empty
	Patterns []*regexp.Regexp // ArgsPattern: one for each argument; each must match all of it, as Pattern makes them do
	Repeat   bool             // ArgsPattern: the last pattern also stands for further arguments, and for none
	Dash     bool             // an argument may begin with "-", and so be an option to the program; ArgsFixed knows itself
}

// Pattern compiles an expression (RE2 syntax) that matches whole arguments only.
func Pattern(expr string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", expr, err)
	}
	return re, nil
}

// Check returns why a job may not bring these arguments.
func (p *ArgPolicy) Check(args []string) error {
	if len(args) > MaxArgs {
		return fmt.Errorf("%d arguments are more than %d", len(args), MaxArgs)
	}
	total := 0
	for i, a := range args {
		total += len(a)
		switch {
		case len(a) > MaxArg:
			return fmt.Errorf("argument %d has %d bytes, more than %d", i+1, len(a), MaxArg)
		case strings.IndexByte(a, 0) >= 0:
			return fmt.Errorf("argument %d holds a NUL", i+1)
		case strings.HasPrefix(a, "-") && !p.Dash && (p.Mode == ArgsPattern || p.Mode == ArgsFree):
			return fmt.Errorf("argument %d, %s, begins with -", i+1, quote(a))
		}
	}
	if total > MaxArgBytes {
		return fmt.Errorf("arguments have %d bytes, more than %d", total, MaxArgBytes)
	}
	switch p.Mode {
	case ArgsNone:
		if len(args) > 0 {
			return errors.New("this handler takes no arguments")
		}
	case ArgsFixed:
		if !slices.ContainsFunc(p.Fixed, func(f []string) bool { return slices.Equal(f, args) }) {
			return errors.New("this handler does not take these arguments")
		}
	case ArgsPattern:
		return p.match(args)
	case ArgsFree:
	default:
		return fmt.Errorf("unknown argument policy %d", p.Mode)
	}
	return nil
}

func (p *ArgPolicy) match(args []string) error {
	last := len(p.Patterns) - 1
	least := len(p.Patterns)
	if p.Repeat {
		least--
	}
	if len(args) < least || last < 0 && len(args) > 0 || !p.Repeat && len(args) > last+1 {
		return fmt.Errorf("this handler does not take %d arguments", len(args))
	}
	for i, a := range args {
		re := p.Patterns[min(i, last)]
		// An expression that Pattern did not compile may match a part; then the argument is refused.
		if loc := re.FindStringIndex(a); loc == nil || loc[0] != 0 || loc[1] != len(a) {
			return fmt.Errorf("argument %d, %s, is not of the allowed form", i+1, quote(a))
		}
	}
	return nil
}

// quote shows the beginning of something that may be long and hostile.
func quote(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%q…", s[:60])
	}
	return fmt.Sprintf("%q", s)
}
