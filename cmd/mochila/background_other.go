//go:build !linux

package main

import (
	"context"

	"mochila/internal/control"
)

const detached = "MOCHILA_DETACHED"

func (a *app) background(context.Context) error {
	return &control.Error{Message: "serve --background is for Linux", Hint: "leave the background to the service manager", Exit: control.ExitUnavailable}
}

func letGo() error { return nil }
