package control

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"time"

	"mochila/bridge"
	"mochila/bridge/jobs"
	"mochila/transport"
	"mochila/transport/letter"
)

// oneLetter is a Submitter that writes each packet as a whole mail.
type oneLetter struct {
	w     io.Writer
	cover letter.Cover
}

func (o *oneLetter) Submit(_ context.Context, p *transport.Packet) error {
	r, err := p.Open(0)
	if err != nil {
		return err
	}
	defer r.Close()
	return letter.Write(o.w, o.cover, letter.Part{Packet: p.ID, Size: p.Size, Length: p.Size}, r)
}

func (o *oneLetter) String() string { return "mail:" + o.cover.To }

// jobMail is GET /v1/jobs/ID/mail: the job, sealed, as a mail. An error after its first bytes cuts the answer off, and the
// job is due again.
func (n *Node) jobMail(w http.ResponseWriter, r *http.Request) {
	refuse := func(err error) {
		answer(w, r, func(*http.Request) (any, error) { return nil, err })
	}
	if by := makerOf(r); by.limited {
		refuse(&Error{Message: by.user + " may not take jobs out as mail", Hint: "be root, or in the group of the control socket", Exit: ExitDenied})
		return
	}
	id, err := n.resolve(r.PathValue("id"))
	if err != nil {
		refuse(err)
		return
	}
	v, err := n.bridge.Jobs().Show(id)
	if err != nil {
		refuse(jobError(err))
		return
	}
	from := r.FormValue("from")
	if from == "" {
		from = n.config().Postmaster
	}
	if from, err = n.resultAddress(from); err != nil {
		refuse(err)
		return
	}
	var mark [8]byte
	rand.Read(mark[:])
	out := &firstByte{w: w}
	b := bufio.NewWriterSize(out, 32<<10)
	cover := letter.Cover{From: from, To: "mochila@" + n.nodeName(v.Peer) + ".mochila", Date: time.Now()}
	name := "mail:" + hex.EncodeToString(mark[:])
	err = n.bridge.Mailing(r.Context(), id, name, transport.NewSubmitLink(&oneLetter{b, cover}, transport.SubmitOptions{Log: n.log}))
	if err == nil {
		if err = b.Flush(); err != nil {
			err = errors.Join(err, n.bridge.Unexport(name))
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, bridge.ErrLeft), errors.Is(err, jobs.ErrNotFound):
		refuse(&Error{Message: err.Error(), Hint: "mochila jobs show " + id.String(), Exit: ExitData})
	case !out.written:
		refuse(err)
	default:
		n.log.Warn("a job as mail was cut off", "id", id.String(), "err", err)
		panic(http.ErrAbortHandler) // the reader sees that it is not whole
	}
}

// firstByte sends the header of the answer with its first byte.
type firstByte struct {
	w       http.ResponseWriter
	written bool
}

func (f *firstByte) Write(p []byte) (int, error) {
	if !f.written {
		f.written = true
		f.w.Header().Set("Content-Type", "message/rfc822")
	}
	return f.w.Write(p)
}
