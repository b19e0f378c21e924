// Package config reads what the operator wrote: mochila.toml and the peers/NAME.toml files that pairing writes,
// merged into one Config with every default filled in and every reference checked.
//
// It is strict: an unknown key, a wrong type or a name that leads nowhere is a Problem with file, line, column and,
// where one can be guessed, a hint. Nothing is half applied: Load returns a usable Config or Problems.
// docs/config.md describes every key.
//
// It starts nothing, opens no socket, touches no key, and knows the other packages' nouns only as text: cmd/mochila
// converts.
package config
