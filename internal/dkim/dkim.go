// Package dkim signs mail that starts at this node with the keys of its domains (RFC 6376, RFC 8463). These are keys of
// mail policy: whoever has one can put a domain's name under mail. They open nothing that travels between nodes, and
// have nothing to do with a node's identity, which is why they live here and not in internal/seal.
//
// The signature is relaxed/relaxed and covers those header fields of RFC 6376 section 5.4.1 that are there, From once more
// than it is, so that none can be added. Fields that are not there are not covered: a mailing list adds some.
package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"os"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
)

// MaxHeader bounds the header of a mail that is signed, in bytes: it is held in memory.
const MaxHeader = 256 << 10

// maxKeyFile bounds a key file.
const maxKeyFile = 64 << 10

// signed are the fields that a signature covers, where they are there.
var signed = []string{"From", "Reply-To", "Subject", "Date", "To", "Cc", "Message-Id", "In-Reply-To", "References", "Sender",
	"MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Content-Id", "Content-Description", "Resent-Date", "Resent-From",
	"Resent-To", "Resent-Cc", "Resent-Message-Id", "List-Id", "List-Help", "List-Unsubscribe", "List-Subscribe", "List-Post",
	"List-Owner", "List-Archive"}

// Key signs for one domain.
type Key struct {
	Domain, Selector string

	signer crypto.Signer
}

// Load reads a private key, RSA of at least 2048 bits or Ed25519, in PEM form (PKCS #8). A file that others can read is
// refused.
func Load(domain, selector, path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("DKIM key of %s: %w", domain, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && (fi.Mode().Perm()&0o077 != 0 || !fi.Mode().IsRegular()) {
		err = fmt.Errorf("%q is open to others (%v): chmod 600 it", path, fi.Mode())
	}
	var doc []byte
	if err == nil {
		doc, err = io.ReadAll(io.LimitReader(f, maxKeyFile))
	}
	var signer crypto.Signer
	if err == nil {
		signer, err = parse(doc)
	}
	if err != nil {
		return nil, fmt.Errorf("DKIM key of %s: %w", domain, err)
	}
	return &Key{Domain: strings.ToLower(domain), Selector: selector, signer: signer}, nil
}

func parse(doc []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(doc)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the file is not one private key in PEM form (PKCS #8)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of kind %T cannot sign", key)
	}
	if k, ok := key.(*rsa.PrivateKey); ok && k.N.BitLen() < 2048 {
		return nil, fmt.Errorf("an RSA key of %d bits is too short: 2048 at least", k.N.BitLen())
	}
	if _, err := kind(signer); err != nil {
		return nil, err
	}
	return signer, nil
}

// kind is the k= of the key's DNS record.
func kind(s crypto.Signer) (string, error) {
	switch s.Public().(type) {
	case *rsa.PublicKey:
		return "rsa", nil
	case ed25519.PublicKey:
		return "ed25519", nil
	}
	return "", fmt.Errorf("keys of kind %T are not for DKIM: RSA or Ed25519", s.Public())
}

// Record is the DNS TXT record that publishes the key.
func (k *Key) Record() (name, text string, err error) {
	kind, err := kind(k.signer)
	if err != nil {
		return "", "", err
	}
	public, err := x509.MarshalPKIXPublicKey(k.signer.Public())
	if err != nil {
		return "", "", fmt.Errorf("DKIM key of %s: %w", k.Domain, err)
	}
	if p, ok := k.signer.Public().(ed25519.PublicKey); ok {
		public = p // RFC 8463 section 4: the bare key
	}
	return k.Selector + "._domainkey." + k.Domain, "v=DKIM1; k=" + kind + "; p=" + base64.StdEncoding.EncodeToString(public), nil
}

// Keys are those of all domains.
type Keys []*Key

// For returns the key of the domain in the From field of a header, nil when there is none: the signature is to count for
// what the reader sees. A header with several From fields or authors is nobody's.
func (ks Keys) For(header []byte) *Key {
	from := ""
	for line := range bytes.Lines(unfold(header)) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !bytes.EqualFold(bytes.TrimRight(name, " \t"), []byte("from")) {
			continue
		}
		if from != "" {
			return nil
		}
		from = string(bytes.TrimSpace(value))
	}
	list, err := mail.ParseAddressList(from)
	if err != nil || len(list) != 1 {
		return nil
	}
	_, domain, _ := strings.Cut(list[0].Address[strings.LastIndexByte(list[0].Address, '@'):], "@")
	for _, k := range ks {
		if strings.EqualFold(k.Domain, domain) {
			return k
		}
	}
	return nil
}

// covered are the names of the fields that a signature of this header covers.
func covered(header []byte) []string {
	have := map[string]bool{}
	for line := range bytes.Lines(unfold(header)) {
		if name, _, ok := bytes.Cut(line, []byte(":")); ok {
			have[strings.ToLower(string(bytes.TrimRight(name, " \t")))] = true
		}
	}
	names := []string{"From"} // it comes again below
	for _, name := range signed {
		if have[strings.ToLower(name)] {
			names = append(names, name)
		}
	}
	return names
}

// unfold joins continued lines.
func unfold(header []byte) []byte {
	header = bytes.ReplaceAll(header, []byte("\r\n "), []byte(" "))
	return bytes.ReplaceAll(header, []byte("\r\n\t"), []byte(" "))
}

// Signature is being made of one mail that is written to it: header, empty line, body, with CRLF line ends. Close it in
// any case.
type Signature struct {
	s      *dkim.Signer
	err    error
	closed bool
}

// Sign begins the signature of one mail with the given header.
func (k *Key) Sign(header []byte) (*Signature, error) {
	s, err := dkim.NewSigner(&dkim.SignOptions{Domain: k.Domain, Selector: k.Selector, Signer: k.signer, HeaderKeys: covered(header),
		HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed})
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", k.Domain, err)
	}
	return &Signature{s: s}, nil
}

// Write never fails: Field tells what went wrong.
func (s *Signature) Write(p []byte) (int, error) {
	if s.err == nil {
		_, s.err = s.s.Write(p)
	}
	return len(p), nil
}

// Field is the finished header field, CRLF included.
func (s *Signature) Field() (string, error) {
	if err := s.Close(); err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return s.s.Signature(), nil
}

// Close ends the work, finished or not. A second call does nothing.
func (s *Signature) Close() error {
	if s.closed {
		return s.err
	}
	s.closed = true
	if err := s.s.Close(); s.err == nil {
		s.err = err
	}
	return s.err
}
