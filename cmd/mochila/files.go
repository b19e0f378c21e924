package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mochila/bridge/jobs/tree"
	"mochila/internal/control"
)

// jobFlags are the flags of the commands that make a job of a built-in handler.
type jobFlags struct {
	channel, handler, expires string
	wait                      bool
	priority                  int
}

func (f *jobFlags) add(c *cobra.Command, channel, handler string) {
	l := c.Flags()
	l.StringVar(&f.channel, "channel", channel, "`name` of the channel")
	l.StringVar(&f.handler, "handler", handler, "`name` of the handler there")
	l.StringVar(&f.expires, "expires", "", "not started after this `time`: 2d, or 2026-12-24T18:00:00Z")
	l.IntVar(&f.priority, "priority", 0, "-9 to 9: which bundles leave first")
	l.BoolVar(&f.wait, "wait", false, "wait for the result")
}

// request begins the request for a job.
func (a *app) jobRequest(f *jobFlags, node string, args ...string) (q control.RunRequest, err error) {
	q = control.RunRequest{Nodes: []string{node}, Channel: f.channel, Handler: f.handler, Priority: f.priority}
	for _, s := range args {
		q.RawArgs = append(q.RawArgs, []byte(s))
	}
	q.Expires, err = a.when("--expires", f.expires)
	return q, err
}

// enqueue makes a job whose input comes from in.
func (a *app) enqueue(ctx context.Context, n *control.Client, q control.RunRequest, in io.Reader) ([]control.RunTicket, error) {
	head, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	var r control.RunReply
	if err := n.Upload(ctx, "/v1/run", io.MultiReader(bytes.NewReader(append(head, '\n')), in), &r); err != nil {
		return nil, err
	}
	return r.Jobs, nil
}

// enqueueFrom is enqueue for input that write writes. Nothing is stored when that fails.
func (a *app) enqueueFrom(ctx context.Context, n *control.Client, q control.RunRequest, write func(io.Writer) error) ([]control.RunTicket, error) {
	r, w := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		buf := bufio.NewWriterSize(w, 256<<10)
		err := write(buf)
		if err == nil {
			err = buf.Flush()
		}
		w.CloseWithError(err)
		failed <- err
	}()
	list, err := a.enqueue(ctx, n, q, r)
	r.Close()
	if werr := <-failed; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return nil, werr
	}
	return list, err
}

// needDaemon refuses to wait where nobody works meanwhile.
func needDaemon(n *control.Client) error {
	if n.Daemon() {
		return nil
	}
	return &control.Error{Message: "no daemon runs: nobody would carry the job while this waits", Hint: "mochila serve; or without --wait, and mochila sync", Exit: exitRun}
}

func (a *app) sendCmd() *cobra.Command {
	var f jobFlags
	c := &cobra.Command{
		Use:   "send FILE… NODE:[DIR]",
		Short: "send files and folders to another node",
		Long: `Stores files and folders for another node, which puts them into DIR, below a folder that its configuration opens to
this node ([[handler]] with builtin = "file"). Each FILE appears there whole or not at all, a folder with all that is in
it; it does not take the place of another unless the node there says so. Permission bits and times travel, owners do not;
links that lead out of a FILE, sockets and devices are left out and named.

When the command returns, the content is on this node's disk. Files of one channel arrive in the order they were sent.`,
		Example: `  mochila send report.pdf hub:
  mochila send photos/ notes.txt hub:expedition/2026 --wait`,
		Args: takes("FILE", "NODE:[DIR]…"),
		RunE: func(c *cobra.Command, args []string) error {
			files, goal := args[:len(args)-1], args[len(args)-1]
			node, dir, ok := strings.Cut(goal, ":")
			if !ok || node == "" || len(files) == 0 {
				return usageError("mochila send FILE… NODE:", "%q is not NODE: or NODE:DIR", goal)
			}
			var to []string
			if dir != "" {
				to = []string{dir}
			}
			q, err := a.jobRequest(&f, node, to...)
			if err != nil {
				return err
			}
			sources, done, err := localSources(files)
			if err != nil {
				return err
			}
			defer done()
			return a.jobNode(c.Context(), func(n *control.Client) error {
				if f.wait {
					if err := needDaemon(n); err != nil {
						return err
					}
				}
				list, err := a.enqueueFrom(c.Context(), n, q, func(w io.Writer) error {
					_, err := tree.Pack(w, sources, func(text string) { a.note("mochila: %s", safe(text)) })
					return err
				})
				if err != nil {
					return err
				}
				if f.wait {
					return a.await(c.Context(), n, list)
				}
				return a.showTickets(list)
			})
		},
	}
	f.add(c, "files", "file")
	return c
}

