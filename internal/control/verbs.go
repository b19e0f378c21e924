package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mochila/bridge"
	"mochila/internal/config"
	"mochila/internal/envelope"
	"mochila/internal/seal"
	"mochila/spool"
	"mochila/transport"
	"mochila/transport/all"
)

// act is POST /v1/queue.
func (n *Node) act(a QueueAction) (*QueueActed, error) {
	what, err := n.actOf(a)
	if err != nil {
		return nil, err
	}
	ids, err := n.meant(a)
	if err != nil {
		return nil, err
	}
	out := &QueueActed{Done: []string{}}
	for _, id := range ids {
		if a.DryRun {
			out.Done = append(out.Done, id.String())
			continue
		}
		err := n.bridge.Act(id, what)
		if errors.Is(err, spool.ErrNotFound) {
			if len(ids) == 1 && a.Where == nil {
				return nil, &Error{Message: fmt.Sprintf("%s has ended", id), Hint: "mochila trace " + id.String(), Exit: ExitData}
			}
			continue
		}
		if errors.Is(err, bridge.ErrNoChange) {
			if len(ids) == 1 && a.Where == nil {
				return nil, &Error{Message: fmt.Sprintf("%s: %v", id, err), Hint: "mochila trace " + id.String(), Exit: ExitData}
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		out.Done = append(out.Done, id.String())
	}
	return out, nil
}

// actOf checks what is to be done.
func (n *Node) actOf(a QueueAction) (bridge.Act, error) {
	what := bridge.Act{Verb: bridge.Verb(a.Verb), Reason: a.Reason, Priority: a.Priority}
	switch what.Verb {
	case bridge.VerbHold, bridge.VerbRelease, bridge.VerbRetry, bridge.VerbExpire, bridge.VerbBounce, bridge.VerbRemove:
	case bridge.VerbPriority:
		if a.Priority < -9 || a.Priority > 9 {
			return what, &Error{Message: fmt.Sprintf("priority %d", a.Priority), Hint: "from -9 to 9, urgent is 9", Exit: ExitUsage}
		}
	case bridge.VerbReroute:
		if a.To == "" {
			break
		}
		what.To = n.destOf(a.To)
		if via, ok := what.To.Via(); ok && !n.delivers(via) || what.To == spool.DeadDest {
			return what, &Error{Message: fmt.Sprintf("%q is neither a node nor a delivery of this node", printable(a.To)), Hint: "mochila peer list; or what stands at [[deliver]] via, word for word", Exit: ExitUsage}
		}
	default:
		return what, &Error{Message: fmt.Sprintf("unknown verb %q", a.Verb), Hint: "hold, release, retry, expire, bounce, reroute, priority or remove", Exit: ExitUsage}
	}
	return what, nil
}

// delivers reports whether mail is delivered in this way by the configuration: an operator's word may send mail elsewhere,
// not start programs.
func (n *Node) delivers(via string) bool {
	cfg := n.config()
	return cfg.Bounce.Via == via || slices.ContainsFunc(cfg.Delivers, func(d config.Deliver) bool { return d.Via == via })
}

// meant lists the envelopes that an action is about.
func (n *Node) meant(a QueueAction) (ids []envelope.ID, err error) {
	all := func(f queueFilter) error {
		return n.eachItem(context.Background(), f, func(q QueueItem) error {
			id, err := envelope.ParseID(q.QueueID)
			ids = append(ids, id)
			return err
		})
	}
	if a.Where != nil {
		if len(a.IDs) > 0 {
			return nil, &Error{Message: "ids and a filter at once", Exit: ExitUsage}
		}
		f, err := n.filterOf(func(key string) string { return a.Where[key] })
		if err != nil {
			return nil, err
		}
		if f.plain() {
			return nil, &Error{Message: "the filter leaves nothing out", Hint: "ALL means every envelope", Exit: ExitUsage}
		}
		return ids, all(f)
	}
	for _, text := range a.IDs {
		if strings.EqualFold(text, "ALL") {
			if err := all(queueFilter{}); err != nil {
				return nil, err
			}
			continue
		}
		id, err := n.resolve(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// flushSite is POST /v1/flush: what a person names leads somewhere, or he hears that it does not.
func (n *Node) flushSite(ctx context.Context, site string) (*FlushReply, error) {
	dest, ok := n.siteDest(site)
	if site != "" && !ok {
		return nil, &Error{Message: fmt.Sprintf("%q is neither a peer nor does mail for it go anywhere", site), Hint: "mochila status names the peers", Exit: ExitUsage}
	}
	r := &FlushReply{}
	if dest != "" {
		r.Dest = n.destName(dest)
	}
	return r, n.flush(ctx, site)
}

// flush makes what waits for a site due now: for the peer of that name, or for wherever mail to that domain or address
// goes. Without a site, and for one that leads nowhere, it is everything: more than was asked for, never less.
func (n *Node) flush(_ context.Context, site string) error {
	dest, _ := n.siteDest(site)
	return n.bridge.FlushTo(dest)
}

// siteDest finds the queue of a site.
func (n *Node) siteDest(site string) (spool.Dest, bool) {
	if site == "" {
		return "", false
	}
	for _, p := range n.bridge.Policy().Peers {
		if p.Name == site {
			return spool.NodeDest(p.ID), true
		}
	}
	if !strings.Contains(site, "@") {
		site = "postmaster@" + site
	}
	d, err := n.bridge.Policy().Routes.Lookup("", site, 0)
	switch {
	case err != nil:
		return "", false
	case d.Deliver:
		return spool.ViaDest(d.Rule.Via), true
	}
	return spool.NodeDest(d.Rule.Node), true
}

// card is this node's card as text.
func (n *Node) card() string { return n.keys.Card().Text() }

// carrierURL accepts a plain folder where a carrier URL is meant.
func carrierURL(s string) (string, error) {
	if strings.Contains(s, ":") && !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, ".") {
		if _, err := all.Parse(s); err != nil {
			return "", hintOf(err, ExitUsage)
		}
		return s, nil
	}
	abs, err := filepath.Abs(s)
	if err != nil {
		return "", err
	}
	return "dir:" + abs, nil
}

// hintOf wraps an error that carries advice.
func hintOf(err error, exit int) *Error {
	e := &Error{Message: err.Error(), Exit: exit}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		e.Hint = h.Hint()
	}
	return e
}

// openError says that a folder could not be opened.
func openError(url string, err error) *Error {
	e := hintOf(fmt.Errorf("open %s: %w", url, err), ExitNoInput)
	if e.Hint == "" && strings.HasPrefix(url, "dir:") {
		e.Hint = "is the stick plugged in and mounted?"
	}
	return e
}

// folderOf opens the folder of a carrier; nil when it is not one.
func folderOf(url string) (transport.Folder, error) {
	c, err := all.Parse(url)
	if err != nil {
		return nil, hintOf(err, ExitUsage)
	}
	return c.Folder, nil
}

// invitation is what travels to a guest: a header line, the card, the secret. It is text, so that it can also be
// mailed or pasted.
type invitation struct {
	Name   string `json:"name"`
	Card   string `json:"card"`
	Secret []byte `json:"secret"`
	URL    string `json:"url,omitempty"` // where the inviter is called, if it said so
}

const inviteFile = "invite.json"

// invite is POST /v1/invite.
func (n *Node) invite(ctx context.Context, q InviteRequest) (*InviteReply, error) {
	if err := config.CheckName(q.Name); err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitUsage}
	}
	if _, ok := n.config().Peer(q.Name); ok {
		return nil, &Error{Message: fmt.Sprintf("there is a peer %q already", q.Name), Hint: "mochila peer show " + q.Name, Exit: ExitUsage}
	}
	url, err := carrierURL(q.URL)
	if err != nil {
		return nil, err
	}
	folder, err := folderOf(url)
	if err != nil {
		return nil, err
	}
	contact := url
	if folder == nil {
		contact = "" // the guest will call us; how to call it is not known
	}
	if folder != nil {
		if _, err := folder.List(ctx, "mochila"); err != nil {
			return nil, openError(url, err)
		}
	}
	inv, err := n.bridge.Invite(q.Name, contact)
	if err != nil {
		return nil, err
	}
	v := invitation{Name: n.config().Name, Card: n.card(), Secret: inv.Secret}
	if folder == nil {
		v.URL = url
	}
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, err
	}
	if folder == nil {
		return &InviteReply{Text: string(text) + "\n", Join: "mochila join " + url + " < INVITATION"}, nil
	}
	dir := path.Join("mochila", "invite", n.keys.ID().Label().String())
	if err := folder.Remove(ctx, dir, inviteFile); err != nil {
		return nil, fmt.Errorf("replace an older invitation: %w", err)
	}
	if err := folder.Put(ctx, dir, inviteFile, int64(len(text)), bytes.NewReader(text)); err != nil {
		return nil, fmt.Errorf("write the invitation: %w", err)
	}
	if err := folder.Flush(ctx); err != nil {
		return nil, fmt.Errorf("write the invitation: %w", err)
	}
	return &InviteReply{Where: dir + "/" + inviteFile, Join: "mochila join " + strings.TrimPrefix(url, "dir:")}, nil
}

