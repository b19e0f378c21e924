package passwd

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"testing"
)

// directory puts a getent and an id in front of PATH that know one more user.
func directory(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"getent": `#!/bin/sh
[ "$1 $2" = "passwd --" ] || exit 1
case $3 in
nina.from-ldap|4200123) echo 'nina.from-ldap:*:4200123:4200001:Nina N,,,:/home/ldap/nina:/bin/bash';;
4200124) echo 'broken';;
*) exit 2;;
esac
`,
		"id": `#!/bin/sh
[ "$1 $2 $3" = "-G -- nina.from-ldap" ] && echo 4200001 4200007
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestUsersOfADirectory(t *testing.T) {
	directory(t)
	byName, err := Lookup("nina.from-ldap")
	if err != nil {
		t.Fatal(err)
	}
	byID, err := LookupID("4200123")
	if err != nil {
		t.Fatal(err)
	}
	want := user.User{Username: "nina.from-ldap", Uid: "4200123", Gid: "4200001", Name: "Nina N", HomeDir: "/home/ldap/nina"}
	if *byName != want || *byID != want {
		t.Errorf("by name %+v, by uid %+v, want %+v", *byName, *byID, want)
	}
	groups, err := GroupIDs(byName)
	if want := []string{"4200001", "4200007"}; err != nil || !slices.Equal(groups, want) {
		t.Errorf("groups %q, %v, want %q", groups, err, want)
	}
}

func TestUnknownUsers(t *testing.T) {
	directory(t)
	var name user.UnknownUserError
	for _, s := range []string{"nobody.of-this-name", "4200123", "-x", ""} { // the second is a uid, not a name
		if u, err := Lookup(s); !errors.As(err, &name) {
			t.Errorf("Lookup(%q) = %+v, %v", s, u, err)
		}
	}
	var id user.UnknownUserIdError
	for _, s := range []string{"4200122", "4200124"} { // the second has a broken entry
		if u, err := LookupID(s); !errors.As(err, &id) {
			t.Errorf("LookupID(%q) = %+v, %v", s, u, err)
		}
	}
}

// TestLocalUsers: nobody is asked about who stands in /etc/passwd.
func TestLocalUsers(t *testing.T) {
	root, err := LookupID("0")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	again, err := Lookup(root.Username)
	if err != nil || again.Uid != "0" {
		t.Errorf("Lookup(%q) = %+v, %v", root.Username, again, err)
	}
	if groups, err := GroupIDs(root); err != nil || !slices.Contains(groups, root.Gid) {
		t.Errorf("groups of %q: %q, %v", root.Username, groups, err)
	}
}