// localSources opens what a command line names. A name that is a link means what it leads to.
func localSources(files []string) (list []tree.Source, done func(), err error) {
	roots := map[string]*os.Root{}
	done = func() {
		for _, r := range roots {
			r.Close()
		}
	}
	for _, name := range files {
		abs, err := filepath.Abs(name)
		if err == nil && abs == "/" {
			err = usageError("name the folders in it", "/ is not one folder to send")
		}
		real := ""
		if err == nil {
			real, err = filepath.EvalSymlinks(abs)
		}
		if err != nil {
			done()
			if errors.Is(err, os.ErrNotExist) {
				err = &control.Error{Message: fmt.Sprintf("there is no %q", name), Exit: control.ExitNoInput}
			}
			return nil, nil, err
		}
		dir := filepath.Dir(real)
		if roots[dir] == nil {
			root, err := os.OpenRoot(dir)
			if err != nil {
				done()
				return nil, nil, err
			}
			roots[dir] = root
		}
		list = append(list, tree.Source{Root: roots[dir], Path: filepath.Base(real), Name: filepath.Base(abs)})
	}
	return list, done, nil
}

func (a *app) getCmd() *cobra.Command {
	var f jobFlags
	var overwrite, job string
	c := &cobra.Command{
		Use:   "get NODE:PATH… [DIR]",
		Short: "ask another node for files and folders",
		Long: `Asks for files and folders below one that the other node opens to this one ([[handler]] with builtin = "get"). PATH may
hold *, ? and [a-z]: quote them. The answer comes as fast as the carriers allow: with --wait the command waits for
it and puts it into DIR (default: here); otherwise --job ID does so later. The answer is a tar file, which
mochila jobs show ID --stdout prints.

What came is put into its place whole or not at all, and does not take the place of anything, unless --overwrite says so.`,
		Example: `  mochila get 'hub:logs/*.gz' hub:report.pdf --wait
  mochila get hub:/srv/maps; mochila get --job ID ~/maps`,
		Args: func(c *cobra.Command, args []string) error {
			if job != "" {
				return takes("[DIR]")(c, args)
			}
			return takes("NODE:PATH…", "[DIR]")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			how := tree.Overwrite(overwrite)
			if !slices.Contains([]tree.Overwrite{tree.Never, tree.Replace, tree.Rename}, how) {
				return usageError("never, replace or rename", "--overwrite %q", overwrite)
			}
			if job != "" {
				return a.jobNode(c.Context(), func(n *control.Client) error { return a.landJob(c.Context(), n, job, folderOf(args), how) })
			}
			node, paths, dir, err := remotePaths(args)
			if err != nil {
				return err
			}
			q, err := a.jobRequest(&f, node, paths...)
			if err != nil {
				return err
			}
			q.Unordered = true
			return a.jobNode(c.Context(), func(n *control.Client) error {
				if f.wait {
					if err := needDaemon(n); err != nil {
						return err
					}
				}
				list, err := a.enqueue(c.Context(), n, q, strings.NewReader(""))
				if err != nil {
					return err
				}
				if f.wait {
					return a.landJob(c.Context(), n, list[0].ID, dir, how)
				}
				if !a.json {
					a.note("mochila: when the answer is here: mochila get --job %s", list[0].ID)
				}
				return a.showTickets(list)
			})
		},
	}
	f.add(c, "get", "get")
	c.Flags().StringVar(&overwrite, "overwrite", "never", "what to do with names that are taken: never, replace or rename")
	c.Flags().StringVar(&job, "job", "", "put into its place what the job with this `id` has brought")
	return c
}