// join is POST /v1/join.
func (n *Node) join(ctx context.Context, q JoinRequest) (*JoinReply, error) {
	url, err := carrierURL(q.URL)
	if err != nil {
		return nil, err
	}
	folder, err := folderOf(url)
	if err != nil {
		return nil, err
	}
	text := []byte(q.Text)
	if folder != nil && len(text) == 0 {
		if text, err = n.findInvitation(ctx, folder, url); err != nil {
			return nil, err
		}
	}
	if len(text) == 0 {
		return nil, &Error{Message: "join needs the invitation's text", Hint: "mochila join " + url + " < INVITATION", Exit: ExitUsage}
	}
	var v invitation
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, &Error{Message: "read the invitation: " + err.Error(), Exit: ExitData}
	}
	card, err := seal.ParseCardText([]byte(v.Card))
	if err != nil {
		return nil, &Error{Message: "the invitation's card: " + err.Error(), Exit: ExitData}
	}
	if card.ID == n.keys.ID() {
		return nil, &Error{Message: "this is this node's own invitation", Hint: "take it to the other node and type mochila join there", Exit: ExitUsage}
	}
	name := q.As
	if name == "" {
		name = v.Name
	}
	if err := config.CheckName(name); err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitUsage}
	}
	for _, p := range n.config().Peers {
		if p.ID == card.ID.Text() || p.Node == name {
			return nil, &Error{Message: fmt.Sprintf("there is a peer %q already (%s)", p.Node, card.ID), Hint: "mochila peer remove " + p.Node + ", or join --as ANOTHER", Exit: ExitUsage}
		}
	}
	if err := n.bridge.Join(card.ID, v.Secret); err != nil {
		return nil, err
	}
	if err := n.writePeer(peerFile(name, card, url)); err != nil {
		return nil, err
	}
	n.bridge.Hello(card.ID)
	for _, r := range n.bridge.Sync(ctx, n.contactsOf(name)) {
		if r.Err != nil {
			return nil, &Error{Message: fmt.Sprintf("%s is a peer now, but the answer was not sent: %v", name, r.Err), Hint: "mochila sync " + name + " tries again", Exit: ExitTemp}
		}
	}
	if folder != nil {
		// used up: nobody else shall find it
		folder.Remove(ctx, path.Join("mochila", "invite", card.ID.Label().String()), inviteFile)
	}
	return &JoinReply{Name: name, ID: card.ID.String(), Carrier: url}, nil
}

