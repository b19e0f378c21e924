package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ConfigFile is the name of the configuration inside Home.ConfigDir.
const ConfigFile = "mochila.toml"

// Home says where everything of one node lies. All paths are absolute.
type Home struct {
	ConfigDir   string // mochila.toml; relative paths in it start at Base
	Base        string // ConfigDir, or /var/lib/mochila for a system-wide node
	IdentityDir string // keys, 0700
	PeersDir    string // NAME.toml, written by pairing, hence by the daemon
	SpoolDir    string
	MaildropDir string // inside SpoolDir
	RunDir      string // control.sock, submit.sock
	System      bool   // the node of the machine, not of --home or a user
}

// Config is the path of mochila.toml.
func (h Home) Config() string { return filepath.Join(h.ConfigDir, ConfigFile) }

// ControlSocket is where the daemon listens for subcommands.
func (h Home) ControlSocket() string { return filepath.Join(h.RunDir, "control.sock") }

// SubmitSocket is where the daemon takes local mail.
func (h Home) SubmitSocket() string { return filepath.Join(h.RunDir, "submit.sock") }

// Accounts is the file of those who may log in at the SMTP port.
func (h Home) Accounts() string { return filepath.Join(h.Base, "accounts") }

// LinkSocket is where the daemon answers live contacts of programs on this machine.
func (h Home) LinkSocket() string { return filepath.Join(h.RunDir, "link.sock") }

// Initialized reports whether a configuration exists.
func (h Home) Initialized() bool {
	_, err := os.Stat(h.Config())
	return err == nil
}

// HomeAt is a node in one folder.
func HomeAt(dir string) (Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Home{}, fmt.Errorf("finding the home: %w", err)
	}
	spool := filepath.Join(dir, "spool")
	return Home{
		ConfigDir: dir, Base: dir, IdentityDir: filepath.Join(dir, "identity"), PeersDir: filepath.Join(dir, "peers"),
		SpoolDir: spool, MaildropDir: filepath.Join(spool, "maildrop"), RunDir: filepath.Join(dir, "run"),
	}, nil
}

// SystemHome is the node of the machine, in the places where the Filesystem Hierarchy Standard wants them.
func SystemHome() Home {
	return Home{
		ConfigDir: "/etc/mochila", Base: "/var/lib/mochila", IdentityDir: "/var/lib/mochila/identity", PeersDir: "/var/lib/mochila/peers",
		SpoolDir: "/var/spool/mochila", MaildropDir: "/var/spool/mochila/maildrop", RunDir: "/run/mochila", System: true,
	}
}

// FindHome decides which node a command speaks of: the folder of --home (flag) or else of MOCHILA_HOME; else the
// machine's, when /etc/mochila exists or the caller is root; else the caller's own ~/.mochila.
func FindHome(flag string, getenv func(string) string) (Home, error) {
	return findHome(flag, getenv, os.Geteuid(), os.Stat)
}

func findHome(flag string, getenv func(string) string, uid int, stat func(string) (fs.FileInfo, error)) (Home, error) {
	if flag == "" {
		flag = getenv("MOCHILA_HOME")
	}
	if flag != "" {
		return HomeAt(flag)
	}
	system := SystemHome()
	if fi, err := stat(system.ConfigDir); uid == 0 || err == nil && fi.IsDir() {
		return system, nil
	}
	user := getenv("HOME")
	if user == "" {
		return Home{}, errors.New("finding the home: neither --home, MOCHILA_HOME nor HOME is set")
	}
	return HomeAt(filepath.Join(user, ".mochila"))
}
