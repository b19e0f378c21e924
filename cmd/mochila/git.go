package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mochila/bridge/jobs/repo"
	"mochila/internal/control"
)

// maxRounds bounds how often a push that waits is made anew because the other side lacks what it builds on.
const maxRounds = 4

// remote is a repository of another node, seen from the one in a folder here, while a command works on it.
type remote struct {
	*repo.Remote
	a    *app
	n    *control.Client
	f    *jobFlags
	last map[string]*repo.Answer // answers heard by this command, by job
}

// openRemote opens NODE/REPO for the repository in dir.
func (a *app) openRemote(n *control.Client, f *jobFlags, dir, target string) (*remote, error) {
	node, name, ok := strings.Cut(target, "/")
	if !ok || node == "" || name == "" {
		return nil, usageError("such as hub/site.git", "%q is not NODE/REPO", target)
	}
	r, err := repo.OpenRemote(dir, node, strings.TrimSuffix(name, "/"))
	if err != nil {
		return nil, &control.Error{Message: err.Error(), Exit: control.ExitData}
	}
	return &remote{Remote: r, a: a, n: n, f: f, last: map[string]*repo.Answer{}}, nil
}

// settle takes in all answers that are here.
func (r *remote) settle(ctx context.Context) error {
	for _, p := range slices.Clone(r.Jobs) {
		var it control.JobItem
		err := r.n.Get(ctx, "/v1/jobs/"+url.PathEscape(p.ID), &it)
		var e *control.Error
		switch {
		case errors.As(err, &e) && e.Exit == control.ExitData:
			r.a.note("mochila: job %s is not known any more", p.ID)
			r.Forget(p.ID)
			continue
		case err != nil:
			return err
		case it.Result == nil && !it.Ended || it.Result != nil && it.Result.Held:
			continue
		}
		if err := r.hear(ctx, p, it); err != nil {
			return err
		}
		if err := r.Save(); err != nil {
			return err
		}
	}
	return r.Save()
}

// hear takes one answer in, and tells what it says of a push.
func (r *remote) hear(ctx context.Context, p repo.Pending, it control.JobItem) error {
	var answer *repo.Answer
	err := error(nil)
	if it.Result != nil && it.Result.Stdout > 0 && it.Result.DroppedStdout == 0 {
		in, w := io.Pipe()
		go func() { w.CloseWithError(r.n.Raw(ctx, "/v1/jobs/"+url.PathEscape(p.ID)+"/stdout", w)) }()
		answer, err = r.Hear(p.ID, in, r.a.now)
		in.Close()
	} else {
		r.Forget(p.ID)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		r.a.note("mochila: the answer of %s to %s %s cannot be used, everything is asked for again: %s", safe(r.Node), p.Kind, p.ID, safe(err.Error()))
		return nil
	case answer == nil || answer.Status == "":
		r.a.note("mochila: %s of %s is %s%s", p.Kind, p.At.Local().Format("2006-01-02 15:04"), safe(it.State), r.reason(ctx, it))
		return nil
	case answer.Status == "need":
		r.a.note("mochila: %s lacks what the push of %s builds on; the next one brings it", safe(r.Node), p.At.Local().Format("2006-01-02 15:04"))
	}
	r.last[p.ID] = answer
	for _, u := range answer.Updates {
		switch u.Result {
		case "ok", "same", "late":
			r.a.note("mochila: %s has %s of %s", safe(r.Node), safe(short(u.New)), safe(u.Ref))
		case "rejected":
			r.a.note("mochila: %s has rejected %s of %s: %s", safe(r.Node), safe(short(u.New)), safe(u.Ref), safe(u.Why))
		}
	}
	return nil
}

// reason is what a job that failed has said.
func (r *remote) reason(ctx context.Context, it control.JobItem) string {
	if it.Result != nil && it.Result.Stderr > 0 {
		var b bytes.Buffer
		if err := r.n.Raw(ctx, "/v1/jobs/"+url.PathEscape(it.ID)+"/stderr", &b); err == nil {
			line, _, _ := strings.Cut(b.String(), "\n")
			return ": " + safe(line)
		}
	}
	return when(it.Why != "", ": "+safe(it.Why))
}

func short(sha string) string {
	if strings.Trim(sha, "0") == "" {
		return "the deletion"
	}
	return sha[:min(12, len(sha))]
}

// push queues a job for updates, unless there is nothing to say.
func (r *remote) push(ctx context.Context, updates []repo.Update, full bool) (id string, err error) {
	q, err := r.a.jobRequest(r.f, r.Node, "push", r.Name)
	if err != nil {
		return "", err
	}
	return r.queue(ctx, q, repo.Pending{Kind: "push", Updates: updates}, func(w io.Writer) error { return r.WritePush(w, updates, full) })
}