// findInvitation reads the one invitation on a medium that is not our own.
func (n *Node) findInvitation(ctx context.Context, f transport.Folder, url string) ([]byte, error) {
	dirs, err := f.Dirs(ctx, "mochila/invite")
	if err != nil {
		return nil, openError(url, err)
	}
	own := n.keys.ID().Label().String()
	dirs = slices.DeleteFunc(dirs, func(d string) bool {
		if d == own {
			return true
		}
		// a guest deletes the invitation that it used, but its directory stays
		files, err := f.List(ctx, "mochila/invite/"+d)
		return err == nil && !slices.ContainsFunc(files, func(e transport.Entry) bool { return e.Name == inviteFile })
	})
	switch {
	case len(dirs) == 0:
		return nil, &Error{Message: "there is no invitation on " + url, Hint: "mochila invite NAME DIR on the other node writes one", Exit: ExitNoInput}
	case len(dirs) > 1:
		return nil, &Error{Message: fmt.Sprintf("there are %d invitations on %s", len(dirs), url), Hint: "keep the one you mean below mochila/invite", Exit: ExitUsage}
	}
	r, err := f.Get(ctx, "mochila/invite/"+dirs[0], inviteFile)
	if err != nil {
		return nil, fmt.Errorf("read the invitation: %w", err)
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 64<<10))
}

