package handler

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultPath is the PATH of a handler whose configuration says nothing else.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// CleanEnv is the environment of a program that nobody said anything about. Nothing of this process goes in.
func CleanEnv(home, user, path string) []string {
	if path == "" {
		path = DefaultPath
	}
	return []string{"PATH=" + path, "HOME=" + home, "USER=" + user, "LOGNAME=" + user, "SHELL=/bin/sh", "LANG=C.UTF-8"}
}

// MergeEnv joins lists of "K=V". Of entries with the same name the last one stays.
func MergeEnv(lists ...[]string) []string {
	n := 0
	for _, l := range lists {
		n += len(l)
	}
	env := make([]string, 0, n)
	at := make(map[string]int, n)
	for _, l := range lists {
		for _, e := range l {
			name, _, _ := strings.Cut(e, "=")
			if i, ok := at[name]; ok {
				env[i] = e
				continue
			}
			at[name] = len(env)
			env = append(env, e)
		}
	}
	return env
}

// EnvPolicy decides which environment variables a job may set.
type EnvPolicy struct {
	// Allow lists names; one that ends in * stands for all that begin so, except for those that change how programs
	// work (PATH, LD_PRELOAD, BASH_ENV …), which must be named in full.
	Allow []string
}

// risky are variables by which the sender of a job could make the program load, run or trust something else. A name
// that ends in * stands for all that begin so.
var risky = []string{
	"LD_*", "DYLD_*", "GLIBC_*", "MALLOC_*", "GCONV_PATH", "GETCONF_DIR", "LOCPATH", "NLSPATH", "NIS_PATH",
	"HOSTALIASES", "LOCALDOMAIN", "RES_*", "RESOLV_*", "TZ", "TZDIR", "TERM*", "NSS_*",
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "TMP", "TEMP", "TMPDIR", "TEMPDIR", "XDG_*",
	"IFS", "ENV", "BASH*", "SHELLOPTS", "PS4", "PS1", "PROMPT_COMMAND", "CDPATH", "GLOBIGNORE", "FPATH", "ZDOTDIR", "KSH*",
	"PERL*", "PYTHON*", "RUBY*", "GEM_*", "NODE_*", "NPM_*", "JAVA_*", "_JAVA_OPTIONS", "JDK_*", "CLASSPATH", "LUA_*",
	"PHP*", "TCL*", "AWK*", "POSIXLY_CORRECT", "GO*", "GIT_*", "SSH_*", "RSYNC_*", "DAR*", "TAR_OPTIONS", "GZIP", "BZIP*",
	"XZ_*", "ZSTD_*", "EDITOR", "VISUAL", "PAGER", "MANPAGER", "LESS*", "BROWSER", "MAKEFLAGS", "MFLAGS", "CC", "CXX",
	"OPENSSL_*", "SSL_*", "CURL_*", "WGETRC", "SYSTEMD_*", "DBUS_*", "NOTIFY_SOCKET", "LISTEN_*", "DISPLAY", "SUDO_*",
	"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY",
}

// reserved are ours: a job that set them could pretend to come from elsewhere.
var reserved = []string{"MOCHILA_*", "FSPL_*"}

func covers(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, wild := strings.CutSuffix(p, "*")
		return p == name || wild && strings.HasPrefix(name, prefix)
	})
}

// Risky reports whether a variable can change how programs work, by its name in any case.
func Risky(name string) bool { return covers(risky, strings.ToUpper(name)) }

// Check returns why a job may not set these variables ("K=V", no name twice).
func (p *EnvPolicy) Check(env []string) error {
	if len(env) > MaxEnv {
		return fmt.Errorf("%d environment variables are more than %d", len(env), MaxEnv)
	}
	seen := make(map[string]bool, len(env))
	total := 0
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		total += len(e)
		switch {
		case !ok || !validName(name):
			return fmt.Errorf("%s is not NAME=VALUE", quote(e))
		case seen[name]:
			return fmt.Errorf("environment variable %s comes twice", quote(name))
		case strings.IndexByte(value, 0) >= 0:
			return fmt.Errorf("environment variable %s holds a NUL", quote(name))
		case len(value) > MaxEnvValue:
			return fmt.Errorf("environment variable %s has %d bytes, more than %d", quote(name), len(value), MaxEnvValue)
		case !p.allows(name):
			return fmt.Errorf("environment variable %s is not allowed", quote(name))
		}
		seen[name] = true
	}
	if total > MaxEnvBytes {
		return fmt.Errorf("environment has %d bytes, more than %d", total, MaxEnvBytes)
	}
	return nil
}