// fetch queues a job that asks for what is not here.
func (r *remote) fetch(ctx context.Context) (id string, err error) {
	q, err := r.a.jobRequest(r.f, r.Node, "fetch", r.Name)
	if err != nil {
		return "", err
	}
	return r.queue(ctx, q, repo.Pending{Kind: "fetch"}, r.WriteFetch)
}

func (r *remote) queue(ctx context.Context, q control.RunRequest, p repo.Pending, write func(io.Writer) error) (string, error) {
	list, err := r.a.enqueueFrom(ctx, r.n, q, write)
	if err != nil {
		return "", err
	}
	p.ID, p.At = list[0].ID, r.a.now
	r.Jobs = append(r.Jobs, p)
	return p.ID, r.Save()
}

// wait waits for the answer to a job, and takes in what has come.
func (r *remote) wait(ctx context.Context, id string) (*repo.Answer, error) {
	if _, err := awaitOne(ctx, r.n, id); err != nil {
		return nil, err
	}
	err := r.settle(context.WithoutCancel(ctx))
	return r.last[id], err
}

// pushAndWait pushes until the other side has taken it or refused it.
func (r *remote) pushAndWait(ctx context.Context, updates []repo.Update, full bool) (*repo.Answer, error) {
	for round := 1; ; round++ {
		id, err := r.push(ctx, updates, full)
		if err != nil {
			return nil, err
		}
		a, err := r.wait(ctx, id)
		if err != nil || a == nil || a.Status != "need" || round == maxRounds {
			return a, err
		}
		full = round > 1
		for i := range updates {
			if updates[i].Old = a.Refs[updates[i].Ref]; updates[i].Old == "" {
				updates[i].Old = repo.Zero
			}
		}
	}
}

func (a *app) gitCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "git",
		Short: "push to and fetch from git repositories of other nodes",
		Long: `Moves commits between a repository here and one at another node ([[handler]] with builtin = "git"), as bundles on an
ordered channel. A bundle builds on what the other side has acknowledged, so that one that is lost, late or refused makes the
next one larger and nothing else. Repositories are changed by git itself, whole updates at a time.

The same as a git remote, with "git push" and "git fetch" (git-remote-mochila must be on the PATH):

  git remote add hub mochila::hub/site.git`,
	})
	c.AddCommand(a.gitPushCmd(), a.gitFetchCmd(), a.gitStatusCmd())
	return c
}

func (a *app) gitPushCmd() *cobra.Command {
	var f jobFlags
	var force, all, tags, full bool
	c := &cobra.Command{
		Use:   "push NODE/REPO [REFSPEC…]",
		Short: "send commits to a repository of another node",
		Long: `Queues an update of refs there (default: the current branch), with all commits that the node has not acknowledged. What
is on its way already is not sent again. Answers to earlier pushes are taken in first, and told.`,
		Example: `  mochila git push hub/site
  mochila git push hub/site main:refs/heads/camp/main --wait`,
		Args: takes("NODE/REPO", "[REFSPEC…]"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withRemote(c.Context(), &f, args[0], func(r *remote) error {
				specs := args[1:]
				for _, x := range []struct {
					on  bool
					dir string
				}{{all, "refs/heads"}, {tags, "refs/tags"}} {
					if x.on {
						list, err := r.Branches(x.dir)
						if err != nil {
							return err
						}
						specs = append(specs, list...)
					}
				}
				if len(specs) == 0 {
					specs = []string{"HEAD"}
				}
				updates, err := r.Resolve(specs, force)
				if err != nil {
					return &control.Error{Message: err.Error(), Exit: control.ExitData}
				}
				return a.gitPush(c.Context(), r, updates, full)
			})
		},
	}
	f.add(c, "git", "git")
	l := c.Flags()
	l.BoolVar(&force, "force", false, "also if commits there are lost by it; the node must allow that")
	l.BoolVar(&all, "all", false, "all branches")
	l.BoolVar(&tags, "tags", false, "all tags")
	l.BoolVar(&full, "full", false, "with all commits, whatever was acknowledged or is on its way")
	return c
}

