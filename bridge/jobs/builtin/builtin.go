// Package builtin holds the handlers that come with the program: file takes files and folders, get gives them. A node
// runs them as it runs any other handler, as a process of its own with a user, a time and limits (bridge/jobs/handler):
// the node's own binary, started with Command, whose main calls Main first. They know no node and no spool, only their
// settings, the job's arguments and input, and the MOCHILA_ variables.
//
// All of them may be killed at any point and started again with the same job.
package builtin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"mochila/bridge/jobs/repo"
	"mochila/bridge/jobs/tree"
)

// Kinds of built-in handlers.
const (
	File = "file" // takes a tree, puts it below one of the folders
	Get  = "get"  // gives files and folders as a tree
	Git  = "git"  // takes pushes to git repositories, gives fetches
)

// Kinds lists them all.
var Kinds = []string{File, Get, Git}

// word is the first argument of a process that is a built-in handler.
const word = "@handler"

// PeerMark stands in the path of a folder for the name of the node that sends.
const PeerMark = "%n"

// Settings are what the configuration says to one handler.
type Settings struct {
	Kind      string
	Folders   []string // absolute, perhaps with PeerMark; what a relative path of a job means is below the first
	Peer      string   // this node's name for the one that sends
	Overwrite string   `json:",omitempty"` // file: a tree.Overwrite
	Output    int64    `json:",omitempty"` // get: bytes that go back at most
	Push      []string `json:",omitempty"` // git: patterns of refs that may be changed, perhaps with PeerMark
	Force     bool     `json:",omitempty"` // git: also backwards, and deleted
}

// Command is the command of a handler with these settings, for handler.Spec.
func (s Settings) Command() ([]string, error) {
	b, err := json.Marshal(s)
	return []string{"/proc/self/exe", word, string(b)}, err
}

// folders are the folders for this peer.
func (s Settings) folders() []string {
	var list []string
	for _, f := range s.Folders {
		list = append(list, path.Clean(strings.ReplaceAll(f, PeerMark, s.Peer)))
	}
	return list
}

// Bounds of what a job may ask for.
const (
	maxPatterns = 100
	maxMatches  = 10_000
)

// Check returns why a job cannot have these arguments and variables, whatever is on the disk.
func (s Settings) Check(args []string, env [][2]string) error {
	if len(env) > 0 {
		return fmt.Errorf("handler %s takes no variables", s.Kind)
	}
	switch s.Kind {
	case File:
		if len(args) > 1 {
			return errors.New("file takes one folder")
		}
	case Get:
		if len(args) == 0 || len(args) > maxPatterns {
			return fmt.Errorf("get takes 1 to %d paths", maxPatterns)
		}
	case Git:
		if len(args) != 2 || args[0] != "push" && args[0] != "fetch" {
			return errors.New("git takes push or fetch, and a repository")
		}
		return repo.CheckName(args[1])
	}
	return nil
}

// locate finds the folder that a path of a job is in, and the path in it.
func (s Settings) locate(p string) (folder, rel string, err error) {
	if strings.IndexByte(p, 0) >= 0 || len(p) > tree.MaxPath {
		return "", "", failure(unix.EINVAL, exitUsage, "that is no path")
	}
	if slices.Contains(strings.Split(p, "/"), "..") {
		return "", "", failure(fs.ErrPermission, exitDenied, "%q: no path goes up", p)
	}
	folders := s.folders()
	clean := path.Clean("/" + p)
	if !strings.HasPrefix(p, "/") {
		if len(folders) == 0 {
			return "", "", failure(nil, exitConfig, "no folder is configured")
		}
		folder, rel = folders[0], clean[1:]
	} else {
		for _, f := range folders {
			if rest, ok := strings.CutPrefix(clean+"/", strings.TrimSuffix(f, "/")+"/"); ok && len(f) > len(folder) {
				folder, rel = f, strings.TrimSuffix(rest, "/")
			}
		}
	}
	if folder == "" {
		return "", "", failure(fs.ErrPermission, exitDenied, "%q is in none of the folders that are open to you", p)
	}
	if rel == "" {
		rel = "."
	}
	return folder, rel, nil
}

// Exit statuses, of sysexits.h.
const (
	exitUsage    = 64
	exitData     = 65
	exitNoInput  = 66
	exitUnavail  = 69
	exitSoftware = 70
	exitCreate   = 73
	exitTemp     = 75
	exitDenied   = 77
	exitConfig   = 78
)

// failed is an error with the exit status that tells it.
type failed struct {
	status int
	text   string
	err    error
}

// Error is what the origin is told.
func (f *failed) Error() string { return f.text }

// Unwrap is the cause.
func (f *failed) Unwrap() error { return f.err }

func failure(err error, status int, format string, args ...any) error {
	return &failed{status, fmt.Sprintf(format, args...), err}
}

// statusOf is the exit status for an error: 75 is for what may pass by itself.
func statusOf(err error, otherwise int) int {
	var f *failed
	if errors.As(err, &f) {
		return f.status
	}
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EROFS, unix.EIO, unix.ESTALE, unix.EAGAIN, unix.ENOLCK} {
		if errors.Is(err, e) {
			return exitTemp
		}
	}
	switch {
	case errors.Is(err, tree.ErrFormat), errors.Is(err, repo.ErrFormat):
		return exitData
	case errors.Is(err, tree.ErrTaken):
		return exitCreate
	case errors.Is(err, fs.ErrPermission), errors.Is(err, repo.ErrDenied):
		return exitDenied
	}
	return otherwise
}

// Main must be called at the beginning of main in a binary that runs built-in handlers. It does not return in a process
// that is one.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != word {
		return
	}
	var s Settings
	if err := json.Unmarshal([]byte(os.Args[2]), &s); err != nil {
		fmt.Fprintln(os.Stderr, "this is for mochila only")
		os.Exit(64)
	}
	os.Exit(s.Run(os.Args[3:], &Process{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}))
}

// Process is what a handler has beside its arguments.
type Process struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// Run does one job and returns the exit status.
func (s Settings) Run(args []string, p *Process) int {
	var err error
	otherwise := exitCreate
	if err = s.Check(args, nil); err != nil {
		err = failure(err, exitUsage, "%v", err)
	} else {
		switch s.Kind {
		case File:
			err = s.file(args, p)
		case Get:
			otherwise = exitNoInput
			err = s.get(args, p)
		case Git:
			otherwise = exitSoftware
			err = s.git(args, p)
		default:
			err = failure(nil, exitConfig, "there is no built-in handler %q", s.Kind)
		}
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(p.Err, err)
	return statusOf(err, otherwise)
}

// open opens a folder of the configuration. Only one that is named after the peer is made when it is missing: any other
// may be a disk that is not there now.
func (s Settings) open(folder string) (*os.Root, error) {
	root, err := os.OpenRoot(folder)
	if errors.Is(err, fs.ErrNotExist) && !slices.Contains(s.Folders, folder) {
		if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, failure(err, exitTemp, "folder %s: %v", folder, err)
		}
		root, err = os.OpenRoot(folder)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, failure(err, exitDenied, "folder %s: %v", folder, err)
	}
	if err != nil {
		return nil, failure(err, exitTemp, "folder %s is not there now: %v", folder, err)
	}
	return root, nil
}
