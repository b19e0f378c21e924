package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// home makes a node's home with a mochila.toml and the peers hub and ferry.
func home(t *testing.T, main string) Home {
	t.Helper()
	h, err := HomeAt(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Config(), []byte(main), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"aliases": testAliases, "users": "# who exists\nana\nbob@camp.example OK\n"} {
		if err := os.WriteFile(filepath.Join(h.Base, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"ferry", "hub"} {
		if err := WritePeer(h, PeerFile{Peer: Peer{Node: n, Card: "card of " + n}, Contacts: []Contact{{Carrier: "tcp:" + n + ".example:2424"}}}); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

const testAliases = "# local names\nRoot: ana\nstaff: ana,\n\t\"b, c\"@x.example , \\dora\n\n\"a b\" : bob\n"

// TestAliasFiles: what is wrong with a file is named with its line.
func TestAliasFiles(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"root ana\n":                       "line 1: it has no colon",
		"root: ana\nroot: bob\n":           `line 2: "root" is there twice`,
		"  ana\n":                          "line 1: it continues nothing",
		"root: |/bin/prog\n":               "is a program or a file",
		"root: ana, /var/mail/root\n":      "is a program or a file",
		"root:\n":                          `"root" leads nowhere`,
		": ana\n":                          "no name in front of the colon",
		"root: :include:/not/there\n":      "no such file",
		"root: :include:relative\n":        "not an absolute path",
		"root: :fail: no\n":                "means nothing here",
		"x: " + strings.Repeat("y", 2<<20): "token too long",
	} {
		path := filepath.Join(dir, "aliases")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadAliases(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "list"), []byte("ana@x.example\nbob@x.example,\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "aliases"), []byte("all: :include:"+dir+"/list, carl\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := ReadAliases(filepath.Join(dir, "aliases"))
	if want := (Aliases{"all": {"ana@x.example", "bob@x.example", "carl"}}); err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("got %v, %v", a, err)
	}
}

// speak writes problems as the files in testdata do.
func speak(h Home, ps []*Problem) string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString("#! " + strings.ReplaceAll(p.Error(), h.ConfigDir+"/", "") + "\n")
		if p.Hint != "" {
			b.WriteString("#? " + p.Hint + "\n")
		}
	}
	return b.String()
}

// wanted is the lines of a file in testdata that speak writes.
func wanted(doc string) string {
	var b strings.Builder
	for line := range strings.Lines(doc) {
		if strings.HasPrefix(line, "#! ") || strings.HasPrefix(line, "#? ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// eachFile runs a test for every file that is named after its defect.
func eachFile(t *testing.T, dir string, test func(t *testing.T, doc string)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.toml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files in %s: %v", dir, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".toml"), func(t *testing.T) {
			doc, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			test(t, string(doc))
		})
	}
}

func TestBad(t *testing.T) {
	eachFile(t, "bad", func(t *testing.T, doc string) {
		h := home(t, doc)
		c, _, err := Load(h)
		var ps Problems
		if !errors.As(err, &ps) || c != nil {
			t.Fatalf("Load = %v, %v; want problems", c, err)
		}
		if got, want := speak(h, ps), wanted(doc); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

func TestWarnings(t *testing.T) {
	eachFile(t, "warn", func(t *testing.T, doc string) {
		h := home(t, doc)
		c, warnings, err := Load(h)
		if err != nil || c == nil {
			t.Fatal(err)
		}
		if got, want := speak(h, warnings), wanted(doc); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

func TestTenLines(t *testing.T) {
	h := home(t, `name = "camp"
[[deliver]]
to = ["camp.mochila"]
via = "maildir:Mail/%u"
`)
	stick := PeerFile{Peer: Peer{Node: "inn", Card: "card of inn"}, Contacts: []Contact{{Carrier: "dir:/media/usb"}}}
	if err := WritePeer(h, stick); err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Load(h)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, speak(h, warnings))
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	if got := c.SMTP.Prefixes(); !reflect.DeepEqual(got, loopback) {
		t.Errorf("relay_from = %v, want %v", got, loopback)
	}
	for what, pair := range map[string][2]any{
		"domain":         {c.Domain, "camp.mochila"},
		"postmaster":     {c.Postmaster, "postmaster@camp.mochila"},
		"hostname":       {c.SMTP.Hostname, "camp.mochila"},
		"max_size":       {c.SMTP.MaxSize, Size(50 << 20)},
		"max_recipients": {c.SMTP.MaxRecipients, 1000},
		"lifetime":       {c.Limits.Lifetime, Duration(60 * 24 * time.Hour)},
		"delay":          {c.Limits.Delay, Duration(4 * time.Hour)},
		"retry_min":      {c.Limits.RetryMin, Duration(time.Minute)},
		"retry_max":      {c.Limits.RetryMax, Duration(4 * time.Hour)},
		"reserve":        {c.Limits.Reserve, Size(-1)},
		"hops":           {c.Limits.Hops, 20},
		"received":       {c.Limits.Received, 50},
		"passes":         {c.Limits.Passes, 5},
		"listeners":      {len(c.SMTP.Listen) + len(c.Link.Listen), 0},
		"via":            {c.Delivers[0].Via, "maildir:" + h.ConfigDir + "/Mail/%u"},
		"implied route":  {c.Routes[0].To[0] + " " + c.Routes[0].Node + " " + c.Routes[0].Keep, "ferry.mochila ferry end"},
		"routes":         {len(c.Routes), 3},
		"contact":        {c.Contacts[1].Name + " " + c.Contacts[1].Node + " " + c.Contacts[1].Carrier, "hub hub tcp:hub.example:2424"},
		"every":          {c.Contacts[1].Every, Duration(5 * time.Minute)},
		"stick's every":  {c.Contacts[2].Every, Duration(0)},
		"grant":          {c.Peers[0].MaxBytes, Size(1 << 30)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s = %v, want %v", what, pair[0], pair[1])
		}
	}
}

// TestWhole reads a file that uses every key.
func TestWhole(t *testing.T) {
	doc, err := os.ReadFile("testdata/good/whole.toml")
	if err != nil {
		t.Fatal(err)
	}
	h := home(t, string(doc))
	c, warnings, err := Load(h)
	if got, want := speak(h, warnings), wanted(string(doc)); err != nil || got != want {
		t.Fatalf("%v\n%swant\n%s", err, got, want)
	}
	f := newFile("whole", doc)
	eachKey(t, reflect.TypeFor[Config](), "", func(key string) {
		for at := range f.keys {
			if plain(at) == key {
				return
			}
		}
		t.Errorf("testdata/good/whole.toml does not use %s", key)
	})
	when, _ := ParseWhen("Mo-Fr 06:00-08:00; Sa 10:00-11:00 UTC")
	for what, pair := range map[string][2]any{
		"listen":      {c.SMTP.Listen, []Listen{{"smtp", "tcp", "127.0.0.1:2525"}, {"lmtp", "tcp", "[::1]:2424"}, {"lmtp", "unix", h.ConfigDir + "/run/lmtp.sock"}, {"smtp", "unix", "/run/smtp.sock"}, {"smtps", "tcp", "[::]:465"}}},
		"relay_from":  {c.SMTP.Prefixes(), []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.7/32")}},
		"route":       {c.Routes[4].Path, []string{"ferry"}},
		"when":        {c.Contacts[0].When, when},
		"carrier":     {c.Contacts[0].Carrier, "dir:" + h.ConfigDir + "/stick"},
		"other name":  {c.Contacts[1].Name, "inn"},
		"third name":  {c.Contacts[2].Name, "ferry"},
		"tls_key":     {c.SMTP.TLSKey, h.ConfigDir + "/key.pem"},
		"reached":     {c.Routes[0].To[0] + " by " + strings.Join(c.Routes[0].Path, ","), "far.mochila by ferry"},
		"send_as":     {c.Peers[2].SendAs, []string{"hub.example", "<>"}},
		"max_count":   {c.Peers[2].MaxCount, 7},
		"not touched": {c.Peers[1].SendAs, []string(nil)},
		"card":        {strings.Fields(c.Peers[2].Card), []string{"card", "of", "hub"}},
		"aliases":     {c.LocalNames, Aliases{"root": {"ana"}, "staff": {"ana", "\"b, c\"@x.example", "dora"}, "a b": {"bob"}}},
		"recipients":  {c.Delivers[0].Known, []string{"ana", "bob@camp.example"}},
		"bounce":      {c.Bounce.Via, "smtp:127.0.0.1:10026"},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s = %v, want %v", what, pair[0], pair[1])
		}
	}
}

// eachKey calls f for every key that a type knows.
func eachKey(t *testing.T, typ reflect.Type, prefix string, f func(key string)) {
	t.Helper()
	for _, name := range keysOf(typ) {
		sub, _ := fieldFor(typ, name)
		if sub.Kind() == reflect.Struct && len(keysOf(sub)) > 0 {
			eachKey(t, sub, prefix+name+".", f)
			continue
		}
		f(prefix + name)
	}
}

func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	eachKey(t, reflect.TypeFor[Config](), "", func(key string) {
		table, name, sub := strings.Cut(key, ".")
		if !sub {
			table, name = "", key
		}
		_, section, found := strings.Cut(string(doc), "\n## "+heading(table)+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		if !found || !strings.Contains(section, "\n| `"+name+"` |") {
			t.Errorf("docs/config.md does not tell about %s", key)
		}
	})
}

func heading(table string) string {
	switch {
	case table == "":
		return "Top level"
	case isList(table):
		return "`[[" + table + "]]`"
	}
	return "`[" + table + "]`"
}

func TestNoConfig(t *testing.T) {
	h, err := HomeAt(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Load(h)
	var p *Problem
	if !errors.As(err, &p) || p.Error() != h.Config()+": there is no configuration" || p.Hint != "mochila init NAME" {
		t.Errorf("Load without a file: %v", err)
	}
}

func TestPeerFiles(t *testing.T) {
	h := home(t, "name = \"camp\"\n[[deliver]]\nto = [\"*\"]\nvia = \"pipe:/bin/cat\"\n")
	put := func(name, doc string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(h.PeersDir, name), []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(".tmp-1.toml", "broken")
	put("~hub.toml", "broken")
	put("hub.toml.orig", "broken")
	if c, _, err := Load(h); err != nil || len(c.Peers) != 2 {
		t.Fatalf("temporary files disturb: %v", err)
	}
	put("inn.toml", "[peer]\nnode = \"tavern\"\nid = \"x\"\nsend_az = []\n")
	put("mill.toml", "[[contact]]\nnode = \"mil\"\ncarrier = \"tcp:m:1\"\n")
	_, _, err := Load(h)
	want := "peers/inn.toml:4:1: peer.send_az: unknown key\npeers/mill.toml: peer: the peer has no card"
	if got := strings.ReplaceAll(err.Error(), h.ConfigDir+"/", ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	put("inn.toml", "[peer]\nnode = \"tavern\"\ncard = \"x\"\n")
	put("mill.toml", "[peer]\ncard = \"x\"\n[[contact]]\nnode = \"mil\"\ncarrier = \"tcp:m:1\"\n")
	_, _, err = Load(h)
	want = "peers/inn.toml:2:1: peer.node: \"tavern\" differs from the name of the file"
	if got := strings.ReplaceAll(err.Error(), h.ConfigDir+"/", ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	put("inn.toml", "[peer]\ncard = \"x\"\n")
	_, _, err = Load(h)
	want = "peers/mill.toml:4:1: contact.node: there is no peer \"mil\""
	if got := strings.ReplaceAll(err.Error(), h.ConfigDir+"/", ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestHugeFile(t *testing.T) {
	h := home(t, strings.Repeat("# filler\n", maxFile/9+1))
	if _, _, err := Load(h); err == nil || !strings.HasSuffix(err.Error(), "is larger than 1 MiB") {
		t.Errorf("Load of a huge file: %v", err)
	}
}

func TestWriteInitial(t *testing.T) {
	for name, n := range map[string]Initial{
		"bare": {Name: "camp"},
		"full": {Name: "camp", Domain: "camp.example", Listen: []string{"127.0.0.1:2525", "lmtp:run/lmtp.sock"}, Via: `maildir:/home/a "b" \c/%u`, Bounce: "smtp:127.0.0.1:10026"},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := HomeAt(filepath.Join(t.TempDir(), "new", "home"))
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteInitial(h, n); err != nil {
				t.Fatal(err)
			}
			c, warnings, err := Load(h)
			if err != nil {
				t.Fatal(err)
			}
			if c.Name != "camp" || len(c.SMTP.Listen) != len(n.Listen) || c.Bounce.Via != n.Bounce {
				t.Errorf("read back %+v", c)
			}
			if n.Via == "" {
				if len(c.Delivers) != 0 || len(warnings) != 1 {
					t.Errorf("without via: %v, %s", c.Delivers, speak(h, warnings))
				}
			} else if len(c.Delivers) != 1 || c.Delivers[0].Via != n.Via || !slices.Equal(c.Delivers[0].To, []string{n.Domain}) || len(warnings) != 0 {
				t.Errorf("deliver = %+v, %s", c.Delivers, speak(h, warnings))
			}
			if err := WriteInitial(h, n); !errors.Is(err, ErrExists) {
				t.Errorf("second WriteInitial: %v, want ErrExists", err)
			}
		})
	}
	h, _ := HomeAt(t.TempDir())
	if err := WriteInitial(h, Initial{Name: "Camp Four"}); err == nil || h.Initialized() {
		t.Errorf("a bad name was written: %v", err)
	}
}

// TestInitialUncommented: the examples in the comments of a fresh file are right, too.
func TestInitialUncommented(t *testing.T) {
	var lines []string
	for line := range strings.Lines((Initial{Name: "camp"}).text()) {
		lines = append(lines, strings.TrimPrefix(line, "# "))
	}
	h := home(t, strings.Join(lines, ""))
	if _, warnings, err := Load(h); err != nil || len(warnings) > 1 {
		t.Errorf("%v\n%s", err, speak(h, warnings))
	}
}

func TestWritePeer(t *testing.T) {
	h := home(t, `name = "camp"`)
	when, err := ParseWhen("Mo-Fr 22:00-06:00 UTC")
	if err != nil {
		t.Fatal(err)
	}
	f := PeerFile{
		Peer: Peer{
			Node: "inn", ID: strings.Repeat("a", 51) + "q", SendAs: []string{"inn.example", "<>", `"a\b"@c`}, SendTo: []string{"*"},
			RelayTo: []string{}, MaxBytes: 2 << 30, MaxCount: 3, Card: "-----BEGIN MOCHILA CARD-----\nAB+/==\n\\\"\"\"\n-----END MOCHILA CARD-----\n",
		},
		Contacts: []Contact{{Name: "x", Node: "inn", Carrier: "dir:/media/a \"b\"\n", When: when, Every: 60e9, Linger: 30e9, MaxBytes: 1e6, MaxPacket: 5e5, Overdue: Duration(day), Reaches: []string{"hub"}}},
		Routes: []Route{{To: []string{"*.inn.example"}, From: []string{"<>"}, Node: "inn", Path: []string{"hub"}, MaxSize: 1 << 20, Lifetime: Duration(week), Keep: "hop", Summary: 64 << 10, SumSigned: "hold", SumAsk: "node"},
			{To: []string{"down.inn.example"}, Node: "inn", Keep: "end", OneWay: true, Repeat: 7}},
		Delivers: []Deliver{{To: []string{"y"}, From: []string{"z"}, Via: "lmtp:/x", MaxSize: 1e3}},
	}
	if err := WritePeer(h, f); err != nil {
		t.Fatal(err)
	}
	got, err := ReadPeer(h, "inn")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, f) {
		t.Errorf("read back\n%+v\nwrote\n%+v", got, f)
	}
	if st, err := os.Stat(filepath.Join(h.PeersDir, "inn.toml")); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode of the peer's file: %v, %v", st, err)
	}
	if err := RemovePeer(h, "inn"); err != nil {
		t.Error(err)
	}
	if err := RemovePeer(h, "inn"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("second RemovePeer: %v", err)
	}
	if _, err := ReadPeer(h, "inn"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadPeer of a removed peer: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", "Hub", ".x", "a\x00"} {
		if WritePeer(h, PeerFile{Peer: Peer{Node: name, Card: "x"}}) == nil || RemovePeer(h, name) == nil {
			t.Errorf("the name %q was taken", name)
		}
		if _, err := ReadPeer(h, name); err == nil {
			t.Errorf("ReadPeer takes the name %q", name)
		}
	}
}

func TestFindHome(t *testing.T) {
	dir := t.TempDir()
	here := func(string) (fs.FileInfo, error) { return os.Stat(dir) }
	gone := func(string) (fs.FileInfo, error) { return nil, fs.ErrNotExist }
	env := func(vars map[string]string) func(string) string { return func(k string) string { return vars[k] } }
	tests := []struct {
		name, flag string
		env        map[string]string
		uid        int
		stat       func(string) (fs.FileInfo, error)
		want       string
	}{
		{"flag first", "/a", map[string]string{"MOCHILA_HOME": "/b", "HOME": "/c"}, 0, here, "/a"},
		{"then environment", "", map[string]string{"MOCHILA_HOME": "/b", "HOME": "/c"}, 0, here, "/b"},
		{"root has the machine's", "", map[string]string{"HOME": "/root"}, 0, gone, "/etc/mochila"},
		{"user with /etc/mochila", "", map[string]string{"HOME": "/c"}, 1000, here, "/etc/mochila"},
		{"user without", "", map[string]string{"HOME": "/c"}, 1000, gone, "/c/.mochila"},
		{"nothing known", "", nil, 1000, gone, ""},
	}
	for _, tt := range tests {
		h, err := findHome(tt.flag, env(tt.env), tt.uid, tt.stat)
		if h.ConfigDir != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v; want %q", tt.name, h.ConfigDir, err, tt.want)
		}
	}
	h, err := FindHome(dir, os.Getenv)
	if err != nil || h.ControlSocket() != dir+"/run/control.sock" || h.SubmitSocket() != dir+"/run/submit.sock" || h.MaildropDir != dir+"/spool/maildrop" || h.System {
		t.Errorf("HomeAt(%q) = %+v, %v", dir, h, err)
	}
}

func TestNearest(t *testing.T) {
	for in, want := range map[string]string{"lisen": "listen", "LISTEN": "listen", "naem": "name", "relayfrom": "relay_from", "zzz": "", "": "", "n": ""} {
		if got := nearest(in, []string{"listen", "name", "relay_from"}); got != want {
			t.Errorf("nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzLoad: whatever is in the file, Load either explains or returns a Config that names its own defaults.
func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"good", "bad", "warn"} {
		files, _ := filepath.Glob("testdata/" + dir + "/*.toml")
		for _, name := range files {
			doc, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(doc)
		}
	}
	h, err := HomeAt(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if err := os.WriteFile(h.Config(), doc, 0o644); err != nil {
			t.Fatal(err)
		}
		c, _, err := Load(h)
		var ps Problems
		switch {
		case err == nil:
			if c.Name == "" || c.Domain == "" || c.Limits.Lifetime <= 0 || c.SMTP.MaxSize <= 0 {
				t.Fatalf("incomplete: %+v", c)
			}
		case !errors.As(err, &ps) || len(ps) == 0 || ps[0].Msg == "":
			t.Fatalf("unexplained: %v", err)
		}
	})
}