// addPeer is POST /v1/peers.
func (n *Node) addPeer(q PeerAdd) (*PeerStatus, error) {
	card, err := seal.ParseCardText([]byte(q.Card))
	if err != nil {
		return nil, &Error{Message: "the card: " + err.Error(), Hint: "mochila card on the other node prints it", Exit: ExitData}
	}
	if card.ID == n.keys.ID() {
		return nil, &Error{Message: "this is this node's own card", Exit: ExitUsage}
	}
	if q.Name == "" {
		q.Name = card.Name
	}
	for _, p := range n.bridge.Policy().Peers {
		if p.ID.Label() == card.ID.Label() && p.ID != card.ID {
			return nil, &Error{Message: fmt.Sprintf("the card's label is that of peer %q: refused", p.Name), Exit: ExitDenied}
		}
		if p.Name == q.Name && p.ID != card.ID {
			return nil, &Error{Message: fmt.Sprintf("there is another peer %q (%s)", q.Name, p.ID), Hint: "give this one another NAME, or mochila peer remove " + q.Name, Exit: ExitUsage}
		}
		if p.ID == card.ID && p.Name != q.Name {
			return nil, &Error{Message: fmt.Sprintf("this node is peer %q already", p.Name), Exit: ExitUsage}
		}
	}
	f := peerFile(q.Name, card, "")
	f.Peer.SendAs, f.Peer.SendTo, f.Peer.RelayTo = q.SendAs, q.SendTo, q.RelayTo
	if q.Carrier != "" {
		url, err := carrierURL(q.Carrier)
		if err != nil {
			return nil, err
		}
		c := config.Contact{Node: q.Name, Carrier: url}
		if q.When != "" {
			if c.When, err = config.ParseWhen(q.When); err != nil {
				return nil, &Error{Message: err.Error(), Exit: ExitUsage}
			}
		}
		f.Contacts = []config.Contact{c}
	} else if q.When != "" {
		w, err := config.ParseWhen(q.When)
		if err != nil {
			return nil, &Error{Message: err.Error(), Exit: ExitUsage}
		}
		f.Contacts = []config.Contact{{Node: q.Name, When: w}}
	}
	to := q.Routes
	if q.AcceptDomains {
		to = append(to, card.Domains...)
	}
	if len(q.Path) > 0 && len(to) == 0 {
		to = []string{q.Name + ".mochila"}
	}
	if len(to) > 0 {
		f.Routes = []config.Route{{To: to, Node: q.Name, Path: q.Path}}
	}
	if err := n.writePeer(f); err != nil {
		return nil, err
	}
	for _, p := range n.peers() {
		if p.Name == q.Name {
			return &p, nil
		}
	}
	return nil, fmt.Errorf("peer %q was written but is not in force", q.Name)
}

