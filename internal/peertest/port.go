package peertest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"
)

// FreePort returns a loopback address HOST:PORT on which nobody listens, and which is the caller's until the test ends:
// see TakePort.
func FreePort(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(Port(t)))
}

// Port is FreePort as a number.
func Port(t testing.TB) int {
	t.Helper()
	port, hold, err := TakePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	return port
}

// TakePort returns a port of 127.0.0.1 on which nobody listens. Until hold is closed, or the process ends, no other
// TakePort on this machine returns it, and it is none of those that the kernel gives to whoever asks for any: a daemon
// may be stopped, and started again a minute later, and finds its port free.
func TakePort() (port int, hold io.Closer, err error) {
	const low = 10_000 // below, services of the machine are to be expected
	high := firstGiven()
	if high < low+1000 {
		return 0, nil, fmt.Errorf("no ports for tests: the kernel gives those from %d on", high)
	}
	for range 1000 {
		port = low + rand.IntN(high-low)
		if hold, err = takePort(port); err == nil {
			return port, hold, nil
		}
	}
	return 0, nil, fmt.Errorf("no port for a test: %w", err)
}

// takePort holds a port by an abstract socket with its number: the kernel frees it with its process, and knows it in
// every process that shares the network.
func takePort(port int) (io.Closer, error) {
	hold, err := net.Listen("unix", fmt.Sprintf("@mochila-test-port-%d", port))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		hold.Close()
		return nil, err
	}
	l.Close()
	return hold, nil
}

// firstGiven is the first of the ports that the kernel gives to listeners on port 0 and to outgoing connections.
func firstGiven() (first int) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if _, serr := fmt.Sscan(string(b), &first); err != nil || serr != nil {
		return 32768
	}
	return first
}
