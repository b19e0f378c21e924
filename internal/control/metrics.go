package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"mochila/bridge"
	"mochila/spool"
)

// serveMetrics is GET /metrics: numbers in the text format of Prometheus, version 0.0.4.
func (n *Node) serveMetrics(w http.ResponseWriter, r *http.Request) {
	var m metrics
	if err := n.measure(&m, time.Now()); err != nil {
		http.Error(w, printable(err.Error()), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(m.text.Bytes())
}

// metrics writes families of samples.
type metrics struct {
	text bytes.Buffer
	name string
}

// family begins a family; kind is counter, gauge or histogram.
func (m *metrics) family(name, kind, help string) {
	m.name = "mochila_" + name
	fmt.Fprintf(&m.text, "# HELP %s %s\n# TYPE %s %s\n", m.name, help, m.name, kind)
}

// add writes one sample of the family; labels are names and values by turns.
func (m *metrics) add(v float64, labels ...string) { m.sample("", v, labels...) }

func (m *metrics) sample(suffix string, v float64, labels ...string) {
	m.text.WriteString(m.name + suffix)
	for i := 0; i+1 < len(labels); i += 2 {
		m.text.WriteByte("{,"[min(i, 1)])
		m.text.WriteString(labels[i] + `="` + labelEscape.Replace(printable(strings.ToValidUTF8(labels[i+1], "?"))) + `"`)
	}
	if len(labels) > 1 {
		m.text.WriteByte('}')
	}
	m.text.WriteString(" " + strconv.FormatFloat(v, 'g', -1, 64) + "\n")
}

// labelEscape is the escaping of label values; printable has dealt with line ends, by backslashes.
var labelEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// one writes a family of one sample.
func (m *metrics) one(name, kind, help string, v float64) {
	m.family(name, kind, help)
	m.add(v)
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// measure writes everything that is measured.
func (n *Node) measure(m *metrics, now time.Time) error {
	m.family("info", "gauge", "Name and version of this node; always 1.")
	m.add(1, "node", n.config().Name, "version", n.version)
	m.one("start_time_seconds", "gauge", "When this process began, in Unix seconds.", float64(n.started.Unix()))
	free, total, err := n.spool.Free()
	if err != nil {
		return err
	}
	m.one("spool_disk_free_bytes", "gauge", "Free bytes of the disk that holds the spool.", float64(free))
	m.one("spool_disk_bytes", "gauge", "Bytes of the disk that holds the spool.", float64(total))
	m.one("spool_full", "gauge", "1 when the disk reserve is reached: no mail is accepted.", boolean(n.spool.Full()))
	m.one("clock_suspect", "gauge", "1 while the clock is suspect: nothing expires.", boolean(n.bridge.ClockSuspect() != ""))
	quarantined, err := n.spool.Quarantined()
	if err != nil {
		return err
	}
	m.one("quarantine_items", "gauge", "Things that were set aside.", float64(len(quarantined)))
	if err := n.measureQueues(m, now); err != nil {
		return err
	}
	n.measureContacts(m)
	measureNumbers(m, n.bridge.Numbers())
	return nil
}

// measureQueues tells depth, size, age and receipt lag of every destination. Those of the peers are there without mail, too.
func (n *Node) measureQueues(m *metrics, now time.Time) error {
	counts, err := n.spool.Counts()
	if err != nil {
		return err
	}
	have := map[spool.Dest]bool{}
	for _, c := range counts {
		have[c.Dest] = true
	}
	for _, p := range n.bridge.Policy().Peers {
		if d := spool.NodeDest(p.ID); !have[d] {
			counts = append(counts, spool.Count{Dest: d})
		}
	}
	names := make([]string, len(counts))
	for i := range counts {
		names[i] = n.destName(counts[i].Dest)
	}
	m.family("queue_envelopes", "gauge", "Envelopes in the queue of a destination, by state.")
	for i := range counts {
		for _, st := range []spool.State{spool.Due, spool.Deferred, spool.Held, spool.Sealed, spool.Travelling, spool.Arrived} {
			m.add(float64(counts[i].States[st]), "dest", names[i], "state", st.String())
		}
	}
	m.family("queue_bytes", "gauge", "Content in the queue of a destination, in bytes.")
	for i := range counts {
		m.add(float64(counts[i].Bytes), "dest", names[i])
	}
	m.family("queue_oldest_seconds", "gauge", "Age of the oldest envelope in the queue of a destination; 0 when it is empty.")
	for i := range counts {
		age := 0.0
		if !counts[i].Oldest.IsZero() {
			age = max(now.Sub(counts[i].Oldest).Seconds(), 0)
		}
		m.add(age, "dest", names[i])
	}
	m.family("receipt_lag_seconds", "gauge", "How long the oldest envelope to a node has been out of this node's hands without receipt; 0 when none is.")
	for i := range counts {
		if _, ok := counts[i].Dest.Node(); !ok {
			continue
		}
		lag, err := n.bridge.ReceiptLag(counts[i].Dest)
		if err != nil {
			return err
		}
		m.add(lag.Seconds(), "dest", names[i])
	}
	return nil
}

// measureContacts tells when neighbours were met.
func (n *Node) measureContacts(m *metrics) {
	contacts := n.bridge.Contacts()
	each := func(f func(c *bridge.ContactView, labels ...string)) {
		for i := range contacts {
			c := &contacts[i]
			f(c, "node", c.Contact.NodeName, "carrier", bridge.PublicURL(c.Contact.URL))
		}
	}
	unix := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return float64(t.UnixMilli()) / 1000
	}
	m.family("contact_last_success_timestamp_seconds", "gauge", "When a contact went well last, in Unix seconds; 0 for never.")
	each(func(c *bridge.ContactView, l ...string) { m.add(unix(c.OK), l...) })
	m.family("contact_last_attempt_timestamp_seconds", "gauge", "When a contact was tried last, in Unix seconds; 0 for never.")
	each(func(c *bridge.ContactView, l ...string) { m.add(unix(c.Last), l...) })
	m.family("contact_failing", "gauge", "1 when the last attempt of a contact failed.")
	each(func(c *bridge.ContactView, l ...string) { m.add(boolean(c.Err != ""), l...) })
	m.family("contact_running", "gauge", "1 while a contact is under way.")
	each(func(c *bridge.ContactView, l ...string) { m.add(boolean(c.Running), l...) })
	m.family("peer_heard_timestamp_seconds", "gauge", "When a node was heard last, by any way, in Unix seconds; 0 for never.")
	for _, p := range n.bridge.Policy().Peers {
		m.add(unix(n.bridge.Heard(p.ID)), "node", p.Name)
	}
}

// measureNumbers tells what has happened since the start.
func measureNumbers(m *metrics, c bridge.Numbers) {
	m.one("mails_entered_total", "counter", "Mails that entered the queue: accepted here, from other nodes, and notices.", float64(c.Mails))
	m.one("recipients_entered_total", "counter", "Their recipients.", float64(c.Recipients))
	m.one("bytes_entered_total", "counter", "Their content, in bytes.", float64(c.Bytes))
	m.one("recipients_sealed_total", "counter", "Recipients given to carriers, again ones included.", float64(c.Sealed))
	m.one("notices_total", "counter", "Delivery status notifications written here.", float64(c.Notices))
	m.one("summaries_total", "counter", "Summaries that went ahead of mail which is held until a reader asks.", float64(c.Summaries))
	m.one("summaries_released_total", "counter", "Mails that were let go because a reader asked.", float64(c.Released))
	m.family("recipients_tried_total", "counter", "Results for recipients, by the word of the log: sent, deferred, bounced, arrived, expired.")
	words := []string{"sent", "deferred", "bounced"}
	for w := range c.Tries {
		if !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	slices.Sort(words)
	for _, w := range words {
		m.add(float64(c.Tries[w]), "result", w)
	}
	m.family("delivery_delay_seconds", "histogram", "From a mail's entry here to its recipient's delivery.")
	sum := uint64(0)
	for i, k := range c.Delays {
		sum += k
		bound := math.Inf(1)
		if i < len(bridge.DelayBounds) {
			bound = bridge.DelayBounds[i].Seconds()
		}
		m.sample("_bucket", float64(sum), "le", strconv.FormatFloat(bound, 'f', -1, 64))
	}
	m.sample("_sum", c.Delay.Seconds())
	m.sample("_count", float64(sum))
}

// listenMetrics serves /metrics, and nothing else, where the configuration says.
func (d *daemon) listenMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", d.serveMetrics)
	for _, addr := range d.config().Metrics.Listen {
		ln, err := d.sockets.listen(addr)
		if err != nil {
			return &Error{Message: fmt.Sprintf("listen for monitoring on %s: %v", addr, err), Hint: "change [metrics] listen", Exit: ExitUnavailable}
		}
		d.listens = append(d.listens, "metrics:"+addr)
		srv := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 8 << 10,
			BaseContext: func(net.Listener) context.Context { return ctx }}
		d.metrics = append(d.metrics, srv)
		d.run(ctx, "metrics listener "+addr, func(context.Context) error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	return nil
}
