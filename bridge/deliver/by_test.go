package deliver

import (
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// TestDeliverBy: what RFC 2852 wants where a mail with a deadline meets a server that knows deadlines, one that does not,
// and a delivery that is none of a server.
func TestDeliverBy(t *testing.T) {
	const (
		ok     = "0 delivered 250 2.0.0 queued as 1"
		passed = "0 relayed 250 2.0.0 queued as 1"
		late   = "0 failed 5.4.7 delivery time expired: requested by 2030-01-02T03:04:05Z"
		blind  = "0 failed 5.3.3 it was to be delivered by 2030-01-02T03:04:05Z or returned (BY=;R), and the next mail system does not know deadlines (DELIVERBY)"
	)
	for name, c := range map[string]struct {
		by   envelope.By
		left time.Duration
		ext  []string
		lmtp bool
		want string
		mail string // the MAIL command; "" when nothing may be said
	}{
		"R":                 {envelope.By{Return: true}, time.Minute, []string{"DELIVERBY"}, false, ok, "MAIL FROM:<a@x> BY=60;R"},
		"R in the last bit": {envelope.By{Return: true}, time.Millisecond, []string{"DELIVERBY"}, false, ok, "MAIL FROM:<a@x> BY=1;R"},
		"R late":            {envelope.By{Return: true}, 0, []string{"DELIVERBY"}, false, late, ""},
		"R later":           {envelope.By{Return: true}, -time.Second, nil, false, late, ""},
		"R to the blind":    {envelope.By{Return: true}, time.Hour, []string{"DSN"}, false, blind, ""},
		"R, LMTP":           {envelope.By{Return: true}, time.Hour, nil, true, ok, "MAIL FROM:<a@x>"},
		"R late, LMTP":      {envelope.By{Return: true}, 0, nil, true, late, ""},
		"RT":                {envelope.By{Return: true, Trace: true}, time.Hour, []string{"DELIVERBY 240"}, false, passed, "MAIL FROM:<a@x> BY=3600;RT"},
		"N":                 {envelope.By{}, time.Hour, []string{"DELIVERBY"}, false, ok, "MAIL FROM:<a@x> BY=3600;N"},
		"N none left":       {envelope.By{}, 0, []string{"DELIVERBY"}, false, ok, "MAIL FROM:<a@x> BY=0;N"},
		"N late":            {envelope.By{}, -90 * time.Second, []string{"DELIVERBY"}, false, ok, "MAIL FROM:<a@x> BY=-90;N"},
		"N to the blind":    {envelope.By{}, time.Hour, nil, false, passed, "MAIL FROM:<a@x>"},
		"NT, LMTP":          {envelope.By{Trace: true}, time.Hour, []string{"DELIVERBY"}, true, ok, "MAIL FROM:<a@x> BY=3600;NT"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{ext: c.ext, lmtp: c.lmtp}
			tr := open(t, f.start(t), Options{})
			m := mail("a@x", hello, "b@y")
			c.by.Deadline = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
			m.Env.Mail.By, m.Left = &c.by, func() time.Duration { return c.left }
			want := c.want
			if c.mail != "" && len(c.ext) > 0 && c.ext[0] == "DSN" {
				want += " [dsn]"
			}
			check(t, tr, m, want)
			if c.mail == "" {
				f.checkCommands(t)
			} else {
				f.checkCommands(t, c.mail, "RCPT TO:<b@y>", "DATA")
			}
		})
	}
	// Programs that hand mail on know no deadlines either; a mailbox is where it was to be.
	for via, want := range map[string]string{
		"sendmail:/bin/cat":      blind,
		"maildir:" + t.TempDir(): "0 delivered",
		"pipe:/bin/cat":          "0 delivered",
		"uux:hub!rmail":          blind,
	} {
		tr := open(t, via, Options{})
		m := mail("a@x", hello, "b@y")
		m.Env.Mail.By = &envelope.By{Return: true, Deadline: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
		m.Left = func() time.Duration { return time.Hour }
		if got := show(tr.Deliver(t.Context(), m)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", via, got, want)
		}
	}
}
