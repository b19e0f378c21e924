package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// deadEnd is an address at which nobody listens.
func deadEnd(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestQueueTools: an operator finds envelopes by what is known of them, sees what would happen, and then does it.
func TestQueueTools(t *testing.T) {
	t.Parallel()
	mail := t.TempDir()
	n := newNode(t, "camp", fmt.Sprintf("domain = \"camp.example\"\n[[deliver]]\nto = [\"camp.example\"]\nvia = %q\n[[deliver]]\nto = [\"*\"]\nvia = %q\n",
		"maildir:"+mail+"/%u", "smtp:"+deadEnd(t)))
	n.start()
	for _, m := range [][2]string{{"ana", "bob@hub.example"}, {"ana", "carl@far.example"}, {"eve", "bob@hub.example"}, {"eve", "dora@far.example"}} {
		n.submit("Subject: x\n\nhello\n", "-f", m[0]+"@camp.example", m[1])
	}
	find := func(args ...string) []control.QueueItem {
		t.Helper()
		var items []control.QueueItem
		d := json.NewDecoder(strings.NewReader(n.run(0, append([]string{"--json", "queue", "list"}, args...)...)))
		for {
			var it control.QueueItem
			if err := d.Decode(&it); err == io.EOF {
				return items
			} else if err != nil {
				t.Fatal(err)
			}
			items = append(items, it)
		}
	}
	if got := len(find("--from", "ana@*")); got != 2 {
		t.Fatalf("ana has %d mails", got)
	}
	if got := find("--from", "eve@*", "--to", "*@far.example", "--newer", "1h", "--smaller", "10k"); len(got) != 1 || got[0].Recipients[0].Address != "dora@far.example" {
		t.Errorf("found %+v", got)
	}
	if got := find("--older", "1h"); len(got) != 0 {
		t.Errorf("%d mails are older than this test", len(got))
	}

	out := n.run(0, "queue", "hold", "--to", "*@FAR.example", "--dry-run")
	if !strings.Contains(out, "2 envelopes would be held") || len(find("--state", "held")) != 0 {
		t.Errorf("a dry run did %q", out)
	}
	n.run(0, "queue", "hold", "--to", "*@far.example")
	if got := find("--state", "held"); len(got) != 2 || got[0].QueueName != "hold" {
		t.Errorf("held are %+v", got)
	}
	n.run(0, "queue", "release", "--state", "held", "--from", "ana@*")
	if got := find("--state", "held"); len(got) != 1 || got[0].Sender != "eve@camp.example" {
		t.Errorf("still held are %+v", got)
	}
	n.run(0, "queue", "priority", "--level", "7", "--from", "eve@*", "--to", "bob@*")
	if got := find("--from", "eve@*", "--to", "bob@*"); len(got) != 1 || got[0].Priority != 7 {
		t.Errorf("moved to %+v", got)
	}
	n.run(64, "queue", "priority", "--level", "10", "ALL")

	// another way: held mail stays held, what goes there already is not counted, and no program is started so
	n.run(64, "queue", "reroute", "ALL", "--via", "pipe:/bin/true")
	if out := n.run(0, "queue", "reroute", "--from", "eve@*", "--via", "maildir:"+mail+"/%u"); !strings.HasPrefix(out, "2 envelopes") {
		t.Errorf("routed again: %q", out)
	}
	peertest.Await(t, "bob's mail", func() bool { return len(find("--from", "eve@*")) == 1 }, n.log.String)
	if got, _ := filepath.Glob(mail + "/bob/new/*"); len(got) != 1 {
		t.Errorf("delivered by the other way: %q", got)
	}
	if got := find("--from", "eve@*"); got[0].Legs[0].State != "held" || !strings.HasPrefix(got[0].Legs[0].Dest, "maildir:") {
		t.Errorf("held mail went %+v", got[0].Legs)
	}
	if out := n.run(0, "queue", "reroute", "--from", "eve@*"); !strings.HasPrefix(out, "1 envelope ") {
		t.Errorf("back by the rules: %q", out)
	}
	if out := n.run(0, "queue", "reroute", "ALL"); !strings.HasPrefix(out, "0 envelopes") {
		t.Errorf("all are where they belong: %q", out)
	}

	shape := n.run(0, "qshape", "--by", "domain")
	if lines := strings.Split(strings.TrimSpace(shape), "\n"); len(lines) != 4 || strings.Join(strings.Fields(lines[0]), " ") != "T 5 10 20 40 80 160 320 640 1280 1280+" ||
		!strings.HasPrefix(strings.Join(strings.Fields(lines[1]), " "), "TOTAL 3 3 0") || !strings.HasPrefix(strings.Join(strings.Fields(lines[2]), " "), "far.example 2 2 0") {
		t.Errorf("qshape:\n%s", shape)
	}

	n.run(0, "queue", "bounce", "--from", "ana@*", "--to", "carl@*", "--reason", "this was not wanted")
	peertest.Await(t, "ana's notice", func() bool { got, _ := filepath.Glob(mail + "/ana/new/*"); return len(got) == 1 }, n.log.String)
	notice, _ := filepath.Glob(mail + "/ana/new/*")
	if text, err := os.ReadFile(notice[0]); err != nil || !strings.Contains(string(text), "this was not wanted") || !strings.Contains(string(text), "carl@far.example") {
		t.Errorf("the notice says %s, %v", text, err)
	}
	n.run(64, "queue", "expire")
	n.run(64, "queue", "expire", "ALL", "--from", "*")
	n.run(0, "queue", "remove", "--match", "example")
	if got := len(find()); got != 0 {
		t.Errorf("%d envelopes are left", got)
	}
}

// sample is a line of Prometheus's text format.
var sample = regexp.MustCompile(`^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)$`)

// readMetrics parses the text format strictly: every sample has a type, every type a help, names are ours.
func readMetrics(t *testing.T, text string) map[string]float64 {
	t.Helper()
	values, types, helps := map[string]float64{}, map[string]string{}, map[string]bool{}
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if f := strings.SplitN(line, " ", 4); f[0] == "#" {
			switch {
			case len(f) == 4 && f[1] == "HELP" && !helps[f[2]]:
				helps[f[2]] = true
			case len(f) == 4 && f[1] == "TYPE" && helps[f[2]] && types[f[2]] == "":
				types[f[2]] = f[3]
			default:
				t.Errorf("metrics: %q", line)
			}
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("metrics: %q is no sample", line)
			continue
		}
		family := m[1]
		for _, s := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(family, s); ok && types[base] == "histogram" {
				family = base
			}
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil || types[family] == "" || !strings.HasPrefix(family, "mochila_") {
			t.Errorf("metrics: %q: %v, type %q", line, err, types[family])
		}
		key := m[1]
		if m[2] != "" {
			key += "{" + strings.TrimSuffix(m[2], ",") + "}"
		}
		if _, twice := values[key]; twice {
			t.Errorf("metrics: %s is there twice", key)
		}
		values[key] = v
	}
	return values
}

