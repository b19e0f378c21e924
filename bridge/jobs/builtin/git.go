package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"mochila/bridge/jobs/repo"
)

// git does a push or a fetch. What comes back is a repo.Answer, whatever the exit status is.
func (s Settings) git(args []string, p *Process) error {
	dir, err := s.repository(args[1])
	if err != nil {
		return err
	}
	if args[0] == "fetch" {
		out := &capped{w: p.Out, left: s.Output}
		if err = repo.ServeFetch(dir, p.In, out); out.full {
			return failure(nil, exitData, "it is more than the %d bytes that this handler gives (output)", s.Output)
		}
		return passing(err)
	}
	rules := repo.Rules{Force: s.Force}
	for _, r := range s.Push {
		rules.Push = append(rules.Push, strings.ReplaceAll(r, PeerMark, s.Peer))
	}
	a, err := repo.ServePush(dir, rules, p.In, p.Out)
	switch {
	case err != nil:
		return passing(err)
	case a.Status == "need":
		return failure(nil, exitUnavail, "%s: %s", args[1], a.Why)
	case a.Status != "ok":
		return failure(nil, exitCreate, "%s: %s", args[1], a.Why)
	}
	return nil
}

// repository finds a repository below one of the folders.
func (s Settings) repository(name string) (string, error) {
	var missing error
	for _, folder := range s.folders() {
		dir, err := repo.Find(folder, name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return dir, err
		}
		missing = err
		if _, err := os.Stat(folder); err != nil {
			missing = failure(err, exitTemp, "folder %s is not there now: %v", folder, err)
		}
	}
	if statusOf(missing, 0) == exitTemp {
		return "", missing
	}
	return "", failure(missing, exitNoInput, "there is no repository %q", name)
}

// passing marks what may go better the next time: git says so in words only.
func passing(err error) error {
	if err == nil {
		return nil
	}
	for _, words := range []string{"No space left", "Disk quota exceeded", "Cannot allocate memory", "Read-only file system", "Input/output error"} {
		if strings.Contains(err.Error(), words) {
			return failure(err, exitTemp, "%v", err)
		}
	}
	return fmt.Errorf("%w", err)
}
