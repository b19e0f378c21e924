package control

import (
	"strings"
	"testing"

	"mochila/transport/all"
)

// TestCarrierAdvice: there is something to look at for every carrier, and for what ssh says about keys.
func TestCarrierAdvice(t *testing.T) {
	for scheme := range byScheme {
		if carrierAdvice(scheme+":x", "it does not work") == "" {
			t.Errorf("%s: no advice", scheme)
		}
	}
	for _, s := range all.Schemes() {
		if byScheme[s.Name] == "" {
			t.Errorf("the carrier %q has no advice", s.Name)
		}
	}
	for _, c := range []struct{ url, trouble, want string }{
		{"ssh:hub", "ssh: Host key verification failed. (exit status 255)", "ssh-keygen -R"},
		{"sftp:hub/x", "camp@hub: Permission denied (publickey).", "authorized_keys"},
		{"ssh:hub", "ssh: bash: line 1: mochila: command not found (exit status 127)", "PATH there"},
		{"tcp:hub", "dial tcp: lookup hub: no such host", "resolver"},
		{"serial:/dev/ttyS0", "open /dev/ttyS0: permission denied", "dialout"},
		{"unknown:x", "it does not work", ""},
	} {
		if got := carrierAdvice(c.url, c.trouble); !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s, %s: %q, want %q", c.url, c.trouble, got, c.want)
		}
	}
}
