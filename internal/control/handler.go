package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"mochila/spool"
)

// maxRequest bounds the JSON of a request.
const maxRequest = 1 << 20

// Handler serves the verbs of docs/control.md.
func (n *Node) Handler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, f) })
	}
	post := func(path string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, f) })
	}
	ok := map[string]bool{"ok": true}
	get("/v1/status", func(*http.Request) (any, error) { return n.status() })
	get("/v1/queue", func(r *http.Request) (any, error) {
		f, err := n.filterOf(r.FormValue)
		if err != nil {
			return nil, err
		}
		return n.list(f)
	})
	get("/v1/trace/{id}", func(r *http.Request) (any, error) { return n.trace(r.PathValue("id")) })
	get("/v1/route", func(r *http.Request) (any, error) {
		size, _ := strconv.ParseInt(r.FormValue("size"), 10, 64)
		return n.routeTest(r.FormValue("from"), r.FormValue("to"), size), nil
	})
	get("/v1/card", func(*http.Request) (any, error) {
		c := n.keys.Card()
		return map[string]any{"name": c.Name, "id": c.ID.String(), "card": c.Text(), "bytes": c.Bytes()}, nil
	})
	get("/v1/peers", func(*http.Request) (any, error) { return n.peers(), nil })
	get("/v1/check", func(r *http.Request) (any, error) { return n.check(r.Context()), nil })
	get("/v1/quarantine", func(*http.Request) (any, error) { return n.quarantined() })
	mux.HandleFunc("GET /v1/content/{id}", n.serveContent)
	mux.HandleFunc("GET /v1/mailq", n.serveMailq)
	mux.HandleFunc("GET /metrics", n.serveMetrics)
	get("/v1/qshape", func(r *http.Request) (any, error) { return n.shape(r) })
	post("/v1/queue", func(r *http.Request) (any, error) {
		var a QueueAction
		if err := decode(r, &a); err != nil {
			return nil, err
		}
		return n.act(a)
	})
	post("/v1/flush", func(r *http.Request) (any, error) {
		var q FlushRequest
		if r.ContentLength != 0 { // none means everything
			if err := decode(r, &q); err != nil {
				return nil, err
			}
		}
		return n.flushSite(r.Context(), q.Site)
	})
	post("/v1/reload", func(*http.Request) (any, error) { return ok, n.Reload() })
	post("/v1/invite", func(r *http.Request) (any, error) {
		var q InviteRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return n.invite(r.Context(), q)
	})
	post("/v1/join", func(r *http.Request) (any, error) {
		var q JoinRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return n.join(r.Context(), q)
	})
	post("/v1/peers", func(r *http.Request) (any, error) {
		var q PeerAdd
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return n.addPeer(q)
	})
	post("/v1/peers/remove", func(r *http.Request) (any, error) {
		var q struct{ Name string }
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return ok, n.removePeer(q.Name)
	})
	get("/v1/dkim", func(*http.Request) (any, error) { return n.dkimRecords() })
	get("/v1/users", func(*http.Request) (any, error) { return n.users() })
	for path, f := range map[string]func(User) (*User, error){"/v1/users": n.addUser, "/v1/users/password": n.changeUser} {
		post(path, func(r *http.Request) (any, error) {
			var q User
			if err := decode(r, &q); err != nil {
				return nil, err
			}
			return f(q)
		})
	}
	post("/v1/users/remove", func(r *http.Request) (any, error) {
		var q struct{ Name string }
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return ok, n.removeUser(q.Name)
	})
	post("/v1/contact/{verb}", func(r *http.Request) (any, error) {
		var q struct{ Node string }
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return ok, n.pause(q.Node, r.PathValue("verb"))
	})
	post("/v1/clock/accept", func(*http.Request) (any, error) { return ok, n.bridge.AcceptClock() })
	post("/v1/restored", func(*http.Request) (any, error) { return ok, n.bridge.Restored("an operator said so") })
	post("/v1/quarantine/remove", func(r *http.Request) (any, error) {
		var q struct{ Name string }
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return ok, n.spool.RemoveQuarantined(q.Name)
	})
	post("/v1/fsck", func(r *http.Request) (any, error) { return n.fsck(r.FormValue("fix") == "1") })
	post("/v1/receive", func(r *http.Request) (any, error) {
		return n.receive(r.Context(), r.URL.Query().Get("from"), r.Body)
	})
	post("/v1/receive/mail", func(r *http.Request) (any, error) {
		return n.receiveMail(r.Context(), r.URL.Query().Get("sender"), r.Body)
	})
	mux.HandleFunc("GET /v1/pipe/{id}", n.servePipe)
	mux.HandleFunc("POST /v1/sync", n.serveSync)
	mux.HandleFunc("POST /v1/export", n.serveExport)
	post("/v1/export/undo", func(r *http.Request) (any, error) {
		var q struct{ Exports []string }
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return ok, n.unexport(q.Exports)
	})
	post("/v1/import", func(r *http.Request) (any, error) { return n.importStream(r.Context(), r.Body) })
	n.jobVerbs(mux)
	return mux
}

