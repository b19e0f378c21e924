// Package passwd finds users of this machine. What /etc/passwd and /etc/group do not have is asked of getent(1) and id(1),
// which see LDAP, SSSD and whatever else nsswitch.conf(5) names: the programs are linked statically, so the C library that
// would ask there is not in them.
package passwd

import (
	"context"
	"errors"
	"os/exec"
	"os/user"
	"strings"
	"time"
)

// patience is how long a directory may take to answer.
const patience = 20 * time.Second

// Lookup finds a user by name; the error is a user.UnknownUserError when there is none.
func Lookup(name string) (*user.User, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		if v := entry(name); v != nil && v.Username == name { // getent takes a number for a uid
			return v, nil
		}
	}
	return u, err
}

// LookupID finds a user by uid in decimal; the error is a user.UnknownUserIdError when there is none.
func LookupID(uid string) (*user.User, error) {
	u, err := user.LookupId(uid)
	var unknown user.UnknownUserIdError
	if errors.As(err, &unknown) {
		if v := entry(uid); v != nil && v.Uid == uid {
			return v, nil
		}
	}
	return u, err
}

// GroupIDs are all groups of a user, in decimal.
func GroupIDs(u *user.User) ([]string, error) {
	if _, err := user.Lookup(u.Username); err == nil {
		return u.GroupIds()
	}
	out, err := ask("id", "-G", "--", u.Username)
	if err != nil {
		return nil, err
	}
	return strings.Fields(out), nil
}

// entry is what getent says of a name or uid, nil when it says nothing.
func entry(key string) *user.User {
	out, err := ask("getent", "passwd", "--", key)
	line, _, _ := strings.Cut(out, "\n")
	f := strings.Split(line, ":")
	if err != nil || len(f) != 7 || f[0] == "" || f[2] == "" {
		return nil
	}
	full, _, _ := strings.Cut(f[4], ",")
	return &user.User{Username: f[0], Uid: f[2], Gid: f[3], Name: full, HomeDir: f[5]}
}

// ask runs a program and returns what it wrote.
func ask(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	return string(out), err
}
