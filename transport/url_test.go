package transport_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"mochila/transport"
)

func TestParseURL(t *testing.T) {
	for url, want := range map[string]string{ // "" is success
		"dir:/media/usb":                       "",
		"dir:/media/my stick":                  "",
		"dir:/media/usb?mount=require":         "",
		"dir:/media/usb/deep?mount=/media/usb": "",
		"tcp:hub.example:2424":                 "",
		"tcp:hub.example":                      "",
		"tcp:[2001:db8::1]:99?timeout=5s":      "",
		"tcp:10.0.0.1:2424":                    "",
		"":                                     "name of a carrier",
		"/media/usb":                           "name of a carrier",
		"dir":                                  "name of a carrier",
		"dir:":                                 "not absolute",
		"dir:media/usb":                        "not absolute",
		"dir:~/Sync":                           "~ means nothing",
		"dir:///media/usb":                     "no //",
		"dir:/x?mont=require":                  "unknown option",
		"dir:/x?mount=maybe":                   "neither",
		"dir:/x?mount=require&mount=require":   "twice",
		"DIR:/x":                               "no carrier",
		"Tcp:x":                                "no carrier",
		"smb:/x":                               "no carrier",
		"tcp://hub:2424":                       "no //",
		"tcp:":                                 "HOST:PORT",
		"tcp::2424":                            "HOST:PORT",
		"tcp:hub:":                             "HOST:PORT",
		"tcp:hub:port-of-call":                 "not a port",
		"tcp:hub:99999":                        "not a port",
		"tcp:user@hub:1":                       "HOST:PORT",
		"tcp:2001:db8::1":                      "HOST:PORT",
		"tcp:hub:1?timeout=soon":               "not a duration",
		"tcp:hub:1?timeout=-1s":                "not a duration",
	} {
		c, err := transport.Parse(transport.Schemes(), url)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", url, err)
		case want == "" && (c.URL != url || (c.Folder == nil) == (c.Dialer == nil)):
			t.Errorf("%q: %+v", url, c)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: got %v, want an error with %q", url, err, want)
		}
	}
}

func TestURLErrorsHaveHints(t *testing.T) {
	for url, want := range map[string]string{
		"/media/usb":      "dir:/media/usb",
		"smb:/x":          "known carriers: dir:/media/usb, tcp:hub.example:2424",
		"TCP:hub":         "lower case",
		"dir:///x":        "like dir:/media/usb",
		"dir:usb":         "whole path",
		"tcp:2001:db8::1": "[2001:db8::1]",
		"dir:/x?y=z":      "docs/carriers.md",
	} {
		_, err := transport.Parse(transport.Schemes(), url)
		var h interface{ Hint() string }
		if !errors.As(err, &h) || !strings.Contains(h.Hint(), want) {
			t.Errorf("%q: %v, want a hint with %q", url, err, want)
		}
	}
}

func TestLinkOfCarrier(t *testing.T) {
	for url, want := range map[string]string{"dir:/x": "*transport.FolderLink", "tcp:x": "*transport.StreamLink"} {
		c, err := transport.Parse(transport.Schemes(), url)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%T", c.Link(transport.LinkOptions{Self: ship, Peer: shore})); got != want {
			t.Errorf("%s makes a %s, want %s", url, got, want)
		}
	}
	if _, ok := (transport.Carrier{Submitter: &postbox{}}).Link(transport.LinkOptions{}).(*transport.SubmitLink); !ok {
		t.Error("a submitter makes another link")
	}
}
