package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"mochila/internal/control"
)

// hardMessage is content that programs break.
type hardMessage struct {
	name string
	data []byte
}

// hardMessages are the same at each call.
func hardMessages() []hardMessage {
	r := rand.New(rand.NewPCG(1860, 4))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	text := func(s string) []byte { return []byte("Subject: selftest\r\n\r\n" + s) }
	return []hardMessage{
		{"empty", nil},
		{"one byte", []byte{0}},
		{"all byte values", every},
		{"NUL inside of text", text("a\x00b\r\n")},
		{"bare CR and bare LF", text("a\rb\nc\r\r\nd\n\r")},
		{"lone dots", text(".\r\n..\r\n.\r\n\r\n.\r\n")},
		{"end of data for careless servers", text("\n.\n\r.\r\r\n.\r\nMAIL FROM:<>\r\n")},
		{"From at the line start", text("From ana Thu Jan  1 00:00:00 2026\r\n>From\r\n")},
		{"8 bit", text("caf\xe9 \xff\xfe\x80\r\n")},
		{"UTF-8", text("Grüße, 早上好\r\n")},
		{"a line of 100,000 bytes", text(strings.Repeat("x", 100_000) + "\r\n")},
		{"no line end", text("last")},
		{"white space at line ends", text("a   \r\n\t\r\n \r\n\r\n\r\n")},
		{"one chunk and a byte", noise(64<<10 + 1)},
		{"two MiB that do not compress", noise(2 << 20)},
		{"two MiB that compress", bytes.Repeat([]byte("mochila "), 256<<10)},
	}
}

// selfTested is what came of one message.
type selfTested struct {
	Message string `json:"message"`
	Size    int    `json:"size"`
	OK      bool   `json:"ok"`
	Why     string `json:"why,omitempty"`
}

// selfTest sends every hard message to a node and compares what it says has come. The node answers like to a ping.
func (a *app) selfTest(ctx context.Context, n *control.Client, node string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f := jobFlags{channel: "ping", handler: "ping"}
	all := hardMessages()
	ids := make([]string, len(all))
	for i, m := range all {
		q, err := a.jobRequest(&f, node)
		if err != nil {
			return err
		}
		q.Unordered = true
		list, err := a.enqueue(ctx, n, q, bytes.NewReader(m.data))
		if err != nil {
			return err
		}
		ids[i] = list[0].ID
	}
	var out []selfTested
	failed := 0
	for i, m := range all {
		t := selfTested{Message: m.name, Size: len(m.data), Why: a.sameThere(ctx, n, ids[i], m.data)}
		t.OK = t.Why == ""
		if !t.OK {
			failed++
		}
		out = append(out, t)
		if !a.json {
			word := "the same there"
			if !t.OK {
				word = t.Why
			}
			a.printf("%-34s %9d bytes  %s\n", m.name, t.Size, safe(word))
		}
	}
	if a.json {
		if err := a.asJSON(out, false); err != nil {
			return err
		}
	}
	if failed == 0 {
		return nil
	}
	a.note("mochila: %d of %d messages did not arrive as they were sent", failed, len(all))
	if ctx.Err() != nil {
		return exit(control.ExitTemp)
	}
	return exit(control.ExitData)
}

// sameThere says what is wrong with the answer about one message, "" when nothing is.
func (a *app) sameThere(ctx context.Context, n *control.Client, id string, sent []byte) string {
	it, err := awaitOne(ctx, n, id)
	switch {
	case err != nil:
		return err.Error()
	case it.Result == nil:
		return "no answer yet: mochila ping --job " + id
	case it.Result.State != "done":
		return it.Result.State + ": " + it.Result.Reason
	}
	var b bytes.Buffer
	var pong control.Pong
	if err := n.Raw(ctx, "/v1/jobs/"+url.PathEscape(id)+"/stdout", &b); err != nil {
		return err.Error()
	}
	if err := json.Unmarshal(b.Bytes(), &pong); err != nil {
		return "the answer is not to be read: " + err.Error()
	}
	sum := sha256.Sum256(sent)
	switch {
	case pong.Sum == "":
		return "that node's version does not say what has come"
	case pong.Size != int64(len(sent)):
		return fmt.Sprintf("%d bytes came", pong.Size)
	case pong.Sum != hex.EncodeToString(sum[:]):
		return "other bytes came"
	}
	return ""
}
