package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"mochila/bridge/route"
	"mochila/internal/account"
	"mochila/smtpd"
)

// accounts is the node's account file as the SMTP server sees it.
type accounts struct {
	book   *account.Book
	domain string // completes senders without one
}

var _ smtpd.Accounts = accounts{}

// Ready reports whether anybody could log in. A file that cannot be read counts as somebody: who tries then gets a
// temporary error, and the log tells why.
func (a accounts) Ready() bool {
	some, err := a.book.Any()
	return some || err != nil
}

func (a accounts) Login(ctx context.Context, name, password string) (*smtpd.Account, error) {
	return a.loggedIn(a.book.Login(ctx, name, password))
}

func (a accounts) Exchange() smtpd.Exchange { return exchange{a, a.book.Exchange()} }

type exchange struct {
	accounts
	x *account.Exchange
}

func (e exchange) Step(msg string) (string, *smtpd.Account, error) {
	reply, a, err := e.x.Step(msg)
	who, err := e.loggedIn(a, err)
	return reply, who, err
}

// loggedIn puts an account into the terms of the SMTP server.
func (s accounts) loggedIn(a *account.Account, err error) (*smtpd.Account, error) {
	switch {
	case errors.Is(err, account.ErrDenied):
		return nil, smtpd.ErrCredentials
	case err != nil || a == nil:
		return nil, err
	}
	who := &smtpd.Account{Name: a.Name}
	if len(a.SendAs) > 0 {
		ps, err := patterns(a.SendAs)
		if err != nil {
			return nil, fmt.Errorf("account %q: %w", a.Name, err)
		}
		who.MaySend = func(sender string) bool {
			return matchSender(ps, complete(sender, s.domain))
		}
	}
	return who, nil
}

// matchSender reports whether one of the patterns takes a sender, "" being the null sender.
func matchSender(ps []route.Pattern, sender string) bool {
	for _, p := range ps {
		if p.Match(sender) {
			return true
		}
	}
	return false
}

// User is one account, for GET /v1/users and POST /v1/users.
type User struct {
	Name     string   `json:"name"`
	Password string   `json:"password,omitempty"` // only in requests, and in the answer when it was made up here
	SendAs   []string `json:"send_as,omitempty"`  // sender patterns; none: any
}

func (n *Node) users() ([]User, error) {
	list, err := n.accounts.List()
	if err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitConfig}
	}
	out := make([]User, 0, len(list))
	for _, a := range list {
		out = append(out, User{Name: a.Name, SendAs: a.SendAs})
	}
	return out, nil
}

// addUser is POST /v1/users. Without a password it makes one up, and tells it.
func (n *Node) addUser(q User) (*User, error) {
	if _, err := patterns(q.SendAs); err != nil {
		return nil, &Error{Message: err.Error(), Hint: "patterns are user@domain, domain, *.domain, * and <>", Exit: ExitUsage}
	}
	made := madePassword(&q)
	a, err := account.New(q.Name, q.Password, q.SendAs)
	if err != nil {
		return nil, &Error{Message: err.Error(), Exit: ExitUsage}
	}
	if err := n.accounts.Add(a); err != nil {
		return nil, userError(q.Name, err)
	}
	n.log.Info("account " + q.Name + " added")
	return &User{Name: q.Name, SendAs: q.SendAs, Password: made}, nil
}

// changeUser is POST /v1/users/password.
func (n *Node) changeUser(q User) (*User, error) {
	made := madePassword(&q)
	if err := n.accounts.SetPassword(q.Name, q.Password); err != nil {
		return nil, userError(q.Name, err)
	}
	n.log.Info("account " + q.Name + " has a new password")
	return &User{Name: q.Name, Password: made}, nil
}

func (n *Node) removeUser(name string) error {
	if err := n.accounts.Remove(name); err != nil {
		return userError(name, err)
	}
	n.log.Info("account " + name + " removed")
	return nil
}

// madePassword gives a request without a password one of 128 random bits, and returns it.
func madePassword(q *User) string {
	if q.Password != "" {
		return ""
	}
	q.Password = rand.Text()
	return q.Password
}

func userError(name string, err error) error {
	switch {
	case errors.Is(err, account.ErrExists):
		return &Error{Message: fmt.Sprintf("there is an account %q already", name), Hint: "mochila user passwd gives it another password", Exit: ExitData}
	case errors.Is(err, account.ErrUnknown):
		return &Error{Message: fmt.Sprintf("there is no account %q", name), Hint: "mochila user list", Exit: ExitData}
	}
	return &Error{Message: err.Error(), Exit: ExitCreate}
}
