package deliver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
)

// provider is a mail server of somebody else: go-smtp's, with TLS and users.
type provider struct {
	mechs []string

	mu    sync.Mutex
	mails []string
	users []string
}

func (p *provider) NewSession(c *gosmtp.Conn) (gosmtp.Session, error) {
	_, secure := c.TLSConnectionState()
	return &visit{p: p, secure: secure}, nil
}

type visit struct {
	p      *provider
	secure bool
	user   string
}

func (v *visit) AuthMechanisms() []string {
	if !v.secure {
		return nil
	}
	return v.p.mechs
}

func (v *visit) Auth(mech string) (sasl.Server, error) {
	check := func(user, password string) error {
		if user != "ana@camp.example" || password != "secret word" {
			return errors.New("wrong password")
		}
		v.user = user
		return nil
	}
	if mech == sasl.Plain {
		return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
	}
	return &loginServer{check: check}, nil
}

// loginServer is AUTH LOGIN, which go-sasl has for clients only.
type loginServer struct {
	check func(user, password string) error
	user  string
	step  int
}

func (l *loginServer) Next(response []byte) ([]byte, bool, error) {
	l.step++
	switch l.step {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.user = string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, l.check(l.user, string(response))
}

func (v *visit) Mail(string, *gosmtp.MailOptions) error {
	if v.user == "" {
		return &gosmtp.SMTPError{Code: 530, EnhancedCode: gosmtp.EnhancedCode{5, 7, 0}, Message: "authentication required"}
	}
	return nil
}
func (v *visit) Rcpt(string, *gosmtp.RcptOptions) error { return nil }
func (v *visit) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	v.p.mails, v.p.users = append(v.p.mails, string(b)), append(v.p.users, v.user)
	return err
}
func (v *visit) Reset()        {}
func (v *visit) Logout() error { return nil }

// certificate makes one for "localhost", and the pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// start listens and returns localhost:PORT.
func (p *provider) start(t *testing.T, implicit bool, cert *tls.Certificate) string {
	t.Helper()
	s := gosmtp.NewServer(p)
	s.Domain, s.ErrorLog = "localhost", quiet{}
	var conf *tls.Config
	if cert != nil {
		conf = &tls.Config{Certificates: []tls.Certificate{*cert}}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	if implicit {
		ln = tls.NewListener(ln, conf)
	} else {
		s.TLSConfig = conf
	}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ln) }()
	t.Cleanup(func() { s.Close(); <-done })
	return "localhost:" + port
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

func TestSmarthost(t *testing.T) {
	cert, pool := certificate(t)
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(home, "secrets", "ana@camp.example@localhost")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		os.Remove(secret)
		if err := os.WriteFile(secret, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Hostname: "camp.example", Home: home, RootCAs: pool}
	for _, c := range []struct {
		name, kind string
		mechs      []string
	}{{"PLAIN after STARTTLS", "submission", []string{"PLAIN"}}, {"LOGIN inside TLS", "smtps", []string{"LOGIN"}}} {
		t.Run(c.name, func(t *testing.T) {
			write("secret word\n", 0o600)
			p := &provider{mechs: c.mechs}
			via := c.kind + ":ana@camp.example@" + p.start(t, c.kind == "smtps", &cert)
			check(t, open(t, via, o), mail("ana@camp.example", "Subject: out\r\n\r\nhello\r\n", "bob@else.example"), "0 delivered 250 2.0.0 OK: queued")
			if len(p.mails) != 1 || !strings.HasSuffix(p.mails[0], "Subject: out\r\n\r\nhello\r\n") || p.users[0] != "ana@camp.example" {
				t.Errorf("the server has %q of %q", p.mails, p.users)
			}
		})
	}
	p := &provider{mechs: []string{"PLAIN"}}
	via := "submission:ana@camp.example@" + p.start(t, false, &cert)
	plain := &provider{mechs: []string{"PLAIN"}}
	for _, c := range []struct {
		name, via, text string
		mode            os.FileMode
		roots           *x509.CertPool
		want            string
	}{
		{"wrong password", via, "guess\n", 0o600, pool, "the login of ana@camp.example is refused"},
		{"password for all to read", via, "secret word\n", 0o644, pool, "chmod 600"},
		{"certificate of nobody", via, "secret word\n", 0o600, x509.NewCertPool(), "TLS with localhost"},
		{"no STARTTLS", "submission:ana@camp.example@" + plain.start(t, false, nil), "secret word\n", 0o600, pool, "offers no STARTTLS"},
		{"no password", "submission:bob@" + p.start(t, false, &cert), "x", 0o600, pool, "put it into"},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(c.text, c.mode)
			o := o
			o.RootCAs = c.roots
			res := open(t, c.via, o).Deliver(t.Context(), mail("ana@camp.example", "Subject: out\r\n\r\nhello\r\n", "bob@else.example"))
			if got := show(res); !strings.Contains(got, c.want) || !strings.Contains(got, "4.7.") {
				t.Errorf("got %s, want a temporary refusal with %q", got, c.want)
			}
		})
	}
	if len(p.mails)+len(plain.mails) > 0 {
		t.Errorf("mail went out all the same: %q %q", p.mails, plain.mails)
	}
}
