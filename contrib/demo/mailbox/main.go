// Command mailbox is the demo's mail program: it makes mails of the shapes that real mailboxes hold, hands them to a
// node by SMTP and by sendmail, and compares what came out at the other end, byte by byte.
//
//	mailbox port                              prints a TCP port of loopback that is free
//	mailbox wait ADDR                         waits until an SMTP server greets at ADDR
//	mailbox feed -smtp ADDR -sendmail PATH -sent DIR [-rounds N] [-seed N]
//	mailbox compare -sent DIR -maildir DIR [-missing N]
//	mailbox report -maildir DIR ADDRESS       waits for a delivery status notification about ADDRESS, and prints its end
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mailbox:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: mailbox port|wait|feed|compare|report …")
	}
	f := flag.NewFlagSet("mailbox "+args[0], flag.ContinueOnError)
	var (
		smtp     = f.String("smtp", "", "SMTP server, `HOST:PORT`")
		sendmail = f.String("sendmail", "sendmail", "the sendmail `program`")
		sent     = f.String("sent", "", "`folder` for what was sent")
		maildir  = f.String("maildir", "", "`folder` with a Maildir for each user")
		rounds   = f.Int("rounds", 4, "mails of each shape")
		seed     = f.Uint64("seed", 1, "decides every byte")
		missing  = f.Int("missing", 0, "deliveries that are expected to be missing")
	)
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "port":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
		return l.Close()
	case "wait":
		return awaitServer(f.Arg(0))
	case "feed":
		return feed(mails(*seed, *rounds), *smtp, *sendmail, *sent)
	case "compare":
		return compare(*sent, *maildir, *missing)
	case "report":
		return report(*maildir, f.Arg(0))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// patience bounds every wait.
const patience = 20 * time.Second

// await polls until done says so.
func await(what string, done func() bool) error {
	for end := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("waited %v in vain for %s", patience, what)
		}
	}
	return nil
}

// awaitServer waits until an SMTP server greets.
func awaitServer(addr string) error {
	return await("an SMTP server at "+addr, func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		b := make([]byte, 3)
		n, _ := c.Read(b)
		return string(b[:n]) == "220"
	})
}
