package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"mochila/internal/control"
	"mochila/internal/peertest"
)

// TestMailqBesidePostfix gives a Postfix and a node the same mails in the same trouble, and compares what mailq and the
// JSON say of them: the words and columns are the same, but for the length of the queue id and the words of a reason.
func TestMailqBesidePostfix(t *testing.T) {
	t.Parallel()
	dead, silent := deadEnd(t), silentEnd(t)
	p := peertest.StartPostfix(t, peertest.Options{Hostname: "camp.test", Main: map[string]string{"enable_long_queue_ids": "yes", "default_transport": "smtp"},
		Transports: map[string]string{"dead.example": "smtp:[127.0.0.1]:" + port(dead), "silent.example": "smtp:[127.0.0.1]:" + port(silent)}})
	smtp := peertest.FreePort(t)
	n := newNode(t, "camp", fmt.Sprintf("domain = \"camp.test\"\n[smtp]\nlisten = [%q]\n[[deliver]]\nto = [\"dead.example\"]\nvia = \"smtp:%s\"\n[[deliver]]\nto = [\"silent.example\"]\nvia = \"smtp:%s\"\n[limits]\nretry_min = \"1h\"\n", smtp, dead, silent))
	n.start()
	ours := func() string { return n.run(0, "mailq") }
	if got, want := ours(), p.Queue(); got != want || !strings.Contains(got, "Mail queue is empty") {
		t.Errorf("empty: %q, Postfix %q", got, want)
	}
	for _, m := range [][]string{
		{"<ana@camp.test>", "<bob@dead.example>"},
		{"<eve@camp.test>", "<bob@dead.example>", "<carl@dead.example>"},
		{"<>", "<bob@dead.example>"},
		{"<\"odd sender\"@camp.test>", "<\"odd bob\"@dead.example>"},
		{"<held@camp.test>", "<bob@dead.example>"},
		{"<now@camp.test>", "<bob@silent.example>"},
	} {
		for _, addr := range []string{p.Addr, smtp} {
			if err := send(addr, "Subject: x\r\n\r\n"+strings.Repeat("some text\r\n", 400), m[0], m[1:]...); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Both have tried, and try the last one now.
	now := regexp.MustCompile(`(?m)^\w+\* .* now@camp\.test$`)
	settled := func(out string) bool {
		return strings.Count(out, " refused") == 5 && strings.Count(out, "* ") == 1 && now.MatchString(out)
	}
	peertest.Await(t, "Postfix's queue to settle", func() bool { return settled(p.Queue()) }, p.Log, p.Queue)
	peertest.Await(t, "our queue to settle", func() bool { return settled(ours()) }, n.log.String, ours)
	held := regexp.MustCompile(`(?m)^(\w+) .* held@camp\.test$`)
	if _, err := p.Run("postsuper", "-h", held.FindStringSubmatch(p.Queue())[1]); err != nil {
		t.Fatal(err)
	}
	n.run(0, "queue", "hold", "--from", "held@*")

	// A place that rests is tried again whenever an operator does something: for that moment its mail is active.
	same := func(what string, theirs, mine func() []string) {
		t.Helper()
		both := func() string {
			return "Postfix:\n" + strings.Join(theirs(), "\n") + "\nmochila:\n" + strings.Join(mine(), "\n")
		}
		peertest.Await(t, what+" to be the same", func() bool { return slices.Equal(theirs(), mine()) }, both)
	}
	same("mailq", func() []string { return readMailq(t, p.Queue(), 17) }, func() []string { return readMailq(t, ours(), 27) })
	for _, args := range [][]string{{"mailq", "--json"}, {"queue", "list", "--json"}} {
		same(strings.Join(args, " "), func() []string {
			out, err := p.Run("postqueue", "-j")
			if err != nil {
				t.Fatal(err)
			}
			return readQueueJSON(t, out)
		}, func() []string { return readQueueJSON(t, n.run(0, args...)) })
	}
}

// silentEnd is an address where connections are taken and nothing is said.
func silentEnd(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		var open []net.Conn
		for {
			c, err := ln.Accept()
			if err != nil {
				for _, c := range open {
					c.Close()
				}
				return
			}
			open = append(open, c)
		}
	}()
	return ln.Addr().String()
}

// readMailq reads what mailq prints, column by column, and sorts the entries. id is the width of the first column. Sizes
// are of one magnitude, reasons are only whether there is one, and where its end is.
func readMailq(t *testing.T, out string, id int) (list []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	head := regexp.MustCompile(`^-+Queue ID-+ --Size-- ---Arrival Time---- --Sender/Recipient------$`)
	if !head.MatchString(lines[0]) || strings.Index(lines[0], " --Size") != id {
		t.Fatalf("the heading is %q", lines[0])
	}
	foot := regexp.MustCompile(`^-- (\d+) Kbytes in (\d+) Requests\.$`).FindStringSubmatch(lines[len(lines)-1])
	if foot == nil {
		t.Fatalf("the end is %q", lines[len(lines)-1])
	}
	first := regexp.MustCompile(`^(\w+)([*!]?) *$`)
	when := regexp.MustCompile(`^[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d $`)
	at := id + 1 + 8 + 1 + 19 + 1
	total := 0
	for _, e := range strings.Split(strings.TrimSpace(strings.Join(lines[1:len(lines)-1], "\n")), "\n\n") {
		rows := strings.Split(e, "\n")
		if len(rows[0]) <= at {
			t.Fatalf("an entry begins %q", rows[0])
		}
		m := first.FindStringSubmatch(rows[0][:id])
		size, err := strconv.Atoi(strings.TrimLeft(rows[0][id+1:id+9], " "))
		if m == nil || err != nil || rows[0][id] != ' ' || rows[0][id+9] != ' ' || !when.MatchString(rows[0][id+10:at]) {
			t.Fatalf("an entry begins %q", rows[0])
		}
		if size < 4000 || size > 6000 {
			t.Errorf("size %d", size)
		}
		total += size
		words := []string{rows[0][at:], m[2]}
		var to []string
		for _, r := range rows[1:] {
			text := strings.TrimLeft(r, " ")
			switch {
			case strings.HasPrefix(text, "(") && strings.HasSuffix(text, ")"):
				if len(text) <= 78 && len(r) != 78 {
					t.Errorf("a reason ends in column %d: %q", len(r), r)
				}
				words = append(words, "reason")
			case len(r)-len(text) == at:
				to = append(to, text)
			default:
				t.Errorf("a recipient in column %d, want %d: %q", len(r)-len(text), at, r)
			}
		}
		slices.Sort(to)
		list = append(list, strings.Join(append(words, to...), " "))
	}
	slices.Sort(list)
	if foot[1] != fmt.Sprint(total/1024) || foot[2] != fmt.Sprint(len(list)) {
		t.Errorf("%q, want %d Kbytes in %d Requests", foot[0], total/1024, len(list))
	}
	return list
}

// readQueueJSON reads the lines of postqueue -j: the keys that Postfix has in their order, with what is in them but for
// ids, times, sizes and the words of a reason.
func readQueueJSON(t *testing.T, out string) (list []string) {
	t.Helper()
	type recipient struct {
		Address string  `json:"address"`
		Reason  *string `json:"delay_reason"`
	}
	type item struct {
		Queue      string      `json:"queue_name"`
		ID         string      `json:"queue_id"`
		Arrival    int64       `json:"arrival_time"`
		Size       int64       `json:"message_size"`
		Forced     *bool       `json:"forced_expire"`
		Sender     string      `json:"sender"`
		Recipients []recipient `json:"recipients"`
	}
	d := json.NewDecoder(strings.NewReader(out))
	for {
		var raw json.RawMessage
		if err := d.Decode(&raw); err == io.EOF {
			slices.Sort(list)
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		var it item
		if err := json.Unmarshal(raw, &it); err != nil {
			t.Fatal(err)
		}
		if it.ID == "" || it.Arrival == 0 || it.Size < 4000 || it.Forced == nil {
			t.Errorf("%s", raw)
		}
		last := -1
		for i := range reflect.TypeFor[item]().NumField() {
			key := reflect.TypeFor[item]().Field(i).Tag.Get("json")
			pos := strings.Index(string(raw), `"`+key+`":`)
			if pos < last {
				t.Errorf("%s is not where Postfix has it: %s", key, raw)
			}
			last = pos
		}
		line := fmt.Sprintf("%s %s forced=%v", it.Sender, it.Queue, *it.Forced)
		var to []string
		for _, r := range it.Recipients {
			to = append(to, fmt.Sprintf("%s reason=%v", r.Address, r.Reason != nil && *r.Reason != ""))
		}
		slices.Sort(to)
		list = append(list, line+" "+strings.Join(to, " "))
	}
}

// TestMailqShowsOwn: each user sees the own mail in the queue and nobody else's, nor what came over the network or was
// written by an account; root sees all of it.
func TestMailqShowsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to be several users: run the tests as root")
	}
	t.Parallel()
	smtp := peertest.FreePort(t)
	n := newNode(t, "camp", fmt.Sprintf("domain = \"camp.test\"\n[smtp]\nlisten = [%q]\nauth_without_tls = true\n[[deliver]]\nto = [\"*\"]\nvia = \"smtp:%s\"\n", smtp, deadEnd(t)))
	n.start()
	for _, d := range []string{n.dir, n.dir + "/run", n.dir + "/spool"} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	n.post("/v1/users", control.User{Name: "nobody", Password: "open sesame"}, nil) // the name of a local user, too
	as := func(uid uint32, stdin string, args ...string) (string, error) {
		cmd := exec.Command(program("sendmail"), args...)
		cmd.Env = []string{"MOCHILA_HOME=" + n.dir}
		cmd.Stdin = strings.NewReader(stdin)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	const one, two = 65534, 65533
	for uid, to := range map[uint32]string{one: "of-one", two: "of-two", 0: "of-root"} {
		// the sender's name in the envelope proves nothing
		if out, err := as(uid, "Subject: x\n\nhello\n", "-f", "same@camp.test", to+"@far.example"); err != nil {
			t.Fatalf("user %d: %v: %s", uid, err, out)
		}
	}
	if err := send(smtp, "Subject: x\r\n\r\nhello\r\n", "<same@camp.test>", "<of-net@far.example>"); err != nil {
		t.Fatal(err)
	}
	w, err := dial(smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.want(t, "EHLO c", "250")
	w.want(t, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00nobody\x00open sesame")), "235")
	if err := w.envelope("<same@camp.test>", "<of-account@far.example>"); err != nil {
		t.Fatal(err)
	}
	if err := w.content("Subject: x\r\n\r\nhello\r\n"); err != nil {
		t.Fatal(err)
	}
	all := []string{"of-one", "of-two", "of-root", "of-net", "of-account"}
	for uid, want := range map[uint32][]string{one: {"of-one"}, two: {"of-two"}, 1: nil, 0: all} {
		for _, args := range [][]string{{"-bp"}, {"-bp", "-v"}} {
			out, err := as(uid, "", args...)
			if err != nil {
				t.Errorf("user %d: %q: %v: %s", uid, args, err, out)
			}
			for _, to := range all {
				if strings.Contains(out, to+"@") != slices.Contains(want, to) {
					t.Errorf("user %d should see %q:\n%s", uid, want, out)
				}
			}
			end := fmt.Sprintf("-- 0 Kbytes in %d Request", len(want))
			if len(want) == 0 {
				end = "Mail queue is empty"
			} else if len(want) > 1 {
				end = fmt.Sprintf("in %d Requests.", len(want))
			}
			if !strings.Contains(out, end) {
				t.Errorf("user %d: no %q in\n%s", uid, end, out)
			}
		}
	}
}
