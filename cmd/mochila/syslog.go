package main

import (
	"bytes"
	"errors"
	"net"
)

// defaultSyslog is where syslog daemons, journald among them, listen.
const defaultSyslog = "/dev/log"

// syslogWriter sends each line that is written to it to a syslog daemon's socket, as one datagram. What cannot be sent is
// lost, as everywhere with syslog, and the next line tries anew: the daemon may have been restarted. One goroutine uses it
// at a time.
type syslogWriter struct {
	path string
	conn net.Conn
}

// Write returns the first error; the lines after it are sent all the same.
func (w *syslogWriter) Write(p []byte) (int, error) {
	var first error
	for line := range bytes.Lines(p) {
		if err := w.send(bytes.TrimSuffix(line, []byte("\n"))); err != nil && first == nil {
			first = err
		}
	}
	return len(p), first
}

func (w *syslogWriter) send(line []byte) error {
	for fresh := false; ; fresh = true {
		if w.conn == nil || fresh {
			if err := w.dial(); err != nil {
				return err
			}
		}
		_, err := w.conn.Write(line)
		if err == nil || fresh {
			return err
		}
	}
}

// dial connects; datagrams are what syslog(3) sends first, and what all daemons take.
func (w *syslogWriter) dial() error {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
	conn, err := net.Dial("unixgram", w.path)
	if err == nil {
		w.conn = conn
	}
	return err
}

// Close ends the connection.
func (w *syslogWriter) Close() error {
	if w.conn == nil {
		return errors.New("no syslog daemon was there")
	}
	return w.conn.Close()
}
