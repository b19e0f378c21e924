package transport_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/transport"
	"mochila/transport/transporttest"
)

// TestUUCPConforms: a program that keeps packets in a folder stands for uux.
func TestUUCPConforms(t *testing.T) {
	transporttest.TestSubmitter(t, func(t *testing.T) (transport.Submitter, func() [][]byte) {
		dir := t.TempDir()
		return transport.NewUUCP("hub", transport.UUCPOptions{Spool: dir, Program: fakeSendmail(t, dir, inside)}), func() [][]byte { return files(dir) }
	})
}

func TestUUCPCommandLine(t *testing.T) {
	dir := t.TempDir()
	echo := fakeSendmail(t, dir, `cat >/dev/null; printf '%%s\n' "$*" >%s/args; : %s`)
	conf := filepath.Join(dir, "config")
	if err := os.WriteFile(conf, []byte("# comment\nspool "+dir+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o     transport.UUCPOptions
		class uint8
		want  string
	}{
		{transport.UUCPOptions{}, 9, "-r -n -g N - hub!rmochila"},
		{transport.UUCPOptions{Command: "x", Call: true}, 0, "-n -g E - hub!x"},
		{transport.UUCPOptions{Config: conf}, 255, "-I " + conf + " -r -n -g W - hub!rmochila"},
	} {
		c.o.Program = echo
		if err := transport.NewUUCP("hub", c.o).Submit(t.Context(), transporttest.Packet(c.class, []byte("x"))); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "args")); strings.TrimSpace(string(got)) != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	p := transporttest.Packet(9, []byte("x"))
	p.Size = 1 << 60
	if err := transport.NewUUCP("hub", transport.UUCPOptions{Config: conf, Program: "/nonexistent"}).Submit(t.Context(), p); !errors.Is(err, transport.ErrFull) {
		t.Errorf("a full spool: %v", err)
	}
	for url, want := range map[string]string{
		"uucp:hub": "", "uucp:hub?call=now&config=/c&spool=/s&command=rm": "", "uucp:": "not the name", "uucp:a!b": "not the name",
		"uucp:hub?call=yes": "not known", "uucp:hub?config=c": "absolute", "uucp:hub?command=a;b": "command",
	} {
		_, err := transport.Parse(transport.Schemes(), url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "options") {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
