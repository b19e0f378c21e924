// Package natstest is a cluster of NATS servers with JetStream in the process of a test.
package natstest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"mochila/internal/peertest"
)

// Cluster is some servers that know each other.
type Cluster struct {
	t       testing.TB
	options []*server.Options
	servers []*server.Server // nil: it is down
}

// New starts n servers and waits until they are one.
func New(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	var routes []*url.URL
	var ports []int
	for range n {
		port := peertest.Port(t)
		ports = append(ports, port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)})
	}
	for i := range n {
		o := &server.Options{ServerName: fmt.Sprintf("s%d", i), Host: "127.0.0.1", Port: peertest.Port(t), JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i]}
			o.Routes = routes
		}
		c.options = append(c.options, o)
		c.servers = append(c.servers, nil)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.Stop(i)
		}
	})
	for i := range n {
		c.Start(i)
	}
	c.await("the servers to find each other", func() bool {
		for _, s := range c.servers {
			if n > 1 && (!s.JetStreamIsCurrent() || len(s.JetStreamClusterPeers()) < n && s.JetStreamIsLeader()) {
				return false
			}
		}
		if n == 1 {
			return true
		}
		for _, s := range c.servers {
			if s.JetStreamIsLeader() {
				return true
			}
		}
		return false
	})
	return c
}

func (c *Cluster) await(what string, done func() bool) {
	c.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Start starts a server that is down.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	s, err := server.NewServer(c.options[i])
	if err != nil {
		c.t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(time.Minute) {
		c.t.Fatalf("server %d does not start", i)
	}
	c.servers[i] = s
}

// Stop ends a server.
func (c *Cluster) Stop(i int) {
	if s := c.servers[i]; s != nil {
		s.Shutdown()
		s.WaitForShutdown()
		c.servers[i] = nil
	}
}

// Hosts are the addresses of all servers, as the carrier's URL takes them.
func (c *Cluster) Hosts() string {
	var all []string
	for _, o := range c.options {
		all = append(all, fmt.Sprintf("127.0.0.1:%d", o.Port))
	}
	return strings.Join(all, ",")
}

// Options are those of a server, for tests that change them before Start.
func (c *Cluster) Options(i int) *server.Options { return c.options[i] }
