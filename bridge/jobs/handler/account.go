package handler

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"mochila/internal/passwd"
)

// Account is a user of this machine.
type Account struct {
	Name   string
	Home   string // as the user database says, existing or not
	UID    uint32
	GID    uint32
	Groups []uint32 // all of them, GID included
}

// LookupAccount finds an account by name, or by number if no such name exists; "" is that of this process.
func LookupAccount(name string) (*Account, error) {
	if name == "" {
		name = strconv.Itoa(os.Geteuid())
	}
	u, err := passwd.Lookup(name)
	if err != nil {
		if _, nerr := strconv.ParseUint(name, 10, 32); nerr == nil {
			u, err = passwd.LookupID(name)
		}
	}
	var unknown user.UnknownUserError
	var unknownID user.UnknownUserIdError
	if errors.As(err, &unknown) || errors.As(err, &unknownID) {
		return nil, fmt.Errorf("user %q is unknown", name)
	} else if err != nil {
		return nil, fmt.Errorf("user %q: %w", name, err)
	}
	a := &Account{Name: u.Username, Home: u.HomeDir}
	if a.UID, err = number(u.Uid); err == nil {
		a.GID, err = number(u.Gid)
	}
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", name, err)
	}
	ids, err := passwd.GroupIDs(u)
	if err != nil {
		return nil, fmt.Errorf("groups of user %q: %w", name, err)
	}
	for _, id := range ids {
		g, err := number(id)
		if err != nil {
			return nil, fmt.Errorf("groups of user %q: %w", name, err)
		}
		a.Groups = append(a.Groups, g)
	}
	return a, nil
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

// credential is what a run has to switch to: nil for the account of this process.
func (s *Spec) credential() (*Account, error) {
	if s.User == "" {
		return nil, nil
	}
	a, err := LookupAccount(s.User)
	switch {
	case err != nil:
		return nil, err
	case int(a.UID) == os.Geteuid() && s.Limits.Processes > 0:
		return nil, fmt.Errorf("a limit of processes needs a user of its own, and %q runs this node", s.User)
	case int(a.UID) == os.Geteuid():
		return nil, nil
	case a.UID == 0:
		return nil, errors.New("running as root needs a node that runs as root")
	case os.Geteuid() != 0:
		return nil, fmt.Errorf("running as %q needs root", s.User)
	}
	return a, nil
}