// TestMetrics: the numbers follow what happens, on both sockets, and the alerts of contrib speak of numbers that exist.
func TestMetrics(t *testing.T) {
	t.Parallel()
	listen, mail, dead := peertest.FreePort(t), t.TempDir(), deadEnd(t)
	n := newNode(t, "camp", fmt.Sprintf("domain = \"camp.example\"\n[metrics]\nlisten = [%q]\n[[deliver]]\nto = [\"camp.example\"]\nvia = %q\n[[deliver]]\nto = [\"far.example\"]\nvia = %q\n",
		listen, "maildir:"+mail+"/a \"quoted\" \\ place/%u", "smtp:"+dead))
	hub := newNode(t, "hub", "")
	n.knows(hub, control.PeerAdd{When: "on-call"})
	n.start()
	n.submit("Subject: x\n\nhello\n", "-f", "ana@camp.example", "ana@camp.example")
	n.submit("Subject: x\n\nhello\n", "-f", "ana@camp.example", "bob@far.example", "carl@far.example")
	n.submit("Subject: x\n\nhello\n", "-f", "ana@camp.example", "eve@hub.mochila")
	read := func() map[string]float64 {
		t.Helper()
		r, err := http.Get("http://" + listen + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != 200 || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Fatalf("%s %q, %v", r.Status, r.Header, err)
		}
		return readMetrics(t, string(b))
	}
	peertest.Await(t, "the first results", func() bool {
		m := read()
		return m[`mochila_recipients_tried_total{result="sent"}`] == 1 && m[`mochila_recipients_tried_total{result="deferred"}`] > 0
	}, n.log.String)
	m := read()
	for key, want := range map[string]float64{
		"mochila_mails_entered_total":                                           3,
		"mochila_recipients_entered_total":                                      4,
		`mochila_queue_envelopes{dest="smtp:` + dead + `",state="due"}`:         1,
		`mochila_queue_envelopes{dest="hub",state="due"}`:                       1,
		`mochila_receipt_lag_seconds{dest="hub"}`:                               0,
		"mochila_delivery_delay_seconds_count":                                  1,
		`mochila_delivery_delay_seconds_bucket{le="+Inf"}`:                      1,
		"mochila_spool_full":                                                    0,
		`mochila_contact_last_success_timestamp_seconds{node="hub",carrier=""}`: 0,
		`mochila_info{node="camp",version="` + versionOf(t, n) + `"}`:           1,
	} {
		if got, ok := m[key]; !ok || got != want {
			t.Errorf("%s = %v (%v), want %v", key, got, ok, want)
		}
	}
	if m[`mochila_queue_oldest_seconds{dest="hub"}`] <= 0 || m[`mochila_queue_bytes{dest="hub"}`] <= 0 {
		t.Errorf("the queue to hub: %v s, %v bytes", m[`mochila_queue_oldest_seconds{dest="hub"}`], m[`mochila_queue_bytes{dest="hub"}`])
	}
	if r, err := http.Get("http://" + listen + "/v1/status"); err != nil || r.StatusCode != http.StatusNotFound {
		t.Errorf("the listener for monitoring gives more than numbers: %v, %v", r, err)
	}
	c := n.client()
	defer c.Close()
	var same strings.Builder
	if err := c.Raw(t.Context(), "/metrics", &same); err != nil {
		t.Fatal(err)
	}
	known := readMetrics(t, same.String())
	for key := range m {
		if _, ok := known[key]; !ok {
			t.Errorf("the control socket does not have %s", key)
		}
	}
	rules, err := os.ReadFile("../../contrib/prometheus/mochila.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for key := range m {
		name, _, _ := strings.Cut(key, "{")
		names[name] = true
	}
	used := regexp.MustCompile(`mochila_[a-z_]+`).FindAllString(string(rules), -1)
	for _, name := range used {
		if !names[name] {
			t.Errorf("the alerts speak of %s, which does not exist", name)
		}
	}
	if len(used) < 10 {
		t.Errorf("the alerts speak of %d numbers", len(used))
	}
	if promtool, err := exec.LookPath("promtool"); err == nil {
		if out, err := exec.Command(promtool, "check", "rules", "../../contrib/prometheus/mochila.rules.yml").CombinedOutput(); err != nil {
			t.Errorf("promtool: %v: %s", err, out)
		}
	}
}

