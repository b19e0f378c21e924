package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// viaSchemes are the ways to hand mail to the local mail system, with what follows the colon.
var viaSchemes = []struct{ name, form string }{
	{"smtp", "smtp:127.0.0.1:10026"},
	{"smtps", "smtps:USER@mail.example"},
	{"submission", "submission:USER@mail.example"},
	{"lmtp", "lmtp:/run/dovecot/lmtp or lmtp:127.0.0.1:24"},
	{"maildir", "maildir:/srv/mail/%u"},
	{"sendmail", "sendmail:/usr/sbin/sendmail"},
	{"pipe", "pipe:/usr/local/bin/program"},
	{"bsmtp", "bsmtp:/usr/lib/mochila/rsmtp or bsmtp:/usr/sbin/sendmail?to=rsmtp@hub.example"},
	{"uux", "uux:hub!rsmtp"},
	{"receive", "receive:packets"},
}

// checkVia looks at the form of a deliver URL. host is HOST:PORT where mail goes by TCP.
func checkVia(via string) (host, hint string, ok bool) {
	scheme, rest, _ := cutScheme(via)
	var names []string
	for _, s := range viaSchemes {
		if names = append(names, s.name); scheme != s.name {
			continue
		}
		hint = "such as " + s.form
		if strings.HasPrefix(rest, "//") && s.name != "maildir" && s.name != "pipe" && s.name != "sendmail" {
			return "", fmt.Sprintf("write %s:%s, without the slashes", s.name, strings.TrimRight(rest[2:], "/")), false
		}
		switch s.name {
		case "receive":
			return "", hint, rest == "packets"
		case "uux":
			target, _, _ := strings.Cut(rest, "?")
			site, command, _ := strings.Cut(target, "!")
			return "", "such as uux:hub!rmail, uux:hub!rsmtp or uux:hub!rgsmtp", site != "" && (command == "rmail" || command == "rsmtp" || command == "rgsmtp")
		case "bsmtp":
			path, query, _ := strings.Cut(rest, "?")
			return "", hint, !strings.HasPrefix(path, "~") && (query == "" || strings.HasPrefix(query, "to=") && isAddress(query[3:]))
		case "maildir", "sendmail", "pipe":
			return "", hint, !strings.HasPrefix(rest, "~")
		case "lmtp":
			if strings.Contains(rest, "/") {
				return "", hint, true
			}
		case "smtps", "submission":
			return "", hint, checkSmarthost(rest)
		}
		if err := checkHostPort(rest); err != nil || strings.HasPrefix(rest, ":") {
			return "", hint, false
		}
		return rest, "", true
	}
	if scheme != "" {
		if s := nearest(scheme, names); s != "" {
			return "", fmt.Sprintf("did you mean %q?", s+":"+rest), false
		}
	}
	return "", "it begins with one of " + strings.Join(names, ": ") + ":", false
}

// checkSmarthost looks at [USER@]HOST[:PORT].
func checkSmarthost(s string) bool {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		if i == 0 || strings.ContainsAny(s[:i], "/ \t") {
			return false
		}
		s = s[i+1:]
	}
	if s == "" || strings.ContainsAny(s, "/ \t") {
		return false
	}
	return !strings.Contains(s, ":") || strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") || checkHostPort(s) == nil && s[0] != ':'
}

// viaBelow makes the relative path of a deliver URL start at dir.
func viaBelow(via, dir string) string {
	name, rest, _ := strings.Cut(via, ":")
	switch name {
	case "maildir", "pipe", "sendmail", "bsmtp":
	case "lmtp":
		if !strings.Contains(rest, "/") {
			return via
		}
	default:
		return via
	}
	if filepath.IsAbs(rest) {
		return via
	}
	return name + ":" + filepath.Join(dir, rest)
}