// answer writes what a verb returns as JSON, or its error.
func answer(w http.ResponseWriter, r *http.Request, f func(*http.Request) (any, error)) {
	v, err := f(r)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := asError(err)
		w.WriteHeader(statusCode(e.Exit))
		json.NewEncoder(w).Encode(e)
		return
	}
	json.NewEncoder(w).Encode(v)
}

// asError gives any error its place in the API.
func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, spool.ErrFull):
		return &Error{Message: err.Error(), Hint: "make room on the disk of the spool", Exit: ExitTemp}
	case errors.Is(err, spool.ErrNotFound):
		return &Error{Message: err.Error(), Exit: ExitData}
	case errors.Is(err, context.Canceled):
		return &Error{Message: "interrupted", Exit: ExitTemp}
	}
	return hintOf(err, ExitSoftware)
}

func statusCode(exit int) int {
	switch exit {
	case ExitUsage, ExitData, ExitConfig:
		return http.StatusBadRequest
	case ExitNoInput:
		return http.StatusNotFound
	case ExitDenied:
		return http.StatusForbidden
	case ExitTemp, ExitUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func decode(r *http.Request, v any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &Error{Message: "read the request: " + err.Error(), Exit: ExitUsage}
	}
	return nil
}

func (n *Node) serveContent(w http.ResponseWriter, r *http.Request) {
	c, err := n.content(r.PathValue("id"))
	if err != nil {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	defer c.Close()
	w.Header().Set("Content-Type", "message/rfc822")
	io.Copy(w, c)
}

// serveSync streams JSON lines.
func (n *Node) serveSync(w http.ResponseWriter, r *http.Request) {
	var q SyncRequest
	if err := decode(r, &q); err != nil {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	began := false
	enc := json.NewEncoder(w)
	write := func(l SyncLine) error {
		if !began {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		began = true
		if err := enc.Encode(l); err != nil {
			return err
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		return nil
	}
	if err := n.sync(r.Context(), q, write); err != nil {
		if !began {
			answer(w, r, func(*http.Request) (any, error) { return nil, err })
			return
		}
		write(SyncLine{Error: err.Error(), End: true})
		return
	}
	write(SyncLine{End: true})
}

func (n *Node) quarantined() ([]QuarantineItem, error) {
	list, err := n.spool.Quarantined()
	if err != nil {
		return nil, err
	}
	out := []QuarantineItem{}
	for _, e := range list {
		out = append(out, QuarantineItem{Name: e.Name, At: e.At, Reason: e.Reason, From: e.From, Size: e.Size})
	}
	return out, nil
}

func (n *Node) fsck(fix bool) (*FsckReport, error) {
	r, err := n.spool.Fsck(fix)
	if err != nil {
		return nil, err
	}
	out := &FsckReport{OK: r.OK(), Lines: []string{fmt.Sprintf("%d envelopes, %d ended ones in the trace, %d contents with %d bytes", r.Items, r.Trace, r.Bodies, r.Bytes)}}
	for _, p := range r.Problems {
		line := p.Kind + ": " + p.Detail
		if !p.ID.IsZero() {
			line = p.Kind + ": " + p.ID.String() + ": " + p.Detail
		}
		if p.Fixed {
			line += " (mended)"
		}
		out.Lines = append(out.Lines, line)
	}
	return out, nil
}

// pause stops or resumes the contacts with a node, until the next restart.
func (n *Node) pause(name, verb string) error {
	if verb != "pause" && verb != "resume" {
		return &Error{Message: fmt.Sprintf("a contact cannot %q", verb), Hint: "pause or resume", Exit: ExitUsage}
	}
	known := false
	for _, c := range n.config().Contacts {
		known = known || c.Name == name || c.Node == name
	}
	if !known {
		return &Error{Message: fmt.Sprintf("there is no contact %q", name), Hint: "mochila status lists them", Exit: ExitUsage}
	}
	n.reading.Lock()
	defer n.reading.Unlock()
	n.mu.Lock()
	n.paused[name] = verb == "pause"
	n.mu.Unlock()
	p, err := n.policy(n.config())
	if err != nil {
		return err
	}
	n.bridge.SetPolicy(p)
	return nil
}