// writePeer puts a peer's file in force. One that makes the configuration wrong is taken back: the node could not be
// opened any more.
func (n *Node) writePeer(f config.PeerFile) error {
	if err := config.CheckName(f.Peer.Node); err != nil {
		return &Error{Message: err.Error(), Exit: ExitUsage}
	}
	old, err := config.ReadPeer(n.home, f.Peer.Node)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fresh := err != nil
	if err := config.WritePeer(n.home, f); err != nil {
		return err
	}
	err = n.Reload()
	if err == nil {
		return nil
	}
	if fresh {
		return errors.Join(err, config.RemovePeer(n.home, f.Peer.Node))
	}
	return errors.Join(err, config.WritePeer(n.home, old))
}

// removePeer is POST /v1/peers/remove.
func (n *Node) removePeer(name string) error {
	if _, ok := n.config().Peer(name); !ok {
		return &Error{Message: fmt.Sprintf("there is no peer %q", name), Hint: "mochila peer list", Exit: ExitData}
	}
	if err := config.RemovePeer(n.home, name); err != nil {
		return &Error{Message: err.Error(), Hint: "mochila peer list", Exit: ExitData}
	}
	return n.Reload()
}

// peers lists the peers.
func (n *Node) peers() []PeerStatus {
	out := []PeerStatus{}
	cfg := n.config()
	for _, p := range n.bridge.Policy().Peers {
		s := PeerStatus{Name: p.Name, ID: p.ID.String(), Full: p.ID.Text(), Heard: n.bridge.Heard(p.ID)}
		if p.Card != nil {
			s.CardEnds, s.Domains = p.Card.UseUntil, p.Card.Domains
		}
		if c, ok := cfg.Peer(p.Name); ok {
			s.SendAs, s.SendTo, s.RelayTo = c.SendAs, c.SendTo, c.RelayTo
		}
		for _, k := range cfg.Contacts {
			if k.Node == p.Name && k.Carrier != "" {
				s.Contacts = append(s.Contacts, k.Carrier)
			}
		}
		out = append(out, s)
	}
	return out
}

// contactsOf returns the contacts with a node that can be made from here.
func (n *Node) contactsOf(name string) (out []*bridge.Contact) {
	for _, c := range n.bridge.Policy().Contacts {
		if c.NodeName == name && c.URL != "" && !c.When.OnCall {
			out = append(out, c)
		}
	}
	return out
}

// status is GET /v1/status.
func (n *Node) status() (*Status, error) {
	cfg := n.config()
	s := &Status{Name: cfg.Name, ID: n.keys.ID().String(), Version: n.version, Daemon: n.daemon, Started: n.started,
		Clock: n.bridge.ClockSuspect(), Peers: n.peers(), Queues: []QueueStatus{}, Contacts: []ContactStatus{}, Listen: n.listens}
	n.mu.Lock()
	s.Warnings = slices.Clone(n.warn)
	n.mu.Unlock()
	var err error
	if s.Spool.Free, s.Spool.Total, err = n.spool.Free(); err != nil {
		return nil, err
	}
	s.Spool.Full = n.spool.Full()
	if s.Spool.Full {
		s.Warnings = append(s.Warnings, "the disk reserve is reached: no mail is accepted, receipts are")
	}
	counts, err := n.spool.Counts()
	if err != nil {
		return nil, err
	}
	for i := range counts {
		c := &counts[i]
		if c.Dest == spool.DeadDest {
			s.Dead = c.Total()
		}
		s.Queues = append(s.Queues, QueueStatus{Dest: n.destName(c.Dest), Due: c.States[spool.Due], Deferred: c.States[spool.Deferred],
			Held: c.States[spool.Held], Sealed: c.States[spool.Sealed], Travelling: c.States[spool.Travelling], Arrived: c.States[spool.Arrived],
			Bytes: c.Bytes, Oldest: c.Oldest})
	}
	for _, c := range n.bridge.Contacts() {
		s.Contacts = append(s.Contacts, ContactStatus{Node: c.Contact.NodeName, Carrier: bridge.PublicURL(c.Contact.URL), When: describeWhen(c.Contact.When),
			Running: c.Running, Last: c.Last, OK: c.OK, Next: c.Next, Error: c.Err})
	}
	q, err := n.spool.Quarantined()
	if err != nil {
		return nil, err
	}
	s.Quarantine = len(q)
	if s.ForReaders.Mails, s.ForReaders.Bytes, err = n.bridge.HeldForReaders(); err != nil {
		return nil, err
	}
	channels, err := n.jobChannels()
	if err != nil {
		return nil, err
	}
	for _, c := range channels {
		if c.Waiting > 0 || c.State != "" {
			s.Jobs = append(s.Jobs, c)
		}
	}
	card := n.keys.Card()
	s.Card = CardStatus{Serial: card.Serial, UseUntil: card.UseUntil, KeepUntil: card.KeepUntil}
	s.Warnings = append(s.Warnings, n.bridge.Clamped()...)
	for _, p := range n.bridge.Policy().Peers {
		if until := n.bridge.CutOff(p.ID); !until.IsZero() {
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s has brought too many bad packets: it is not listened to before %s", p.Name, until.Local().Format("2006-01-02 15:04")))
		}
	}
	now := time.Now()
	for _, p := range n.bridge.Policy().Peers {
		if p.Card != nil && now.After(p.Card.UseUntil) {
			s.Warnings = append(s.Warnings, fmt.Sprintf("the card of %s is older than its use date: it sends a new one at the next contact, or ask for it (mochila card)", p.Name))
		}
	}
	return s, nil
}

