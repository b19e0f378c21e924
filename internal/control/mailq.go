package control

import (
	"bufio"
	"errors"
	"net/http"
)

// serveMailq is GET /v1/mailq, with the filters of GET /v1/queue: the queue as text in the layout of Postfix's mailq,
// written while it is read. A hundred thousand envelopes as JSON would take seconds, most of them in the reader.
// limit counts from the oldest; without it everything is listed. An answer that ends early ends in the middle of a
// chunk, which clients notice.
func (n *Node) serveMailq(w http.ResponseWriter, r *http.Request) {
	f, err := n.filterOf(r.FormValue)
	if err != nil {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := bufio.NewWriterSize(w, 64<<10)
	l := mailqWriter{w: out}
	atMost, enough := f.limit, errors.New("enough")
	err = n.eachItem(r.Context(), f, func(it QueueItem) error {
		if atMost > 0 && l.count == atMost {
			return enough
		}
		return l.item(it)
	})
	if err == nil || err == enough {
		err = l.end()
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}
