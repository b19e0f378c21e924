package transport

import "fmt"

// hinted is an error together with what the user could do about it. A program finds the advice with
//
//	var h interface{ Hint() string }
//	if errors.As(err, &h) { ... }
type hinted struct {
	error
	hint string
}

func (h *hinted) Hint() string  { return h.hint }
func (h *hinted) Unwrap() error { return h.error }

// withHint adds advice to an error.
func withHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}
