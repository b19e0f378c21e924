// Package all lists every carrier that the program has: those of package transport, and those that take a library or a
// program of others, each in a package of its own below transport.
package all

import (
	"mochila/transport"
	"mochila/transport/dav"
	"mochila/transport/nats"
	"mochila/transport/rclone"
	"mochila/transport/s3"
	"mochila/transport/serial"
	"mochila/transport/sftp"
)

// Schemes is the list.
func Schemes() []transport.Scheme {
	list := append(transport.Schemes(), s3.Scheme, serial.Scheme(), sftp.Scheme)
	list = append(list, dav.Schemes()...)
	return append(list, rclone.Scheme, nats.Scheme)
}

// Parse reads a carrier URL (transport.Parse).
func Parse(url string) (transport.Carrier, error) { return transport.Parse(Schemes(), url) }