func (a *app) gitPush(ctx context.Context, r *remote, updates []repo.Update, full bool) error {
	todo, flying := r.Plan(updates)
	if full {
		todo = updates
		for i := range todo {
			if todo[i].Old = r.Refs[todo[i].Ref]; todo[i].Old == "" {
				todo[i].Old = repo.Zero
			}
		}
	}
	if len(todo) == 0 {
		if len(flying) > 0 {
			a.note("mochila: on its way already: %s", strings.Join(flying, ", "))
			if r.f.wait {
				return pushed(r.wait(ctx, flying[len(flying)-1]))
			}
			return nil
		}
		a.note("mochila: %s has all of it", safe(r.Node))
		return nil
	}
	if r.f.wait {
		return pushed(r.pushAndWait(ctx, todo, full))
	}
	id, err := r.push(ctx, todo, full)
	if err != nil {
		return err
	}
	return a.showTickets([]control.RunTicket{{ID: id, Node: r.Node, Channel: r.f.channel}})
}

// pushed is the end of a push that waited.
func pushed(a *repo.Answer, err error) error {
	switch {
	case err != nil:
		return err
	case a == nil:
		return exit(control.ExitUnavailable)
	case a.Status != "ok":
		return exit(control.ExitCreate)
	}
	return nil
}

// withRemote opens a remote repository for the repository that this process is in, and takes in what has come.
func (a *app) withRemote(ctx context.Context, f *jobFlags, target string, do func(*remote) error) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	return a.jobNode(ctx, func(n *control.Client) (err error) {
		if f.wait {
			if err := needDaemon(n); err != nil {
				return err
			}
		}
		r, err := a.openRemote(n, f, dir, target)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		if err := r.settle(ctx); err != nil {
			return err
		}
		return do(r)
	})
}

func (a *app) gitFetchCmd() *cobra.Command {
	var f jobFlags
	c := &cobra.Command{
		Use:   "fetch NODE/REPO",
		Short: "ask a repository of another node for commits",
		Long: `Takes in what has come of earlier calls, and asks for what is new, unless a question is on its way. What the node has
is then in refs/mochila/NODE/REPO/heads/… here: git merge mochila/hub/site/heads/main.`,
		Args: takes("NODE/REPO"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withRemote(c.Context(), &f, args[0], func(r *remote) error {
				id, asked := r.Waits("fetch")
				if !asked {
					var err error
					if id, err = r.fetch(c.Context()); err != nil {
						return err
					}
				}
				if f.wait {
					answer, err := r.wait(c.Context(), id)
					if err == nil && answer == nil && r.Full {
						if id, err = r.fetch(c.Context()); err == nil {
							answer, err = r.wait(c.Context(), id)
						}
					}
					if err != nil {
						return err
					}
					if answer == nil {
						return exit(control.ExitUnavailable)
					}
				}
				return a.tellRemote(r)
			})
		},
	}
	f.add(c, "git", "git")
	return c
}

func (a *app) gitStatusCmd() *cobra.Command {
	var f jobFlags
	return &cobra.Command{
		Use:   "status NODE/REPO",
		Short: "tell what a repository of another node is known to have",
		Long:  "Takes in what has come, and shows the branches and tags there as its last answer said, and what has no answer yet.",
		Args:  takes("NODE/REPO"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withRemote(c.Context(), &f, args[0], a.tellRemote)
		},
	}
}

func (a *app) tellRemote(r *remote) error {
	known, err := r.Known()
	if err != nil {
		return err
	}
	if a.json {
		return a.asJSON(map[string]any{"node": r.Node, "repo": r.Name, "state": r.State, "here": known}, true)
	}
	if r.Heard.IsZero() {
		a.printf("nothing is known of %s/%s yet\n", safe(r.Node), r.Name)
	} else {
		a.printf("%s/%s as of %s:\n", safe(r.Node), r.Name, r.Heard.Local().Format("2006-01-02 15:04:05"))
	}
	rows := [][]string{}
	for ref, sha := range r.Refs {
		rows = append(rows, []string{short(sha), safe(ref), when(known[ref] != sha, "not here")})
	}
	slices.SortFunc(rows, func(x, y []string) int { return strings.Compare(x[1], y[1]) })
	if len(rows) > 0 {
		a.table(append([][]string{{"COMMIT", "REF", ""}}, rows...))
	}
	for _, p := range r.Jobs {
		var refs []string
		for _, u := range p.Updates {
			refs = append(refs, safe(u.Ref))
		}
		a.printf("no answer yet: %s of %s, job %s %s\n", p.Kind, p.At.Local().Format("2006-01-02 15:04"), p.ID, strings.Join(refs, " "))
	}
	return nil
}

// errHelper is something that git, which runs the helper, has to hear of.
func errHelper(format string, args ...any) error {
	return &control.Error{Message: fmt.Sprintf(format, args...), Exit: control.ExitSoftware}
}
