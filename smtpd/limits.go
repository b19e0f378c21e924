package smtpd

import "time"

// Limits bounds what clients may use. A field that is zero gets the default that its comment names.
type Limits struct {
	Conns          int           // connections at the same time: 256; clients outside RelayFrom get at most 3/4 of them
	ConnsPerClient int           // of one client (IPv4 address, IPv6 /64) outside RelayFrom: 32
	ConnRate       int           // new connections within a minute of one client outside RelayFrom: 120
	MailRate       int           // mails that one client outside RelayFrom, or one account, may begin within a minute: 300
	AuthFailures   int           // wrong passwords from one client within an hour, after which AUTH gets 421: 30
	Denials        int           // wrong passwords in one connection, after which it ends: 3
	AuthPause      time.Duration // that the first wrong password of a connection costs, the second twice: 1 second
	FreeErrors     int           // errors that cost a client outside RelayFrom no time: 3
	ErrorPause     time.Duration // that the next one costs, the one after it twice, up to ten times: 1 second
	ProxyTimeout   time.Duration // for a proxy to tell who the client is: 10 seconds
	Recipients     int           // of one mail: 1000
	MessageSize    int64         // bytes of one mail after dots are unstuffed: 50 MiB
	Received       int           // Received lines in the header before a mail counts as looping: 50
	Errors         int           // wrong or refused commands since the last mail: 20
	Junk           int           // commands that move no mail (NOOP, RSET, VRFY …) since the last mail: 100
	Commands       int           // of any kind since the last mail: 20,000
	CommandTimeout time.Duration // to send one whole command line: 5 minutes
	DataTimeout    time.Duration // between two reads inside a message: 5 minutes
	MessageTimeout time.Duration // from 354 to the end of data: 2 hours
	WriteTimeout   time.Duration // to take a reply, and for a TLS handshake: 1 minute
	Hold           time.Duration // longest HOLDFOR and HOLDUNTIL (RFC 4865): 30 days
}

const (
	maxLine     = 2048     // octets of a command line, CRLF included (RFC 5321 section 4.5.3.1.4 asks for 512)
	maxMailLine = 12 << 10 // the same for MAIL and RCPT, whose parameters need more
	maxOverlong = 1 << 20  // a longer line is not skipped: the connection is closed
	bufferSize  = 32 << 10 // input buffer of a connection
	maxReply    = 500      // octets of a reply line without CRLF (RFC 5321 section 4.5.3.1.5: 512)
	maxLHLO     = 220      // octets of the whole LHLO reply: Exim's lmtp transport calls one of 248 malformed
	maxAddress  = 998      // octets of a path; RFC 5321 says 256, real VERP and SRS addresses are longer
	lingerTime  = 2 * time.Second
	lingerSize  = 4 << 20
)

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// filled returns l with defaults in place of zeros.
func (l Limits) filled() Limits {
	l.Conns = orDefault(l.Conns, 256)
	l.ConnsPerClient = orDefault(l.ConnsPerClient, 32)
	l.ConnRate = orDefault(l.ConnRate, 120)
	l.MailRate = orDefault(l.MailRate, 300)
	l.AuthFailures = orDefault(l.AuthFailures, 30)
	l.Denials = orDefault(l.Denials, 3)
	l.AuthPause = orDefault(l.AuthPause, time.Second)
	l.FreeErrors = orDefault(l.FreeErrors, 3)
	l.ErrorPause = orDefault(l.ErrorPause, time.Second)
	l.ProxyTimeout = orDefault(l.ProxyTimeout, 10*time.Second)
	l.Recipients = orDefault(l.Recipients, 1000)
	l.MessageSize = orDefault(l.MessageSize, 50<<20)
	l.Received = orDefault(l.Received, 50)
	l.Errors = orDefault(l.Errors, 20)
	l.Junk = orDefault(l.Junk, 100)
	l.Commands = orDefault(l.Commands, 20_000)
	l.CommandTimeout = orDefault(l.CommandTimeout, 5*time.Minute)
	l.DataTimeout = orDefault(l.DataTimeout, 5*time.Minute)
	l.MessageTimeout = orDefault(l.MessageTimeout, 2*time.Hour)
	l.WriteTimeout = orDefault(l.WriteTimeout, time.Minute)
	l.Hold = orDefault(l.Hold, 30*24*time.Hour)
	return l
}
