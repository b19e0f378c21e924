package control

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mochila/internal/dkim"
	"mochila/internal/envelope"
	"mochila/smtpd"
)

// plainIntake keeps what it gets.
type plainIntake struct {
	bytes.Buffer
	committed, aborted int
}

func (p *plainIntake) Commit(context.Context) (string, error) { p.committed++; return "Q", nil }
func (p *plainIntake) Abort()                                 { p.aborted++ }

func testKey(t *testing.T) dkim.Keys {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "k")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := dkim.Load("camp.example", "s1", path)
	if err != nil {
		t.Fatal(err)
	}
	return dkim.Keys{k}
}

// TestSigningIntake: in whatever pieces a mail comes, it goes on unchanged, behind its signature if it is one of ours.
func TestSigningIntake(t *testing.T) {
	keys := testKey(t)
	const from = "From: ana@camp.example\r\n"
	for name, c := range map[string]struct {
		mail   string
		body   string
		signed bool
	}{
		"ours":          {from + "\r\nhi\r\n", "", true},
		"empty body":    {from + "\r\n", "", true},
		"large":         {from + "\r\n" + strings.Repeat("0123456789abcdef\r\n", 20_000), "", true},
		"other domain":  {"From: ana@hub.example\r\n\r\nhi\r\n", "", false},
		"no header":     {"\r\n" + from + "\r\n", "", false},
		"no empty line": {from, "", false},
		"empty":         {"", "", false},
		"huge header":   {from + strings.Repeat("X: y\r\n", 60_000) + "\r\nhi\r\n", "", false},
		"binary":        {from + "\r\na\x00b\rc\r\n", "BINARYMIME", false},
		"8 bit":         {from + "Subject: \xe9\r\n\r\n\xff\r\n", "8BITMIME", true},
	} {
		for _, piece := range []int{1, 3, 700, 1 << 20} {
			if piece < 100 && len(c.mail) > 10_000 {
				continue
			}
			in := &plainIntake{}
			s := &signingIntake{in: in, mail: &envelope.Mail{Body: c.body}, keys: keys, held: smtpd.Held{Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
			for rest := []byte(c.mail); len(rest) > 0; {
				n := min(piece, len(rest))
				if k, err := s.Write(rest[:n]); k != n || err != nil {
					t.Fatalf("%s: write %d, %v", name, k, err)
				}
				rest = rest[n:]
			}
			id, err := s.Commit(t.Context())
			if id != "Q" || err != nil || in.committed != 1 || in.aborted != 0 {
				t.Errorf("%s: %q, %v, %+v", name, id, err, in)
			}
			got := in.String()
			if c.signed != strings.HasPrefix(got, "DKIM-Signature: ") {
				t.Errorf("%s in pieces of %d: signed is %v: %.200q", name, piece, !c.signed, got)
			}
			if !strings.HasSuffix(got, c.mail) || !c.signed && got != c.mail {
				t.Errorf("%s in pieces of %d: the mail has changed: %.300q", name, piece, got)
			}
			if left, _ := os.ReadDir(s.held.Dir); len(left) != 0 {
				t.Errorf("%s: left behind %v", name, left)
			}
		}
	}
	in := &plainIntake{}
	s := &signingIntake{in: in, mail: &envelope.Mail{}, keys: keys, held: smtpd.Held{Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	s.Write([]byte(from + "\r\nhalf"))
	if s.Abort(); in.aborted != 1 || in.committed != 0 || in.Len() != 0 {
		t.Errorf("after Abort: %+v", in)
	}
}

func TestStartsHere(t *testing.T) {
	for _, c := range []struct {
		client envelope.Client
		want   bool
	}{
		{envelope.Client{UID: 1001, Proto: "local"}, true},
		{envelope.Client{UID: 1001, Proto: "ESMTP"}, true}, // sendmail -bs
		{envelope.Client{User: "ana", Proto: "ESMTPSA", Addr: "192.0.2.1"}, true},
		{envelope.Client{UID: 1001, Proto: "rmail"}, false},
		{envelope.Client{UID: 1001, Proto: "bsmtp"}, false},
		{envelope.Client{Proto: "ESMTP", Addr: "127.0.0.1"}, false},
		{envelope.Client{Proto: "LMTP"}, false},
	} {
		if got := startsHere(&c.client); got != c.want {
			t.Errorf("%+v: %v", c.client, got)
		}
	}
}
