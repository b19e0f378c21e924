package peertest

import (
	"net"
	"strconv"
	"testing"
)

// TestPortIsHeld: a port that a test has is nobody else's until it gives it back, and the kernel gives it to nobody.
func TestPortIsHeld(t *testing.T) {
	port, hold, err := TakePort()
	if err != nil {
		t.Fatal(err)
	}
	if port >= firstGiven() {
		t.Errorf("port %d: the kernel gives those from %d on", port, firstGiven())
	}
	if again, err := takePort(port); err == nil {
		again.Close()
		t.Error("a port that is held is taken again")
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hold.Close()
	if again, err := takePort(port); err == nil {
		again.Close()
		t.Error("a port on which somebody listens is taken")
	}
}
