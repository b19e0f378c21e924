// Package all lists every carrier that the program has: those of package transport, and those that take a library or a
// program of others, each in a package of its own below transport.
package all

import (
	"mochila/transport"
	"mochila/transport/s3"
)

// Schemes is the list.
func Schemes() []transport.Scheme {
	return append(transport.Schemes(), s3.Scheme)
}

// Parse reads a carrier URL (transport.Parse).
func Parse(url string) (transport.Carrier, error) { return transport.Parse(Schemes(), url) }
