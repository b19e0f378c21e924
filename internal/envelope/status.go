package envelope

import "strconv"

// String is the reply as it stands on the wire: "550 5.1.1 no such user"; without the code where no
// dialog was held.
func (s Status) String() string {
	t := s.Text
	if s.Enhanced != "" {
		t = s.Enhanced + " " + t
	}
	if s.Code != 0 {
		t = strconv.Itoa(s.Code) + " " + t
	}
	return t
}

// Temporary reports whether a later try may succeed.
func (s Status) Temporary() bool { return s.Code/100 == 4 }

// NewStatus returns a reply as an error.
func NewStatus(code int, enhanced, text string) *Status {
	return &Status{Code: code, Enhanced: enhanced, Text: text}
}