func versionOf(t *testing.T, n *node) string {
	t.Helper()
	var s control.Status
	n.get("/v1/status", &s)
	return s.Version
}

// TestLogTools: pflogsumm, logwatch and fail2ban of Debian read the daemon's log, once they know its name.
func TestLogTools(t *testing.T) {
	t.Parallel()
	const logwatch = "/usr/share/logwatch/scripts/services/postfix"
	smtp, mail := peertest.FreePort(t), t.TempDir()
	n := newNode(t, "camp", fmt.Sprintf("domain = \"camp.example\"\n[smtp]\nlisten = [%q]\nrelay_from = [\"192.0.2.0/24\"]\nopen_to = [\"camp.example\"]\n[[deliver]]\nto = [\"camp.example\"]\nvia = %q\n[[deliver]]\nto = [\"*\"]\nvia = %q\n",
		smtp, "maildir:"+mail+"/%u", "smtp:"+deadEnd(t)))
	n.start()
	n.submit("Subject: x\n\nhello\n", "-f", "ana@camp.example", "ana@camp.example")
	n.submit("Subject: x\n\nhello\n", "-f", "ana@camp.example", "bob@far.example")
	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, s := range [][2]string{{"EHLO evil.test", "250"}, {"MAIL FROM:<x@evil.test>", "250"}, {"RCPT TO:<victim@far.example>", "550"}, {"RCPT TO:<ana@camp.example>", "250"}} {
		if err := w.say(s[0], s[1]); err != nil {
			t.Fatal(err)
		}
	}
	w.want(t, "DATA", "354")
	if err := w.content("Subject: y\r\n\r\nfrom outside\r\n"); err != nil {
		t.Fatal(err)
	}
	w.want(t, "QUIT", "221")
	peertest.Await(t, "all that was to happen", func() bool {
		l := n.log.String()
		return strings.Count(l, "status=sent") == 2 && strings.Contains(l, "status=deferred") && strings.Contains(l, "disconnect from")
	}, n.log.String)
	log := n.log.String()
	renamed := strings.ReplaceAll(log, " mochila/", " postfix/") // what --log-name postfix writes: see TestLogName in cmd/mochila
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// each tool's output must have these
	for _, tool := range []struct {
		name, needs string
		argv        func(log string) []string
		own         []string // arguments that tell it the name
		want        []string
	}{
		{"pflogsumm", "pflogsumm", func(log string) []string { return []string{"pflogsumm", log} }, []string{"--syslog_name=mochila"},
			[]string{`(?m)^ +3 +received`, `(?m)^ +2 +delivered`, `(?m)^ +1 +deferred`, `(?m)^ +1 +rejected`, `Relay access denied`, `far\.example`}},
		{"logwatch", logwatch, func(log string) []string {
			return []string{"perl", logwatch, "-f", "/usr/share/logwatch/default.conf/services/postfix.conf", log}
		}, []string{"--syslog_name", logwatchName(t)},
			[]string{`3 +Accepted`, `1 +Rejected`, `2 +(Sent via|Delivered)`, `1 +Deferred`, `(?i)reject relay|relay access denied`}},
		{"fail2ban", "fail2ban-regex", func(log string) []string {
			return []string{"fail2ban-regex", log, "/etc/fail2ban/filter.d/postfix.conf"}
		}, nil, []string{`[1-9]\d* matched`}},
	} {
		if _, err := exec.LookPath(tool.needs); err != nil {
			if _, err := os.Stat(tool.needs); err != nil {
				t.Logf("SKIPPED: %s is not installed: run .ci/peers", tool.name)
				continue
			}
		}
		check := func(how string, argv []string) {
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = append(os.Environ(), "LOGWATCH_DETAIL_LEVEL=10", "LC_ALL=C")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%s (%s): %v: %s", tool.name, how, err, out)
				return
			}
			for _, want := range tool.want {
				if !regexp.MustCompile(want).Match(out) {
					t.Errorf("%s (%s) does not say %q:\n%s", tool.name, how, want, tail(string(out)))
				}
			}
		}
		check("as postfix", tool.argv(file(renamed)))
		if tool.name == "fail2ban" {
			check("as mochila", []string{"fail2ban-regex", file(log), fail2banFilter(t)})
			continue
		}
		argv := tool.argv(file(log))
		last := len(argv) - 1
		check("as mochila", append(append(argv[:last:last], tool.own...), argv[last]))
	}
	if len(log) == len(renamed) && !strings.Contains(log, " mochila/smtpd[") {
		t.Error("the log does not name its program")
	}
}

// logwatchName is the name that contrib's configuration gives to logwatch.
func logwatchName(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../contrib/logs/logwatch.conf")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\$postfix_Syslog_Name = "(.*)"$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("contrib/logs/logwatch.conf has no name")
	}
	return string(m[1])
}

// fail2banFilter is Debian's filter with contrib's addition, as fail2ban merges .conf and .local.
func fail2banFilter(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for from, to := range map[string]string{
		"/etc/fail2ban/filter.d/postfix.conf": "postfix.conf", "/etc/fail2ban/filter.d/common.conf": "common.conf",
		"../../contrib/logs/fail2ban.local": "postfix.local",
	} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "postfix.conf")
}
