package control

import (
	"reflect"
	"testing"

	"mochila/internal/config"
)

// TestService reads the names of Postfix's services and next hops.
func TestService(t *testing.T) {
	for _, c := range []struct{ in, port, want string }{
		{"smtp", "", ":25"}, {"10026", "", ":10026"}, {"127.0.0.1:10026", "", "127.0.0.1:10026"}, {"[::1]:smtp", "", "[::1]:25"},
		{"[127.0.0.1]:2525", "smtp", "127.0.0.1:2525"}, {"[mx.example]", "smtp", "mx.example:25"}, {"mx.example", "smtp", "mx.example:25"},
		{"localhost:2525", "smtp", "localhost:2525"},
	} {
		if got := service(c.in, c.port); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestMainWords(t *testing.T) {
	got := mainWords("a.example, b.example  hash:/etc/x,inline:{ { k = v w }, j=v }\tcidr:/y")
	want := []string{"a.example", "b.example", "hash:/etc/x", "inline:{ { k = v w }, j=v }", "cidr:/y"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestComesHere: a next hop of Postfix is this node, by address, by name, or by a socket below Postfix's queue directory.
func TestComesHere(t *testing.T) {
	pf := &postfix{is: map[string]string{"queue_directory": "/var/spool/postfix"}, ports: []string{":25", "127.0.0.1:10026"}}
	listen := []config.Listen{{Network: "tcp", Addr: "127.0.0.1:2525"}, {Network: "unix", Addr: "/var/spool/postfix/mochila/lmtp.sock"}}
	for hop, want := range map[string]bool{
		"[127.0.0.1]:2525": true, "localhost:2525": true, "inet:127.0.0.1:2525": true, "unix:mochila/lmtp.sock": true,
		"unix:/var/spool/postfix/mochila/lmtp.sock": true, "[127.0.0.1]:2526": false, "[192.0.2.1]:2525": false, "mx.example": false, "unix:private/lmtp": false,
	} {
		if got := pf.here(hop, listen); got != want {
			t.Errorf("next hop %s: %v", hop, got)
		}
	}
	for via, want := range map[string]bool{"smtp:127.0.0.1:10026": true, "smtp:localhost:25": true, "smtp:192.0.2.1:10026": false, "lmtp:127.0.0.1:10026": false, "maildir:/x": false} {
		if got := pf.owns(via); got != want {
			t.Errorf("via %s: %v", via, got)
		}
	}
}