func folderOf(args []string) string {
	if len(args) > 0 {
		return args[len(args)-1]
	}
	return "."
}

// remotePaths reads NODE:PATH… [DIR].
func remotePaths(args []string) (node string, paths []string, dir string, err error) {
	dir = "."
	for i, s := range args {
		name, path, ok := strings.Cut(s, ":")
		switch {
		case ok && !strings.Contains(name, "/") && name != "" && path != "":
			if node != "" && name != node {
				return "", nil, "", usageError("one node at a time", "%s and %s", node, name)
			}
			node = name
			paths = append(paths, path)
		case i == len(args)-1 && i > 0:
			dir = s
		default:
			return "", nil, "", usageError("mochila get NODE:PATH… [DIR]", "%q is not NODE:PATH", s)
		}
	}
	return node, paths, dir, nil
}

// landJob waits for a job of get if need be, and puts what it has brought into a folder.
func (a *app) landJob(ctx context.Context, n *control.Client, id, dir string, how tree.Overwrite) error {
	var it control.JobItem
	path := "/v1/jobs/" + url.PathEscape(id)
	err := n.Get(ctx, path, &it)
	if err == nil && it.Result == nil && !it.Ended {
		if err = needDaemon(n); err != nil {
			return &control.Error{Message: fmt.Sprintf("there is no answer to job %s yet", id), Hint: "mochila sync", Exit: control.ExitTemp}
		}
		it, err = awaitOne(ctx, n, id)
	}
	if ctx.Err() != nil {
		a.note("mochila: the job goes on; mochila get --job %s brings it in later", id)
		return exit(exitRun)
	}
	if err != nil {
		return err
	}
	if it.Result == nil || it.Result.State != "done" {
		if err := a.passOn(ctx, n, it, false); err != nil {
			return err
		}
		return exit(statusOf(it))
	}
	if it.Result.Stderr > 0 {
		if err := n.Raw(ctx, path+"/stderr", a.env.Stderr); err != nil {
			return err
		}
	}
	return a.land(ctx, n, it, dir, how)
}

// land puts the tree that a job has brought into a folder.
func (a *app) land(ctx context.Context, n *control.Client, it control.JobItem, dir string, how tree.Overwrite) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return &control.Error{Message: err.Error(), Exit: control.ExitCreate}
	}
	defer root.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(n.Raw(ctx, "/v1/jobs/"+url.PathEscape(it.ID)+"/stdout", w)) }()
	done, err := tree.Unpack(bufio.NewReaderSize(r, 256<<10), tree.Place{Root: root, Dir: ".", Key: it.ID, Overwrite: how, Size: it.Result.Stdout})
	r.Close()
	switch {
	case errors.Is(err, tree.ErrTaken):
		return &control.Error{Message: fmt.Sprintf("what came was not put into %q: %v", dir, err),
			Hint: fmt.Sprintf("mochila get --job %s --overwrite replace, or rename; or another folder", it.ID), Exit: control.ExitCreate}
	case err != nil:
		return err
	}
	if a.json {
		return a.asJSON(map[string]any{"job": it.ID, "names": done.Names, "files": done.Files, "bytes": done.Bytes, "sha256": done.Sum}, true)
	}
	for _, name := range done.Names {
		a.printf("%s\n", safe(filepath.Join(dir, name)))
	}
	a.note("%v", done.Summary)
	return nil
}
