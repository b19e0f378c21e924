package handler

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func patterns(t testing.TB, exprs ...string) []*regexp.Regexp {
	t.Helper()
	var l []*regexp.Regexp
	for _, e := range exprs {
		re, err := Pattern(e)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, re)
	}
	return l
}

func TestArgPolicy(t *testing.T) {
	if _, err := Pattern("("); err == nil {
		t.Error("a broken pattern was taken")
	}
	two := patterns(t, `[a-z]+`, `full|incr`)
	fixed := [][]string{{}, {"daily"}, {"weekly", "--all"}}
	for _, c := range []struct {
		p    ArgPolicy
		args []string
		want string
	}{
		{ArgPolicy{}, nil, ""},
		{ArgPolicy{}, []string{""}, "takes no arguments"},
		{ArgPolicy{Mode: 99}, nil, "unknown argument policy"},
		{ArgPolicy{Mode: ArgsFixed, Fixed: fixed}, nil, ""},
		{ArgPolicy{Mode: ArgsFixed, Fixed: fixed}, []string{"daily"}, ""},
		{ArgPolicy{Mode: ArgsFixed, Fixed: fixed}, []string{"weekly", "--all"}, ""},
		{ArgPolicy{Mode: ArgsFixed, Fixed: fixed}, []string{"weekly"}, "does not take these"},
		{ArgPolicy{Mode: ArgsFixed}, nil, "does not take these"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two}, []string{"etc", "full"}, ""},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two}, []string{"etc", "full\n"}, "argument 2"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two}, []string{"etc", "xfull"}, "argument 2"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two}, []string{"", "full"}, "argument 1"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two}, []string{"etc"}, "1 arguments"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two}, []string{"etc", "full", "incr"}, "3 arguments"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two, Repeat: true}, []string{"etc", "full", "incr"}, ""},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two, Repeat: true}, []string{"etc"}, ""},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two, Repeat: true}, []string{"etc", "full", "etc"}, "argument 3"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: two, Repeat: true}, nil, "0 arguments"},
		{ArgPolicy{Mode: ArgsPattern}, nil, ""},
		{ArgPolicy{Mode: ArgsPattern, Repeat: true}, []string{"a"}, "1 arguments"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: patterns(t, `.*`)}, []string{"-rf"}, "begins with -"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: patterns(t, `.*`), Dash: true}, []string{"-rf"}, ""},
		{ArgPolicy{Mode: ArgsPattern, Patterns: patterns(t, `a)|(b`)}, []string{"ax"}, "argument 1"},
		{ArgPolicy{Mode: ArgsPattern, Patterns: []*regexp.Regexp{regexp.MustCompile("a")}}, []string{"xax"}, "argument 1"},
		{ArgPolicy{Mode: ArgsFree}, []string{"a", "", "$(id)", "\xff"}, ""},
		{ArgPolicy{Mode: ArgsFree}, []string{"-"}, "begins with -"},
		{ArgPolicy{Mode: ArgsFree, Dash: true}, []string{"--", "-x"}, ""},
		{ArgPolicy{Mode: ArgsFree}, []string{"a\x00"}, "NUL"},
		{ArgPolicy{Mode: ArgsFree}, make([]string, MaxArgs+1), "more than"},
		{ArgPolicy{Mode: ArgsFree}, []string{strings.Repeat("a", MaxArg+1)}, "more than"},
		{ArgPolicy{Mode: ArgsFree}, slices.Repeat([]string{strings.Repeat("a", MaxArg)}, 5), "more than"},
	} {
		if err := c.p.Check(c.args); err == nil && c.want != "" || err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v with %.60q: %v, want %q", c.p, c.args, err, c.want)
		}
	}
}

// FuzzPattern: an argument that passes is one that the expression matches from end to end.
func FuzzPattern(f *testing.F) {
	f.Add("a|b", "ab")
	f.Add("(?m)^a$", "a\nb")
	f.Fuzz(func(t *testing.T, expr, arg string) {
		re, err := Pattern(expr)
		if err != nil {
			t.Skip() // no pattern
		}
		p := ArgPolicy{Mode: ArgsPattern, Patterns: []*regexp.Regexp{re}}
		if p.Check([]string{arg}) == nil {
			if loc := re.FindStringIndex(arg); loc[0] != 0 || loc[1] != len(arg) {
				t.Errorf("%q passed %q", arg, expr)
			}
			if arg != "" && arg[0] == '-' || strings.Contains(arg, "\x00") {
				t.Errorf("%q passed", arg)
			}
		}
	})
}

