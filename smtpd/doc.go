// Package smtpd is the SMTP (RFC 5321) and LMTP (RFC 2033) listener in front of a node: it reads mail from local
// mail systems over TCP and unix sockets and hands it to an Acceptor.
//
// It promises that
//
//   - a message is committed only after CR LF "." CR LF, and nothing else ever ends one;
//   - bytes of a message are never read as commands: whatever goes wrong between 354 and the end closes the connection;
//   - addresses and parameters reach the Acceptor as wire text, quotes included, free of control characters;
//   - 250 after the end of data is sent after Intake.Commit has returned, and never before;
//   - clients outside Server.RelayFrom reach nobody but the recipients that Server.OpenTo names;
//   - memory per connection is constant, whatever the client sends.
//
// It never opens files, looks up names in the DNS, or parses message content beyond counting Received lines.
// docs/smtp.md tells why this is an own dialog engine and what each reply means.
package smtpd
