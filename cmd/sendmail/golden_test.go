package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"mochila/internal/envelope"
	"mochila/smtpd/submission"
)

// golden is one call of the program and what must come of it. Message text has LF line ends here; that every line
// ends in CRLF is checked for all of them. In want, the values of Message-Id and Date are ID and DATE.
type golden struct {
	name  string
	argv0 string // "" is sendmail
	args  []string
	env   []string
	stdin string
	exit  int
	err   string   // part of stderr
	out   string   // stdout
	from  string   // envelope sender; "-" is the login name
	to    []string // envelope recipients; nil when nothing may be queued
	want  string   // content; "" is not compared
	check func(m *envelope.Mail) error
}

const hello = "From: a@c.x\nTo: b@c.x\nMessage-Id: <1@c.x>\nDate: Mon, 01 Jan 2024 00:00:00 +0000\n\nhello\n"

var table = []golden{
	// Recipients.
	{name: "argv", args: []string{"b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "two argv", args: []string{"b@c.x", "d@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x", "d@c.x"}, want: hello},
	{name: "list in one argument", args: []string{"a@c.x, b@c.x"}, stdin: hello, from: "-", to: []string{"a@c.x", "b@c.x"}, want: hello},
	{name: "blank between addresses", args: []string{"a@c.x b@c.x"}, stdin: hello, from: "-", to: []string{"a@c.x", "b@c.x"}, want: hello},
	{name: "display name", args: []string{"Nm <n@c.x>"}, stdin: hello, from: "-", to: []string{"n@c.x"}, want: hello},
	{name: "unqualified", args: []string{"root"}, stdin: hello, from: "-", to: []string{"root"}, want: hello},
	{name: "quoted local part", args: []string{`"q u"@c.x`}, stdin: hello, from: "-", to: []string{`"q u"@c.x`}, want: hello},
	{name: "parameters in quotes", args: []string{`"x> NOTIFY=NEVER "@e.f`}, stdin: hello, from: "-", to: []string{`"x> NOTIFY=NEVER "@e.f`}, want: hello},
	{name: "source route", args: []string{"<@r.x,@s.x:b@c.x>"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "comment", args: []string{"root (Charlie, the (system) admin)"}, stdin: hello, from: "-", to: []string{"root"}, want: hello},
	{name: "dash after --", args: []string{"--", "-dash@c.x"}, stdin: hello, from: "-", to: []string{"-dash@c.x"}, want: hello},
	{name: "flags end at the first address", args: []string{"b@c.x", "-fx@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x", "-fx@c.x"}, want: hello},
	{name: "domain literal", args: []string{"b@[192.0.2.1]", "c@[IPv6:2001:db8::1]"}, stdin: hello, from: "-", to: []string{"b@[192.0.2.1]", "c@[IPv6:2001:db8::1]"}, want: hello},
	{name: "named twice", args: []string{"b@c.x", "b@C.X", "B@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x", "B@c.x"}, want: hello},
	{name: "utf-8 address", args: []string{"bü@c.x"}, stdin: hello, from: "-", to: []string{"bü@c.x"}, want: hello, check: func(m *envelope.Mail) error {
		return expect("SMTPUTF8", m.SMTPUTF8, true)
	}},
	{name: "latin-1 address", args: []string{"b\xfc@c.x"}, stdin: hello, exit: 64, err: "UTF-8"},
	{name: "newline in argument", args: []string{"a@c.x\nRCPT TO:<evil@c.x>"}, stdin: hello, exit: 64, err: "control character"},
	{name: "CR in argument", args: []string{"a@c.x\rb"}, stdin: hello, exit: 64, err: "control character"},
	{name: "angle injection", args: []string{"a@c.x> BODY=8BITMIME"}, stdin: hello, exit: 64, err: "stray"},
	{name: "empty argument", args: []string{""}, stdin: hello, exit: 64, err: "empty"},
	{name: "empty brackets", args: []string{"<>"}, stdin: hello, exit: 64, err: "empty"},
	{name: "no domain behind the at", args: []string{"a@"}, stdin: hello, exit: 64, err: "after the"},
	{name: "no local part", args: []string{"@c.x"}, stdin: hello, exit: 64, err: "before the"},
	{name: "one bad of two", args: []string{"a@c.x", "b@c.x<"}, stdin: hello, exit: 64},
	{name: "no recipients", stdin: hello, exit: 64, err: "no recipients"},
	{name: "too long", args: []string{strings.Repeat("a", 1000) + "@c.x"}, stdin: hello, exit: 64, err: "longer"},

	// -t
	{name: "-t", args: []string{"-t"}, stdin: "From: a@c.x\nTo: b@c.x, \"Doe, J.\" <j@c.x>\nCc: d@c.x\nBcc: e@c.x\nMessage-Id: <1@c.x>\nDate: x\n\nhi\n",
		from: "-", to: []string{"b@c.x", "j@c.x", "d@c.x", "e@c.x"}, want: "From: a@c.x\nTo: b@c.x, \"Doe, J.\" <j@c.x>\nCc: d@c.x\nMessage-Id: <1@c.x>\nDate: x\n\nhi\n"},
	{name: "-t adds argv", args: []string{"-t", "z@c.x"}, stdin: hello, from: "-", to: []string{"z@c.x", "b@c.x"}, want: hello},
	{name: "-t twice the same", args: []string{"-t"}, stdin: "To: b@c.x\nCc: b@C.x\n\n", from: "-", to: []string{"b@c.x"}},
	{name: "-ti", args: []string{"-ti"}, stdin: hello + ".\nmore\n", from: "-", to: []string{"b@c.x"}, want: hello + ".\nmore\n"},
	{name: "PHP", args: []string{"-t", "-i", "-f", "w@c.x"}, stdin: "To: b@c.x\nSubject: s\nX-PHP-Originating-Script: 33:a.php\nBcc: s@c.x\n\nhi\n", from: "w@c.x", to: []string{"b@c.x", "s@c.x"},
		want: "To: b@c.x\nSubject: s\nX-PHP-Originating-Script: 33:a.php\nMessage-Id: ID\nDate: DATE\nFrom: w@c.x\n\nhi\n"},
	{name: "folded and grouped", args: []string{"-t"}, stdin: "From: a@c.x\nTo: friends: b@c.x,\n\tBob\n <c@c.x>;,\n d@c.x (Dan)\nMessage-ID: <1@c.x>\nDate: x\n\n",
		from: "-", to: []string{"b@c.x", "c@c.x", "d@c.x"}},
	{name: "undisclosed", args: []string{"-t"}, stdin: "To: undisclosed-recipients:;\nBcc: e@c.x\n\n", from: "-", to: []string{"e@c.x"}},
	{name: "lower case and blanks before the colon", args: []string{"-t"}, stdin: "tO : b@c.x\nbCC:e@c.x\n\nhi\n", from: "-", to: []string{"b@c.x", "e@c.x"}},
	{name: "sloppy name without brackets", args: []string{"-t"}, stdin: "To: John Doe j@c.x\n\n", from: "-", to: []string{"j@c.x"}},
	{name: "blanks around the at", args: []string{"-t"}, stdin: "To: j @ c . x\n\n", from: "-", to: []string{"j@c.x"}},
	{name: "-t without recipients", args: []string{"-t"}, stdin: "From: a@c.x\n\nhi\n", exit: 65, err: "no recipients"},
	{name: "-t unreadable", args: []string{"-t"}, stdin: "To: b@c.x, \"x\n\nhi\n", exit: 65, err: "quote"},
	{name: "-t empty input", args: []string{"-t"}, exit: 65, err: "no recipients"},
	{name: "To in the body", args: []string{"-t"}, stdin: "Subject: s\n\nTo: b@c.x\n", exit: 65},
	{name: "resent", args: []string{"-t"}, stdin: "Resent-To: r@c.x\nResent-Bcc: s@c.x\nFrom: a@c.x\nTo: b@c.x\nBcc: e@c.x\n\nhi\n", from: "-", to: []string{"r@c.x", "s@c.x"}},
	{name: "resent complete", args: []string{"-f", "f@c.x", "-t"}, stdin: "Resent-To: r@c.x\nTo: b@c.x\n\nhi\n", from: "f@c.x", to: []string{"r@c.x"},
		want: "Resent-To: r@c.x\nTo: b@c.x\nResent-Message-Id: ID\nResent-Date: DATE\nResent-From: f@c.x\n\nhi\n"},

	// Sender.
	{name: "-f", args: []string{"-f", "x@c.x", "b@c.x"}, stdin: hello, from: "x@c.x", to: []string{"b@c.x"}, want: hello},
	{name: "-fx", args: []string{"-fx@c.x", "b@c.x"}, stdin: hello, from: "x@c.x", to: []string{"b@c.x"}, want: hello},
	{name: "-r", args: []string{"-r", "x@c.x", "b@c.x"}, stdin: hello, from: "x@c.x", to: []string{"b@c.x"}, want: hello},
	{name: "-f with name", args: []string{"-f", "X Y <x@c.x>", "b@c.x"}, stdin: hello, from: "x@c.x", to: []string{"b@c.x"}, want: hello},
	{name: "-f ''", args: []string{"-f", "", "b@c.x"}, stdin: hello, from: "", to: []string{"b@c.x"}, want: hello},
	{name: "-f '<>'", args: []string{"-f", "<>", "b@c.x"}, stdin: "Subject: s\n\n", from: "", to: []string{"b@c.x"},
		want: "Subject: s\nMessage-Id: ID\nDate: DATE\nFrom: MAILER-DAEMON@camp.example\n\n"},
	{name: "-f two", args: []string{"-f", "a@c.x,b@c.x", "b@c.x"}, stdin: hello, exit: 64, err: "one address"},
	{name: "-f newline", args: []string{"-f", "a@c.x\nX", "b@c.x"}, stdin: hello, exit: 64},
	{name: "-F", args: []string{"-F", "J. Doe", "-f", "x@c.x", "b@c.x"}, stdin: "Subject: s\n\n", from: "x@c.x", to: []string{"b@c.x"},
		want: "Subject: s\nMessage-Id: ID\nDate: DATE\nFrom: \"J. Doe\" <x@c.x>\n\n"},
	{name: "NAME", env: []string{"NAME=Ann Bee"}, args: []string{"-f", "x", "b@c.x"}, stdin: "Subject: s\n\n", from: "x", to: []string{"b@c.x"},
		want: "Subject: s\nMessage-Id: ID\nDate: DATE\nFrom: Ann Bee <x@camp.example>\n\n"},
	{name: "-F leaves From alone", args: []string{"-FCronDaemon", "b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},

	// ESMTP parameters.
	{name: "mutt", args: []string{"-oem", "-oi", "-f", "m@c.x", "-N", "failure,delay", "-R", "hdrs", "--", "b@c.x"}, stdin: hello, from: "m@c.x", to: []string{"b@c.x"}, want: hello, check: func(m *envelope.Mail) error {
		return both(expect("NOTIFY", m.Recipients[0].Notify, envelope.NotifyFailure|envelope.NotifyDelay), expect("RET", m.Ret, "HDRS"))
	}},
	{name: "-N never", args: []string{"-N", "NEVER", "b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, check: func(m *envelope.Mail) error {
		return expect("NOTIFY", m.Recipients[0].Notify, envelope.NotifyNever)
	}},
	{name: "-N never,delay", args: []string{"-N", "never,delay", "b@c.x"}, stdin: hello, exit: 64, err: "-N"},
	{name: "-N often", args: []string{"-N", "often", "b@c.x"}, stdin: hello, exit: 64, err: "-N"},
	{name: "-R all", args: []string{"-R", "all", "b@c.x"}, stdin: hello, exit: 64, err: "-R"},
	{name: "-V", args: []string{"-V", "env+id=1 x", "b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, check: func(m *envelope.Mail) error {
		return expect("ENVID", m.EnvID, "env+2Bid+3D1+20x")
	}},
	{name: "-V newline", args: []string{"-V", "a\nb", "b@c.x"}, stdin: hello, exit: 64, err: "-V"},
	{name: "-B", args: []string{"-B8bitmime", "b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, check: func(m *envelope.Mail) error {
		return expect("BODY", m.Body, "8BITMIME")
	}},
	{name: "-B 9BIT", args: []string{"-B", "9BIT", "b@c.x"}, stdin: hello, exit: 64, err: "-B"},

	// Flags of other mail systems.
	{name: "cron", args: []string{"-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"},
		stdin: "From: root (Cron Daemon)\nTo: root\nSubject: Cron\n\n.\nout\n", from: "-", to: []string{"root"},
		want: "From: root@camp.example (Cron Daemon)\nTo: root\nSubject: Cron\nMessage-Id: ID\nDate: DATE\n\n.\nout\n"},
	{name: "bcron", args: []string{"-FCronDaemon", "-i", "-odi", "-oem", "root"}, stdin: hello, from: "-", to: []string{"root"}, want: hello},
	{name: "ignored flags", args: []string{"-G", "-U", "-m", "-n", "-x", "-v", "-d", "-d0.1", "-h", "3", "-L", "tag", "-X", "/tmp/x", "-C/etc/x", "-Ac", "-odq", "-odb", "-oMs", "host", "-oMrlocal", "-O", "x=y", "-oA/etc/aliases", "-em", "b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "-oMr", args: []string{"-oMr", "local-bsmtp", "b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "unknown flag", args: []string{"-Z", "b@c.x"}, stdin: hello, exit: 64, err: "hint: sendmail --help"},
	{name: "unknown long flag", args: []string{"--read-envelope-from", "b@c.x"}, stdin: hello, exit: 64},
	{name: "unknown flag in a cluster", args: []string{"-tZ"}, stdin: hello, exit: 64},
	{name: "missing value", args: []string{"-f"}, stdin: hello, exit: 64, err: "needs a value"},
	{name: "-bt", args: []string{"-bt"}, exit: 64, err: "unknown mode"},
	{name: "-bh", args: []string{"-bh"}, exit: 64, err: "unknown mode"},
	{name: "-bH", args: []string{"-bH"}, exit: 64, err: "unknown mode"},
	{name: "-bL", args: []string{"-bL"}, exit: 64, err: "unknown mode"},
	{name: "-bP", args: []string{"-bP"}, exit: 64, err: "unknown mode"},
	{name: "-b without a mode", args: []string{"-b"}, exit: 64, err: "needs a value"},
	{name: "a mode that is not there, with a message", args: []string{"-bx", "b@c.x"}, stdin: hello, exit: 64, err: "unknown mode"},
	{name: "-bi", args: []string{"-bi"}},
	{name: "newaliases", argv0: "newaliases"},
	{name: "-oeq is quiet", args: []string{"-oeq", "a@"}, exit: 64},

	// The end of the input.
	{name: "lone dot", args: []string{"b@c.x"}, stdin: hello + ".\nmore\n", from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "lone dot with CRLF", args: []string{"b@c.x"}, stdin: hello + ".\r\nmore\n", from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "lone dot at the end", args: []string{"b@c.x"}, stdin: hello + ".", from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "lone dot in the header", args: []string{"b@c.x"}, stdin: "From: a@c.x\nMessage-Id: <1@c.x>\nDate: x\n.\nmore\n", from: "-", to: []string{"b@c.x"}, want: "From: a@c.x\nMessage-Id: <1@c.x>\nDate: x\n\n"},
	{name: "-i", args: []string{"-i", "b@c.x"}, stdin: hello + ".\nmore\n", from: "-", to: []string{"b@c.x"}, want: hello + ".\nmore\n"},
	{name: "-oi", args: []string{"-oi", "b@c.x"}, stdin: hello + ".\nmore\n", from: "-", to: []string{"b@c.x"}, want: hello + ".\nmore\n"},
	{name: "dots that are text", args: []string{"b@c.x"}, stdin: hello + "..\n.x\n . \n", from: "-", to: []string{"b@c.x"}, want: hello + "..\n.x\n . \n"},
	{name: "no final newline", args: []string{"b@c.x"}, stdin: hello + "end", from: "-", to: []string{"b@c.x"}, want: hello + "end\n"},
	{name: "CRLF", args: []string{"b@c.x"}, stdin: strings.ReplaceAll(hello, "\n", "\r\n"), from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "mixed line ends", args: []string{"b@c.x"}, stdin: strings.Replace(hello, "\n", "\r\n", 3) + "a\r\nb\n", from: "-", to: []string{"b@c.x"}, want: hello + "a\nb\n"},
	{name: "NUL and bare CR", args: []string{"b@c.x"}, stdin: hello + "a\x00b\rc\n", from: "-", to: []string{"b@c.x"}, want: hello + "a\x00b\rc\n", check: func(m *envelope.Mail) error {
		return expect("BODY", m.Body, "BINARYMIME")
	}},
	{name: "8 bit without -B", args: []string{"b@c.x"}, stdin: hello + "\xe9\n", from: "-", to: []string{"b@c.x"}, want: hello + "\xe9\n", check: func(m *envelope.Mail) error {
		return expect("BODY", m.Body, "")
	}},
	{name: "long line", args: []string{"b@c.x"}, stdin: hello + strings.Repeat("x", 200_000) + "\n", from: "-", to: []string{"b@c.x"}, want: hello + strings.Repeat("x", 200_000) + "\n"},
	{name: "empty input", args: []string{"-f", "x@c.x", "b@c.x"}, from: "x@c.x", to: []string{"b@c.x"}, want: "Message-Id: ID\nDate: DATE\nFrom: x@c.x\n\n"},

	// Header repair.
	{name: "nothing missing", args: []string{"b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "raw bytes stay", args: []string{"b@c.x"}, stdin: "Date: x\nfrom:a@c.x\nMESSAGE-ID:<1@c.x>\nSubject:  \t odd  \n  folded \t\nX: \xff\nDKIM-Signature: v=1; b=\n\tabc\n\nhi\n",
		from: "-", to: []string{"b@c.x"}, want: "Date: x\nfrom:a@c.x\nMESSAGE-ID:<1@c.x>\nSubject:  \t odd  \n  folded \t\nX: \xff\nDKIM-Signature: v=1; b=\n\tabc\n\nhi\n"},
	{name: "Bcc goes without -t", args: []string{"b@c.x"}, stdin: "Bcc: e@c.x,\n f@c.x\nReturn-Path: <old@c.x>\nResent-Bcc: g@c.x\n" + hello, from: "-", to: []string{"b@c.x"}},
	{name: "Bcc and Return-Path go", args: []string{"b@c.x"}, stdin: "Bcc: e@c.x,\n f@c.x\nReturn-Path: <old@c.x>\n" + hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "first line no header", args: []string{"-f", "x@c.x", "b@c.x"}, stdin: "just text\nmore: text\n", from: "x@c.x", to: []string{"b@c.x"},
		want: "Message-Id: ID\nDate: DATE\nFrom: x@c.x\n\njust text\nmore: text\n"},
	{name: "header without blank line", args: []string{"b@c.x"}, stdin: "From: a@c.x\nDate: x\nMessage-Id: <1@c.x>\ntext at once\n", from: "-", to: []string{"b@c.x"},
		want: "From: a@c.x\nDate: x\nMessage-Id: <1@c.x>\n\ntext at once\n"},
	{name: "blank first line", args: []string{"-f", "x@c.x", "b@c.x"}, stdin: "\nFrom: a@c.x\n", from: "x@c.x", to: []string{"b@c.x"},
		want: "Message-Id: ID\nDate: DATE\nFrom: x@c.x\n\nFrom: a@c.x\n"},
	{name: "mbox separator", args: []string{"b@c.x"}, stdin: "From root Mon Jan  1 00:00:00 2024\n" + hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "From line in the body", args: []string{"b@c.x"}, stdin: hello + "From here on\n", from: "-", to: []string{"b@c.x"}, want: hello + "From here on\n"},
	{name: "quoted From", args: []string{"b@c.x"}, stdin: "From: \"J D\" <root>\nDate: x\nMessage-Id: <1@c.x>\n\n", from: "-", to: []string{"b@c.x"}, want: "From: \"J D\" <root@camp.example>\nDate: x\nMessage-Id: <1@c.x>\n\n"},
	{name: "folded From", args: []string{"b@c.x"}, stdin: "From:\n root\n (Cron)\nDate: x\nMessage-Id: <1@c.x>\n\n", from: "-", to: []string{"b@c.x"}, want: "From:\n root@camp.example\n (Cron)\nDate: x\nMessage-Id: <1@c.x>\n\n"},
	{name: "-G adds nothing", args: []string{"-G", "b@c.x"}, stdin: "From: root\nBcc: e@c.x\n\nhi\n", from: "-", to: []string{"b@c.x"}, want: "From: root\n\nhi\n"},
	{name: "header too big", args: []string{"b@c.x"}, stdin: strings.Repeat("X: "+strings.Repeat("y", 1000)+"\n", 1200) + "\n", exit: 65, err: "1 MiB"},
	{name: "header line too big", args: []string{"b@c.x"}, stdin: "X: " + strings.Repeat("y", 3<<20) + "\n", exit: 65},

	// rmail and batches.
	{name: "rmail", argv0: "rmail", args: []string{"far!joe", "b@c.x"}, stdin: "From ann Mon Jan  1 00:00:00 2024 remote from hub\n>From ann Mon Jan  1 00:00:00 2024 remote from site.example\nFrom: ann@site.example\nBcc: e@c.x\n\nhi\n.\nmore\n",
		from: "ann@site.example", to: []string{"joe@far", "b@c.x"}, want: "From: ann@site.example\n\nhi\n.\nmore\n", check: func(m *envelope.Mail) error { return expect("proto", m.Client.Proto, "rmail") }},
	{name: "rmail without From_", argv0: "rmail", args: []string{"b@c.x"}, stdin: hello, from: "-", to: []string{"b@c.x"}, want: hello},
	{name: "rmail null sender", argv0: "rmail", args: []string{"b@c.x"}, stdin: "From MAILER-DAEMON Mon Jan  1 00:00:00 2024 remote from hub\n" + hello, from: "", to: []string{"b@c.x"}, want: hello},
	{name: "rsmtp", argv0: "rsmtp", stdin: "HELO h\nMAIL FROM:<a@c.x> BODY=8BITMIME RET=HDRS ENVID=x+3D1\nRCPT TO:<b@c.x> NOTIFY=DELAY,FAILURE ORCPT=rfc822;b@c.x\nRCPT TO:<\"q u\"@c.x>\nDATA\nBcc: kept@c.x\n\n..dot\n.\nQUIT\n",
		from: "a@c.x", to: []string{"b@c.x", `"q u"@c.x`}, want: "Bcc: kept@c.x\n\n.dot\n", check: func(m *envelope.Mail) error {
			return both(both(expect("BODY", m.Body, "8BITMIME"), expect("ENVID", m.EnvID, "x+3D1")), both(expect("ORCPT", m.Recipients[0].ORcpt, "rfc822;b@c.x"), expect("proto", m.Client.Proto, "bsmtp")))
		}},
	{name: "-bS with CRLF and without QUIT", args: []string{"-bS"}, stdin: "EHLO h\r\nMAIL FROM:<>\r\nRCPT TO:<b@c.x>\r\nDATA\r\nhi\r\n.\r\n", from: "", to: []string{"b@c.x"}, want: "hi\n"},
	{name: "batch cut in the message", args: []string{"-bS"}, stdin: "MAIL FROM:<a@c.x>\nRCPT TO:<b@c.x>\nDATA\nhi\n", exit: 65, err: "inside of a message"},
	{name: "batch cut in the envelope", args: []string{"-bS"}, stdin: "MAIL FROM:<a@c.x>\nRCPT TO:<b@c.x>\n", exit: 65, err: "inside of a transaction"},
	{name: "batch with a bad recipient", args: []string{"-bS"}, stdin: "MAIL FROM:<a@c.x>\nRCPT TO:<b c@c.x>\nRCPT TO:<b@c.x>\nDATA\nhi\n.\n", exit: 65, err: "line 2"},
	{name: "batch with an unknown parameter", args: []string{"-bS"}, stdin: "MAIL FROM:<a@c.x> FOO=1\nRCPT TO:<b@c.x>\nDATA\nhi\n.\n", exit: 65, err: "FOO"},
	{name: "batch in a mail", argv0: "rsmtp", stdin: "From x@y Mon Jan  1 00:00:00 2024\nReceived: a\n\tb\nContent-Type: Application/Batch-SMTP;\n required-extensions=\"8bitMIME, DSN\"\n\nMAIL FROM:<a@c.x> RET=HDRS\nRCPT TO:<b@c.x>\nDATA\n" + hello + ".\n",
		from: "a@c.x", to: []string{"b@c.x"}, want: hello, check: func(m *envelope.Mail) error { return expect("RET", m.Ret, "HDRS") }},
	{name: "batch in a mail, Base64", argv0: "rsmtp", stdin: "Content-Transfer-Encoding: BASE64\nContent-Type: application/batch-smtp\n\n" + wrap76(base64.StdEncoding.EncodeToString([]byte("EHLO c\r\nMAIL FROM:<a@c.x>\r\nRCPT TO:<b@c.x>\r\nDATA\r\n"+strings.ReplaceAll(hello, "\n", "\r\n")+strings.Repeat("0123456789\r\n", 9000)+"..\r\n\xff\r\n.\r\nQUIT\r\n"))),
		from: "a@c.x", to: []string{"b@c.x"}, want: hello + strings.Repeat("0123456789\n", 9000) + ".\n\xff\n"},
	{name: "batch in a mail, quoted-printable", argv0: "rsmtp", stdin: "Content-Type: application/batch-smtp\nContent-Transfer-Encoding: quoted-printable\n\nMAIL FROM:<a@=\nc.x>\nRCPT TO:<b@c.x>\nDATA\nX=3D1: =E9=  \n\n=2E.x\n.\n",
		from: "a@c.x", to: []string{"b@c.x"}, want: "X=1: \xe9\n.x\n"},
	{name: "batch in a mail of another type", argv0: "rsmtp", stdin: "Content-Type: text/plain\n\nMAIL FROM:<a@c.x>\nRCPT TO:<b@c.x>\nDATA\nhi\n.\n", exit: 65, err: "text/plain"},
	{name: "batch in a mail without a type", argv0: "rsmtp", stdin: "Subject: x\n\nMAIL FROM:<a@c.x>\nRCPT TO:<b@c.x>\nDATA\nhi\n.\n", exit: 65, err: "no batch"},
	{name: "batch that needs too much", argv0: "rsmtp", stdin: "Content-Type: application/batch-smtp; required-extensions=DSN,TELEPATHY\n\nMAIL FROM:<a@c.x>\nRCPT TO:<b@c.x>\nDATA\nhi\n.\n", exit: 65, err: "TELEPATHY"},
	{name: "batch in broken Base64", argv0: "rsmtp", stdin: "Content-Type: application/batch-smtp\nContent-Transfer-Encoding: base64\n\nTUFJT-\n", exit: 65, err: "encoding is broken"},
	{name: "batch in an unknown encoding", argv0: "rsmtp", stdin: "Content-Type: application/batch-smtp\nContent-Transfer-Encoding: x-uue\n\nMAIL FROM:<a@c.x>\n", exit: 65, err: "x-uue"},
	{name: "mail that ends before its batch", argv0: "rsmtp", stdin: "Content-Type: application/batch-smtp\n", exit: 65, err: "before its batch"},
	{name: "empty batch", args: []string{"-bS"}, exit: 65},
	{name: "batch without recipients", args: []string{"-bS"}, stdin: "MAIL FROM:<a@c.x>\nDATA\nhi\n.\n", exit: 65},
}

// wrap76 breaks a text into lines.
func wrap76(s string) string {
	var b strings.Builder
	for len(s) > 76 {
		b.WriteString(s[:76] + "\n")
		s = s[76:]
	}
	return b.String() + s + "\n"
}

func expect[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, want %v", what, got, want)
	}
	return nil
}

func both(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

var (
	madeID   = regexp.MustCompile(`(?m)^((?:Resent-)?Message-Id): <[a-z2-7]{23}@camp\.example>$`)
	madeDate = regexp.MustCompile(`(?m)^((?:Resent-)?Date): (?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] 20\d\d \d\d:\d\d:\d\d [+-]\d{4}$`)
)

// TestGolden runs every case twice: with a daemon on the socket, and over the maildrop. Both must come to the same.
func TestGolden(t *testing.T) {
	for _, way := range []string{"socket", "maildrop"} {
		t.Run(way, func(t *testing.T) {
			n := newNode(t)
			if way == "socket" {
				n.start(t, submission.Options{})
			}
			for i := range table {
				t.Run(table[i].name, func(t *testing.T) { n.golden(t, &table[i], way == "socket") })
			}
		})
	}
}

func (n *node) golden(t *testing.T, g *golden, socket bool) {
	argv0 := g.argv0
	if argv0 == "" {
		argv0 = "sendmail"
	}
	cmd := n.command(argv0, g.args...)
	cmd.Env = append(cmd.Env, g.env...)
	r := finish(t, cmd, g.stdin)
	if r.exit != g.exit || !strings.Contains(r.err, g.err) || r.out != g.out {
		t.Errorf("exit %d, stdout %q, stderr %q; want exit %d, stdout %q, stderr with %q", r.exit, r.out, r.err, g.exit, g.out, g.err)
	}
	if g.exit != 0 && g.name != "-oeq is quiet" && !strings.HasPrefix(r.err, "sendmail: error: ") {
		t.Errorf("stderr %q", r.err)
	}
	if names := leftovers(t, n); socket && len(names) > 0 {
		t.Errorf("with a daemon, files in the maildrop: %q", names)
	}
	letters := n.desk.take()
	if !socket {
		letters = n.collect(t)
	}
	if names := leftovers(t, n); len(names) > 0 || len(n.dd.refused) > 0 {
		t.Errorf("left over: %q, refused: %q", names, n.dd.refused)
	}
	if g.to == nil {
		if len(letters) != 0 {
			t.Fatalf("queued %d mails: %+v", len(letters), letters)
		}
		return
	}
	if len(letters) != 1 {
		t.Fatalf("queued %d mails", len(letters))
	}
	n.compare(t, g, &letters[0])
}

func (n *node) compare(t *testing.T, g *golden, l *letter) {
	want := g.from
	if want == "-" {
		want = "tester"
	}
	if l.mail.Sender != want {
		t.Errorf("sender %q, want %q", l.mail.Sender, want)
	}
	var to []string
	for _, r := range l.mail.Recipients {
		to = append(to, r.Addr)
	}
	if fmt.Sprintf("%q", to) != fmt.Sprintf("%q", g.to) {
		t.Errorf("recipients %q, want %q", to, g.to)
	}
	if l.mail.Client.UID != int64(os.Getuid())+1 || l.mail.Client.User != "tester" {
		t.Errorf("submitter %+v", l.mail.Client)
	}
	text := strings.ReplaceAll(l.content, "\r\n", "\n")
	if strings.Count(text, "\n") != strings.Count(l.content, "\r\n") {
		t.Errorf("lines without CR: %q", l.content)
	}
	text = madeDate.ReplaceAllString(madeID.ReplaceAllString(text, "$1: ID"), "$1: DATE")
	if g.want != "" && text != normal(g.want) {
		t.Errorf("content\n%q\nwant\n%q", clip(text), clip(g.want))
	}
	if strings.Contains(strings.ToLower(text), "\nbcc:") && g.argv0 != "rsmtp" {
		t.Errorf("Bcc leaked: %q", clip(text))
	}
	if g.check != nil {
		if err := g.check(&l.mail); err != nil {
			t.Error(err)
		}
	}
}

// normal leaves a wanted date that is real as the pattern would.
func normal(s string) string { return madeDate.ReplaceAllString(s, "$1: DATE") }

func clip(s string) string {
	if len(s) > 600 {
		return s[:300] + "..." + s[len(s)-300:]
	}
	return s
}

// leftovers are the entries of the maildrop that are not the daemon's.
func leftovers(t testing.TB, n *node) []string {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(n.home, "spool/maildrop"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		if e.Name() != "domain" {
			names = append(names, e.Name())
		}
	}
	return names
}