func TestEnvPolicy(t *testing.T) {
	p := EnvPolicy{Allow: []string{"LEVEL", "BACKUP_*", "PATH", "MOCHILA_SEQ", "FSPL_*"}}
	all := EnvPolicy{Allow: []string{"*"}}
	for _, c := range []struct {
		p    EnvPolicy
		env  []string
		want string
	}{
		{EnvPolicy{}, nil, ""},
		{EnvPolicy{}, []string{"A=1"}, "not allowed"},
		{p, []string{"LEVEL=3", "BACKUP_SET=etc", "BACKUP_=", "PATH=/bin"}, ""},
		{p, []string{"level=3"}, "not allowed"},
		{p, []string{"BACKUP=3"}, "not allowed"},
		{p, []string{"LD_PRELOAD=x"}, "not allowed"},
		{p, []string{"MOCHILA_SEQ=1"}, "not allowed"},
		{p, []string{"FSPL_SEQ=1"}, "not allowed"},
		{all, []string{"ANY=1", "x_9="}, ""},
		{all, []string{"LD_PRELOAD=x"}, "not allowed"},
		{all, []string{"PATH=x"}, "not allowed"},
		{all, []string{"IFS=x"}, "not allowed"},
		{all, []string{"BASH_ENV=x"}, "not allowed"},
		{all, []string{"ENV=x"}, "not allowed"},
		{all, []string{"GIT_SSH_COMMAND=x"}, "not allowed"},
		{all, []string{"http_proxy=x"}, "not allowed"},
		{all, []string{"mochila_job_id=x"}, "not allowed"},
		{EnvPolicy{Allow: []string{"LD_*"}}, []string{"LD_PRELOAD=x"}, "not allowed"},
		{EnvPolicy{Allow: []string{"LD_PRELOAD"}}, []string{"LD_PRELOAD=x"}, ""},
		{all, []string{"BASH_FUNC_ls%%=() { id; }"}, "not NAME=VALUE"},
		{all, []string{"A"}, "not NAME=VALUE"},
		{all, []string{"=1"}, "not NAME=VALUE"},
		{all, []string{"1A=1"}, "not NAME=VALUE"},
		{all, []string{"A B=1"}, "not NAME=VALUE"},
		{all, []string{"A=1", "A=1"}, "twice"},
		{all, []string{"A=\x00"}, "NUL"},
		{all, []string{"A=" + strings.Repeat("x", MaxEnvValue+1)}, "more than"},
		{all, make([]string, MaxEnv+1), "more than"},
		{all, []string{strings.Repeat("A", 256) + "=1"}, "not NAME=VALUE"},
	} {
		if err := c.p.Check(c.env); err == nil && c.want != "" || err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v with %.60q: %v, want %q", c.p, c.env, err, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 500, time.FixedZone("x", 3600))
	n := Names{JobID: "ABC", Node: "camp", Origin: "hub", OriginID: "id", Submitter: "ana", Channel: "backup", Epoch: "1f", Seq: 7, Handler: "restore",
		Attempt: 2, Created: at, Expires: at.Add(time.Hour), StdinSize: 0}
	want := []string{"MOCHILA_JOB_ID=ABC", "MOCHILA_NODE=camp", "MOCHILA_ORIGIN=hub", "MOCHILA_ORIGIN_ID=id", "MOCHILA_SUBMITTER=ana", "MOCHILA_CHANNEL=backup",
		"MOCHILA_EPOCH=1f", "MOCHILA_SEQ=7", "MOCHILA_HANDLER=restore", "MOCHILA_ATTEMPT=2", "MOCHILA_CREATED=2026-05-04T02:02:01.0000005Z",
		"MOCHILA_EXPIRES=2026-05-04T03:02:01.0000005Z", "MOCHILA_STDIN_SIZE=0"}
	if got := n.Env(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (&Names{StdinSize: -1}).Env(); len(got) != 0 {
		t.Errorf("nothing is %q", got)
	}
	got := n.Filespooler([]string{"x", "y"}, []string{"LEVEL=3"})
	for _, w := range []string{"FSPL_SEQ=7", "FSPL_JOB_FILENAME=ABC", "FSPL_CTIME_NANOS=500", "FSPL_PARAM_1=x", "FSPL_PARAM_2=y", "FSPL_SET_LEVEL=3",
		"FSPL_CTIME_RFC3339_UTC=2026-05-04T02:02:01.0000005Z"} {
		if !slices.Contains(got, w) {
			t.Errorf("no %q in %q", w, got)
		}
	}
	if got := MergeEnv(CleanEnv("/root", "root", ""), []string{"HOME=/x", "A=1"}, []string{"A=2"}); !slices.Contains(got, "HOME=/x") ||
		!slices.Contains(got, "A=2") || !slices.Contains(got, "PATH="+DefaultPath) || len(got) != 7 {
		t.Errorf("merged: %q", got)
	}
}