// check is GET /v1/check: what would go wrong, before it does.
func (n *Node) check(ctx context.Context) *CheckReport {
	r := &CheckReport{}
	cfg, warnings, err := config.Load(n.home)
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	for _, w := range warnings {
		r.Warnings = append(r.Warnings, w.Error())
	}
	if cfg != nil {
		for _, c := range cfg.Contacts {
			if c.Carrier == "" {
				continue
			}
			if _, err := all.Parse(n.absCarrier(c.Carrier)); err != nil {
				r.Problems = append(r.Problems, fmt.Sprintf("contact %s: %v", c.Name, err))
			}
		}
		for _, a := range cfg.Link.Listen {
			if strings.HasPrefix(a, "serial:") {
				if _, err := all.Parse(a); err != nil {
					r.Problems = append(r.Problems, fmt.Sprintf("[link] listen: %v", err))
				}
			}
		}
		if _, err := n.policy(cfg); err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
		r.Problems = append(r.Problems, handlerUsers(cfg)...)
		r.Warnings = append(r.Warnings, circles(ctx, cfg)...)
		warnings, notes := greetings(ctx, cfg)
		r.Warnings, r.Notes = append(r.Warnings, warnings...), append(r.Notes, notes...)
	}
	p := n.bridge.Policy()
	for _, x := range p.Peers {
		if len(n.bridge.NextHops(x.ID)) == 0 {
			r.Warnings = append(r.Warnings, fmt.Sprintf("no contact leads to %s: mail for it waits", x.Name))
		}
	}
	if p.BounceVia == "" {
		r.Notes = append(r.Notes, "[bounce] via is not set: error reports that no [[deliver]] or [[route]] takes become dead letters")
	}
	r.Warnings = append(r.Warnings, n.bridge.Clamped()...)
	if why := n.bridge.ClockSuspect(); why != "" {
		r.Problems = append(r.Problems, "the clock is suspect: "+why+" (mochila clock accept, when it is right)")
	}
	if n.spool.Full() {
		r.Problems = append(r.Problems, "the disk reserve is reached")
	}
	if fi, err := os.Stat(filepath.Join(n.home.IdentityDir, "id.key")); err == nil && fi.Mode().Perm()&0o077 != 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%s can be read by others: chmod 600", filepath.Join(n.home.IdentityDir, "id.key")))
	}
	r.OK = len(r.Problems) == 0
	return r
}
