package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
)

// keyFile writes a private key in PEM form.
func keyFile(t *testing.T, key crypto.Signer, mode os.FileMode) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const text = "From: Ana <ana@camp.example>\r\nTo: bob@hub.example\r\nSubject: odd   spaces \r\n folded\r\n\r\nbody \r\n\r\n\r\n"

// verify checks a signed mail with the public key that the record says.
func verify(t *testing.T, k *Key, mail string) error {
	t.Helper()
	name, record, err := k.Record()
	if err != nil {
		t.Fatal(err)
	}
	checks, err := dkim.VerifyWithOptions(strings.NewReader(mail), &dkim.VerifyOptions{LookupTXT: func(domain string) ([]string, error) {
		if domain != name {
			return nil, errors.New("asked for " + domain)
		}
		return []string{record}, nil
	}})
	if err != nil {
		return err
	}
	if len(checks) != 1 || checks[0].Domain != k.Domain {
		return errors.New("not one signature")
	}
	return checks[0].Err
}

func TestSign(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey(t, 2048), "ed25519": edKey(t)} {
		k, err := Load("Camp.Example", "s1", keyFile(t, key, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Sign([]byte(text[:strings.Index(text, "\r\n\r\n")+2]))
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(text) { // one octet at a time
			s.Write([]byte(text[i : i+1]))
		}
		field, err := s.Field()
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(strings.TrimSuffix(field, "\r\n"), "\r\n") {
			if len(line) > 998 || i > 0 && line[0] != ' ' {
				t.Errorf("%s: line %q", name, line)
			}
		}
		if err := verify(t, k, field+text); err != nil {
			t.Errorf("%s: %v\n%s", name, err, field)
		}
		if !strings.Contains(field, "h=From:From:Subject:To;") {
			t.Errorf("%s covers other fields: %s", name, field)
		}
		if err := verify(t, k, "Received: x\r\n"+field+"List-Id: a list\r\n"+text); err != nil {
			t.Errorf("%s, with trace fields: %v", name, err)
		}
		for what, bad := range map[string]string{"body": text + "more\r\n", "subject": strings.Replace(text, "odd", "even", 1),
			"second From": "From: eve@evil.example\r\n" + text} {
			if err := verify(t, k, field+bad); err == nil {
				t.Errorf("%s: another %s is not noticed", name, what)
			}
		}
	}
}

func TestFor(t *testing.T) {
	camp, hub := &Key{Domain: "camp.example"}, &Key{Domain: "hub.example"}
	keys := Keys{camp, hub}
	for header, want := range map[string]*Key{
		"From: ana@camp.example\r\n":                           camp,
		"Subject: x\r\nFROM :\r\n\tAna <ana@CAMP.example>\r\n": camp,
		"From: \"x@hub.example\" <ana@camp.example>\r\n":       camp,
		"From: root@hub.example (Cron Daemon)\r\n":             hub,
		"From: ana@sub.camp.example\r\n":                       nil,
		"From: ana@camp.example, eve@evil.example\r\n":         nil,
		"From: ana@camp.example\r\nFrom: eve@evil.example\r\n": nil,
		"From: root\r\n": nil,
		"From:\r\n":      nil,
		"":               nil,
		"To: ana@camp.example\r\nX-From: ana@camp.example\r\n":             nil,
		"Subject: a\r\n From: ana@camp.example\r\nTo: x\r\n":               nil,
		"From: \"ana@camp.example\" <eve@evil.example>\r\nSender: <x>\r\n": nil,
	} {
		if got := keys.For([]byte(header)); got != want {
			t.Errorf("%q: got %+v, want %+v", header, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	good := keyFile(t, edKey(t), 0o600)
	doc, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) string {
		path := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for defect, path := range map[string]string{
		"open to others": keyFile(t, edKey(t), 0o640), "short": keyFile(t, rsaKey(t, 1024), 0o600), "missing": good + "x", "folder": filepath.Dir(good),
		"empty": write(nil), "cut": write(doc[:len(doc)/2]), "twice": write(append(bytes.Clone(doc), doc...)),
		"public": write(bytes.ReplaceAll(doc, []byte("PRIVATE"), []byte("PUBLIC"))),
	} {
		if k, err := Load("camp.example", "s1", path); err == nil || !strings.HasPrefix(err.Error(), "DKIM key of camp.example: ") {
			t.Errorf("%s: got %+v, %v", defect, k, err)
		}
	}
}

// TestGivenUp: a signature that is not finished leaves nothing behind, and a broken mail is an error of Field alone.
func TestGivenUp(t *testing.T) {
	k := &Key{Domain: "camp.example", Selector: "s", signer: edKey(t)}
	s, err := k.Sign([]byte("From: a@camp.example\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("From: a@camp.example\r\n")) // and no end of the header
	if _, err := s.Field(); err == nil {
		t.Error("half a header was signed")
	}
	if n, err := s.Write([]byte("more")); n != 4 || err != nil {
		t.Errorf("write after the end: %d, %v", n, err)
	}
}