func (p *EnvPolicy) allows(name string) bool {
	switch {
	case covers(reserved, strings.ToUpper(name)):
		return false
	case slices.Contains(p.Allow, name):
		return true
	}
	return !Risky(name) && covers(p.Allow, name)
}

// validName: what every shell can use (POSIX.1-2017, 8.1), at most 255 bytes.
func validName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// Names is what a handler is told about its job. Empty fields are left out.
type Names struct {
	JobID     string    // MOCHILA_JOB_ID: the same at every attempt, and no other job's: the key for idempotence
	Node      string    // MOCHILA_NODE: the name of this node
	Origin    string    // MOCHILA_ORIGIN: this node's name for the node that the job comes from
	OriginID  string    // MOCHILA_ORIGIN_ID: its node id
	Submitter string    // MOCHILA_SUBMITTER: who made the job there, as the origin says
	Channel   string    // MOCHILA_CHANNEL
	Epoch     string    // MOCHILA_EPOCH: changes when the origin lost its memory and counts from 1 again
	Seq       uint64    // MOCHILA_SEQ: in the channel; 0: the channel has no order
	Handler   string    // MOCHILA_HANDLER: the name in the configuration
	Attempt   int       // MOCHILA_ATTEMPT: from 1
	Created   time.Time // MOCHILA_CREATED: by the origin's clock, RFC 3339, UTC
	Expires   time.Time // MOCHILA_EXPIRES: the same
	StdinSize int64     // MOCHILA_STDIN_SIZE: bytes; negative: left out
}

// Env returns the MOCHILA_ variables.
func (n *Names) Env() []string {
	var env []string
	add := func(name, value string) {
		if value != "" {
			env = append(env, "MOCHILA_"+name+"="+value)
		}
	}
	date := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	number := func(n int64, none bool) string {
		if none {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	add("JOB_ID", n.JobID)
	add("NODE", n.Node)
	add("ORIGIN", n.Origin)
	add("ORIGIN_ID", n.OriginID)
	add("SUBMITTER", n.Submitter)
	add("CHANNEL", n.Channel)
	add("EPOCH", n.Epoch)
	if n.Seq > 0 {
		add("SEQ", strconv.FormatUint(n.Seq, 10))
	}
	add("HANDLER", n.Handler)
	add("ATTEMPT", number(int64(n.Attempt), n.Attempt == 0))
	add("CREATED", date(n.Created))
	add("EXPIRES", date(n.Expires))
	add("STDIN_SIZE", number(n.StdinSize, n.StdinSize < 0))
	return env
}

// Filespooler returns the same under the names that Filespooler gives to its jobs, with the arguments as FSPL_PARAM_n
// and the variables that the job set as FSPL_SET_x, for handlers that were written for it. Of its queue, which does
// not exist here, only the file name is told, and that is the job id.
func (n *Names) Filespooler(args, env []string) []string {
	l := []string{"FSPL_SEQ=" + strconv.FormatUint(n.Seq, 10), "FSPL_JOB_FILENAME=" + n.JobID}
	if t := n.Created; !t.IsZero() {
		l = append(l,
			"FSPL_CTIME_SECS="+strconv.FormatInt(t.Unix(), 10),
			"FSPL_CTIME_NANOS="+strconv.Itoa(t.Nanosecond()),
			"FSPL_CTIME_RFC3339_UTC="+t.UTC().Format(time.RFC3339Nano),
			"FSPL_CTIME_RFC3339_LOCAL="+t.Local().Format(time.RFC3339Nano))
	}
	for i, a := range args {
		l = append(l, "FSPL_PARAM_"+strconv.Itoa(i+1)+"="+a)
	}
	for _, e := range env {
		l = append(l, "FSPL_SET_"+e)
	}
	return l
}
