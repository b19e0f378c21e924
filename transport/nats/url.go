// Package nats is the carrier nats: a stream of NATS JetStream as a folder. One store that the servers themselves keep in
// several copies serves many nodes, such as the gateways of a busy hub and all their sites: nothing else is shared.
//
// A packet is one message for each 256 KiB of it, and a last one, the head, with which it appears. Subjects are
// STREAM.mochila.FROM.TO.PACKET for the head and STREAM.mochila.FROM.TO.PACKET.N for the content.
package nats

import (
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"mochila/transport"
)

const form = "nats:hub1.example,hub2.example/mochila"

// Scheme is the carrier nats.
var Scheme = transport.Scheme{Name: "nats", Form: form, Parse: parse}

// notInStream reports the characters that a stream has not.
func notInStream(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-'
}

func parse(rest string, opts url.Values) (transport.Carrier, error) {
	hosts, stream, _ := strings.Cut(rest, "/")
	if stream == "" {
		stream = "mochila"
	}
	if hosts == "" || strings.ContainsAny(hosts, "@ /\\") || strings.ContainsFunc(stream, notInStream) {
		return transport.Carrier{}, transport.WithHint(fmt.Errorf("%q is not HOST[:PORT][,HOST…]/STREAM", rest), "as in %s; user and password stand in a file, secret=/FILE", form)
	}
	f := &Folder{stream: stream, hosts: hosts, replicas: 1}
	f.Call = f.open
	for host := range strings.SplitSeq(hosts, ",") {
		f.servers = append(f.servers, "nats://"+host)
	}
	if s := transport.Take(opts, "replicas"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 5 {
			return transport.Carrier{}, fmt.Errorf("replicas=%q is not a number from 1 to 5", s)
		}
		f.replicas = n
	}
	f.secret, f.creds, f.ca = transport.Take(opts, "secret"), transport.Take(opts, "creds"), transport.Take(opts, "ca")
	switch s := transport.Take(opts, "tls"); s {
	case "", "no":
	case "yes":
		f.tls = true
	default:
		return transport.Carrier{}, fmt.Errorf("tls=%q is not yes or no", s)
	}
	return transport.Carrier{Folder: f}, nil
}

// options are those of a connection; secrets are read anew for each.
func (f *Folder) options() ([]nats.Option, error) {
	o := []nats.Option{nats.Name("mochila"), nats.Timeout(10 * time.Second), nats.MaxReconnects(20), nats.ReconnectWait(250 * time.Millisecond)}
	if f.secret != "" {
		s, err := transport.SecretFile(f.secret)
		if err != nil {
			return nil, err
		}
		if user, password, ok := strings.Cut(s, ":"); ok {
			o = append(o, nats.UserInfo(user, password))
		} else {
			o = append(o, nats.Token(s))
		}
	}
	if f.creds != "" {
		if _, err := transport.SecretFile(f.creds); err != nil {
			return nil, err
		}
		o = append(o, nats.UserCredentials(f.creds))
	}
	if f.ca != "" {
		if _, err := os.Stat(f.ca); err != nil {
			return nil, fmt.Errorf("read the certificate: %w", err)
		}
		o = append(o, nats.RootCAs(f.ca))
	}
	if f.tls {
		o = append(o, nats.Secure(nil))
	}
	return o, nil
}
