//go:build !linux

package control

import "mochila/internal/config"

func becomeOwner(config.Home) error  { return nil }
func giveToDaemon(config.Home) error { return nil }
