package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"mochila/bridge/jobs/repo"
	"mochila/internal/config"
	"mochila/internal/control"
)

// remoteHelper is the name by which git calls this program for mochila::NODE/REPO (gitremote-helpers(7)).
const remoteHelper = "git-remote-mochila"

// runHelper is the program git-remote-mochila REMOTE NODE/REPO. It lists what has arrived, asks for more, and queues
// pushes; with `git -c mochila.wait=1m` it waits so long for the answer.
func runHelper(ctx context.Context, env *Env, args []string) int {
	a := &app{env: env, out: &screen{w: env.Stdout}, now: time.Now()}
	err := a.helper(ctx, args)
	if e := a.out.flush(); err == nil && e != nil && !errors.Is(e, errPipe) {
		err = e
	}
	return report(env.Stderr, err)
}

func (a *app) helper(ctx context.Context, args []string) error {
	dir, ok := a.env.Getenv("GIT_DIR")
	if len(args) != 2 || !ok {
		return usageError("git remote add NAME mochila::NODE/REPO", "%s is called by git", remoteHelper)
	}
	return a.jobNode(ctx, func(n *control.Client) (err error) {
		f := &jobFlags{channel: "git", handler: "git"}
		if f.channel, err = gitConfig(dir, "mochila.channel", f.channel); err != nil {
			return err
		}
		if f.handler, err = gitConfig(dir, "mochila.handler", f.handler); err != nil {
			return err
		}
		limit, err := gitConfig(dir, "mochila.wait", "")
		if err != nil {
			return err
		}
		h := &helper{a: a, ctx: ctx, n: n}
		if limit != "" && limit != "0" {
			d, err := config.ParseDuration(limit)
			if err != nil {
				return usageError("such as 30s", "git config mochila.wait: %q is no duration", limit)
			}
			h.patience = time.Duration(d)
		}
		if h.remote, err = a.openRemote(n, f, dir, args[1]); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.remote.Close()) }()
		return h.serve()
	})
}

// gitConfig reads a setting of git.
func gitConfig(dir, key, otherwise string) (string, error) {
	out, err := exec.Command("git", "--git-dir", dir, "config", "--get", key).Output()
	var none *exec.ExitError
	switch {
	case err == nil:
		return strings.TrimSpace(string(out)), nil
	case errors.As(err, &none) && none.ExitCode() == 1:
		return otherwise, nil
	}
	return "", errHelper("git config %s: %v", key, err)
}

// helper is one conversation with git.
type helper struct {
	a        *app
	ctx      context.Context
	n        *control.Client
	remote   *remote
	patience time.Duration
}

func (h *helper) serve() error {
	in := bufio.NewReader(h.a.env.Stdin)
	for {
		line, err := readWord(in)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "capabilities":
			h.a.printf("fetch\npush\noption\n\n")
		case "option":
			h.a.printf("unsupported\n")
		case "list":
			err = h.list(rest == "for-push")
		case "fetch":
			err = h.fetched(in)
		case "push":
			err = h.push(in, rest)
		case "":
			return nil
		default:
			err = errHelper("git says %q, which this helper does not know", line)
		}
		if err == nil {
			err = h.a.out.flush()
		}
		h.a.out.buf = nil
		if err != nil {
			return err
		}
	}
}

func readWord(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err == io.EOF && line != "" {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSuffix(line, "\n"), err
}

// within is a context for waiting: nil when nobody wants to wait, or nobody would carry anything.
func (h *helper) within() (context.Context, context.CancelFunc) {
	if h.patience == 0 || !h.n.Daemon() {
		return nil, func() {}
	}
	return context.WithTimeout(h.ctx, h.patience)
}

// list takes in what has come, asks for more, and tells git the refs that are here with all their commits.
func (h *helper) list(forPush bool) error {
	r := h.remote
	if err := r.settle(h.ctx); err != nil {
		return err
	}
	if !forPush {
		id, asked := r.Waits("fetch")
		if !asked {
			var err error
			if id, err = r.fetch(h.ctx); err != nil {
				return err
			}
		}
		ctx, cancel := h.within()
		defer cancel()
		if ctx != nil {
			if _, err := r.wait(ctx, id); err != nil && ctx.Err() == nil {
				return err
			}
		}
		if _, waits := r.Waits("fetch"); waits {
			since := "nothing has come from there yet"
			if !r.Heard.IsZero() {
				since = "this is as of " + r.Heard.Local().Format("2006-01-02 15:04")
			}
			h.a.note("mochila: %s is asked for what is new (job %s); %s", safe(r.Node), id, since)
		}
	}
	known, err := r.Known()
	if err != nil {
		return err
	}
	var refs []string
	for ref := range known {
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	for _, ref := range refs {
		h.a.printf("%s %s\n", known[ref], ref)
	}
	if r.Head != "" && known[r.Head] != "" {
		h.a.printf("@%s HEAD\n", r.Head)
	}
	h.a.printf("\n")
	return nil
}

// fetched answers a batch of fetches: all that list has told is here.
func (h *helper) fetched(in *bufio.Reader) error {
	for {
		line, err := readWord(in)
		if err != nil {
			return err
		}
		if line == "" {
			h.a.printf("\n")
			return nil
		}
	}
}

// push queues a batch of pushes as one job. Without waiting, ok means queued durably here, and says so.
func (h *helper) push(in *bufio.Reader, first string) error {
	specs := []string{first}
	for {
		line, err := readWord(in)
		if err != nil {
			return err
		}
		if line == "" {
			break
		}
		specs = append(specs, strings.TrimPrefix(line, "push "))
	}
	updates, err := h.remote.Resolve(specs, false)
	if err != nil {
		return err
	}
	verdicts := map[string]string{}
	todo, flying := h.remote.Plan(updates)
	if len(todo) > 0 {
		if err := h.pushNow(todo, verdicts); err != nil {
			return err
		}
	} else if len(flying) > 0 {
		h.a.note("mochila: on its way already: %s", strings.Join(flying, ", "))
	}
	for _, u := range updates {
		if why := verdicts[u.Ref]; why != "" {
			h.a.printf("error %s %s\n", u.Ref, safe(why))
		} else {
			h.a.printf("ok %s\n", u.Ref)
		}
	}
	h.a.printf("\n")
	return nil
}

func (h *helper) pushNow(todo []repo.Update, verdicts map[string]string) error {
	r := h.remote
	ctx, cancel := h.within()
	defer cancel()
	if ctx == nil {
		id, err := r.push(h.ctx, todo, false)
		if err == nil {
			h.a.note("mochila: queued for %s as job %s; it has not confirmed it (mochila git status %s/%s)", safe(r.Node), id, safe(r.Node), r.Name)
		}
		return err
	}
	answer, err := r.pushAndWait(ctx, todo, false)
	switch {
	case ctx.Err() != nil && h.ctx.Err() == nil:
		h.a.note("mochila: queued for %s; it has not confirmed it within %v", safe(r.Node), h.patience)
		return nil
	case err != nil:
		return err
	case answer == nil:
		for _, u := range todo {
			verdicts[u.Ref] = "the job failed"
		}
		return nil
	}
	for _, u := range answer.Updates {
		if answer.Status != "ok" {
			verdicts[u.Ref] = answer.Why
			if u.Why != "" {
				verdicts[u.Ref] = u.Why
			}
		}
	}
	return nil
}
