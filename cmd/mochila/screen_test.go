package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"rsc.io/qr"

	"mochila/internal/control"
)

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"plain ASCII ~":         "plain ASCII ~",
		"grün, 日本, 😀":           "grün, 日本, 😀",
		"a\tb\r\nc":             `a\011b\015\012c`,
		"\x1b]0;title\x07":      `\033]0;title\007`,
		"\u009b31m":             `\u009b31m`, // CSI as one character
		"del\x7f":               `del\177`,
		"\u202egnp.exe":         `\u202egnp.exe`,
		"zero\u200bwidth":       `zero\u200bwidth`,
		"bad\xc3(":              `bad\303(`,
		"\U000e0041tag":         `\U000e0041tag`,
		"real \ufffd character": "real \ufffd character",
	} {
		if got := safe(in); got != want {
			t.Errorf("safe(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzSafe(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b[2J\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := safe(s)
		if !utf8.ValidString(got) {
			t.Errorf("safe(%q) is no UTF-8", s)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("safe(%q) has %U", s, r)
			}
		}
		if len(got) == len(s) && got != s {
			t.Errorf("safe(%q) = %q", s, got)
		}
	})
}

func TestQuietJSON(t *testing.T) {
	if got, want := quietJSON("{\"a\":\"x\u007f\u0085y\u00a0é\"}"), "{\"a\":\"x\\u007f\\u0085y\u00a0é\"}"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 1400: "1.4 kB", 9949: "9.9 kB", 9950: "10 kB", 999_499: "999 kB",
		999_500: "1.0 MB", 1 << 20: "1.0 MB", 5e9: "5.0 GB", 1<<63 - 1: "9 EB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59 * time.Minute: "59m", time.Hour: "1h",
		47 * time.Hour: "47h", 48 * time.Hour: "2d", -3 * time.Hour: "3h"} {
		if got := span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// output is what a test's app prints.
func output(t *testing.T, env map[string]string, fn func(*app)) (stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	e := &Env{Stdout: open("out"), Stderr: open("err"), Version: "1", Getenv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	a := &app{env: e, out: &screen{w: e.Stdout}, now: time.Now()}
	fn(a)
	if err := a.out.flush(); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return read("out"), read("err")
}

func TestTable(t *testing.T) {
	got, _ := output(t, nil, func(a *app) {
		a.table([][]string{{"NAME", ">SIZE", ""}, {"grün", "1", "x"}, {"a", "1000", ""}})
	})
	if want := "NAME  SIZE\ngrün     1  x\na     1000\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestSyncLines(t *testing.T) {
	const stick = "dir:/media/usb"
	for _, c := range []struct {
		name     string
		line     control.SyncLine
		out, err string
		status   int
	}{
		{"written", control.SyncLine{Node: "camp", Carrier: stick, Folder: true, PacketsOut: 2, BytesOut: 1400, Lying: 2},
			"2 packets, 1.4 kB on the stick. Safe to remove. Next: plug it in at camp.\n", "", 0},
		{"some old", control.SyncLine{Node: "camp", Carrier: stick, Folder: true, PacketsOut: 1, BytesOut: 700, Lying: 3},
			"3 packets on the stick, 700 B of them new. Safe to remove. Next: plug it in at camp.\n", "", 0},
		{"all old", control.SyncLine{Node: "camp", Carrier: stick, Folder: true, Lying: 1},
			"1 packet on the stick from before. Safe to remove. Next: plug it in at camp.\n", "", 0},
		{"nothing", control.SyncLine{Node: "camp", Carrier: stick, Folder: true}, "Nothing for camp on the stick. Safe to remove.\n", "", 0},
		{"paired", control.SyncLine{Node: "hub", Carrier: stick, Folder: true, Paired: "hub", Delivered: 1, PacketsIn: 2, BytesIn: 5800, PacketsOut: 1, BytesOut: 242, Lying: 1},
			"here: paired with hub, 1 mail delivered\nhub: 2 packets, 5.8 kB received\n1 packet, 242 B on the stick. Safe to remove. Next: plug it in at hub.\n", "", 0},
		{"live", control.SyncLine{Node: "hub", Carrier: "tcp:hub:2424", PacketsIn: 1, BytesIn: 10, PacketsOut: 3, BytesOut: 2000, Refused: 1, Incomplete: 2},
			"hub: 1 packet, 10 B received; 3 packets, 2.0 kB sent; 2 not complete yet; 1 refused (mochila quarantine list)\n", "", 0},
		{"idle", control.SyncLine{Node: "hub", Carrier: "tcp:hub:2424"}, "hub: nothing to move\n", "", 0},
		{"absent", control.SyncLine{Node: "camp", Carrier: stick, Folder: true, Absent: true, Error: "open: list: carrier is absent"}, "",
			"mochila: error: camp: /media/usb is not there\nhint: is the stick plugged in and mounted?\n", 75},
		{"down, after a start", control.SyncLine{Node: "hub", Carrier: "tcp:hub:2424", PacketsIn: 1, BytesIn: 10, Error: "lost\x1b connection"},
			"hub: 1 packet, 10 B received\n", "mochila: error: hub over tcp:hub:2424: lost\\033 connection\n", 75},
		{"hostile name", control.SyncLine{Node: "h\x1bub", Carrier: "tcp:x:1"}, "h\\033ub: nothing to move\n", "", 0},
		{"broken off", control.SyncLine{End: true, Error: "the daemon stops"}, "", "mochila: error: sync: the daemon stops\n", 75},
	} {
		t.Run(c.name, func(t *testing.T) {
			var status int
			out, errs := output(t, map[string]string{"HOME": "/nonexistent", "MOCHILA_HOME": "/nonexistent"}, func(a *app) {
				s := a.newSyncView()
				for _, l := range []control.SyncLine{{Node: "x", Progress: true}, c.line, {End: true}} {
					if err := s.line(l); err != nil {
						t.Error(err)
					}
				}
				s.close()
				status = report(a.env.Stderr, s.end())
			})
			if out != c.out || errs != c.err || status != c.status {
				t.Errorf("status %d\n%s%s\nwant %d\n%s%s", status, out, errs, c.status, c.out, c.err)
			}
		})
	}
}

// TestProgress: one line that is drawn over and removed, no wider than the terminal.
func TestProgress(t *testing.T) {
	_, errs := output(t, nil, func(a *app) {
		s := a.newSyncView()
		if s.width != 0 {
			t.Error("progress on a file")
		}
		s.width = 20
		s.draw("1s")
		s.line(control.SyncLine{Node: "hub", Progress: true, PacketsIn: 1, BytesIn: 5000})
		s.draw("2s")
		s.line(control.SyncLine{Node: "hub", PacketsIn: 2, BytesIn: 7000})
		s.close()
		s.close()
	})
	if want := "\rmaking contact … 1s\x1b[K\rhub: 1 packet in, 0\x1b[K\r\x1b[K"; errs != want {
		t.Errorf("got %q, want %q", errs, want)
	}
}

func TestNoSecret(t *testing.T) {
	for in, want := range map[string]string{"https://u:p@h/x": "https://u:xxxxx@h/x", "tcp:hub:2424": "tcp:hub:2424", "/media/usb": "/media/usb"} {
		if got := noSecret(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestTakes(t *testing.T) {
	for _, c := range []struct {
		names []string
		args  string
		want  string
	}{
		{nil, "", ""},
		{nil, "x", `unexpected argument "x"`},
		{[]string{"NAME", "DIR|URL"}, "a b", ""},
		{[]string{"NAME", "DIR|URL"}, "a", "DIR|URL is missing"},
		{[]string{"NAME"}, "a b c", `unexpected argument "b"`},
		{[]string{"ID…"}, "", "ID is missing"},
		{[]string{"ID…"}, "a b c", ""},
		{[]string{"[X…]"}, "", ""},
		{[]string{"[X…]"}, "a b", ""},
	} {
		cmd := (&app{env: &Env{}}).statusCmd()
		err := takes(c.names...)(cmd, strings.Fields(c.args))
		if err == nil && c.want != "" || err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v of %q: %v, want %q", c.names, c.args, err, c.want)
		}
	}
}

func TestCarriersAndTargets(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, d := range []string{"stick", "hub", "home/peers"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("home/peers/hub.toml", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	output(t, map[string]string{"HOME": "/home/ana"}, func(a *app) {
		a.home = "home"
		for _, c := range []struct{ in, carrier, target string }{
			{"hub", "dir:" + dir + "/hub", "hub"}, // a folder, too, but there is such a peer
			{"camp", "dir:" + dir + "/camp", "camp"},
			{"stick", "dir:" + dir + "/stick", "dir:" + dir + "/stick"},
			{"./hub", "dir:" + dir + "/hub", "dir:" + dir + "/hub"},
			{"/media/usb/", "dir:/media/usb", "dir:/media/usb"},
			{"dir:stick?x=1", "dir:" + dir + "/stick?x=1", "dir:" + dir + "/stick?x=1"},
			{"~/stick", "dir:/home/ana/stick", "dir:/home/ana/stick"},
			{"tcp:hub.example:2424", "tcp:hub.example:2424", "tcp:hub.example:2424"},
		} {
			if got, err := a.carrier(c.in); err != nil || got != c.carrier {
				t.Errorf("carrier %q: %q, %v, want %q", c.in, got, err, c.carrier)
			}
			if got, err := a.target(c.in); err != nil || got != c.target {
				t.Errorf("target %q: %q, %v, want %q", c.in, got, err, c.target)
			}
		}
		if _, err := a.carrier(""); err == nil {
			t.Error("an empty name is a folder")
		}
	})
}

// TestQR reads the drawing back.
func TestQR(t *testing.T) {
	code, err := qr.Encode("-----BEGIN MOCHILA CARD-----", qr.L)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(drawQR(code, false), "\n"), "\n")
	for y := -4; y < code.Size+4; y++ {
		row := []rune(lines[(y+4)/2])
		if len(row) != code.Size+8 {
			t.Fatalf("row %d has %d modules, want %d", y, len(row), code.Size+8)
		}
		for x := -4; x < code.Size+4; x++ {
			r := row[x+4]
			black := r == '█' || r == '▀' && (y+4)%2 == 0 || r == '▄' && (y+4)%2 == 1
			if black != code.Black(x, y) {
				t.Fatalf("module %d,%d is drawn wrong", x, y)
			}
		}
	}
	if got := drawQR(code, true); strings.Count(got, "\x1b[30;107m") != len(lines) || strings.Count(got, "\x1b[0m") != len(lines) {
		t.Error("a line does not set its colours, or does not reset them")
	}
}

func TestLineWriter(t *testing.T) {
	var got []string
	w := &lineWriter{emit: func(s string) { got = append(got, s) }}
	w.Write([]byte("one\ntw"))
	w.Write([]byte("o\n" + strings.Repeat("x", 70_000)))
	w.end()
	if len(got) != 4 || got[0] != "one\n" || got[1] != "two\n" || len(got[2]) != 64<<10 || len(got[3]) != 70_000-64<<10 {
		t.Errorf("got %d lines", len(got))
	}
}
