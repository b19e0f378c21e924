package summary

import (
	"bytes"
	"encoding/base64"
	"strings"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/mail"
)

// Sealing says in what way a mail is more than its text.
type Sealing int

// The kinds, the stronger the later.
const (
	Open Sealing = iota
	Signed
	Encrypted
)

// String is the word for logs and people.
func (s Sealing) String() string { return [...]string{"open", "signed", "encrypted"}[s] }

// Mail is what Read has found.
type Mail struct {
	Sealing Sealing
	DKIM    bool   // it has a DKIM-Signature
	Report  bool   // a multipart/report
	Broken  string // why its parts cannot be told apart; "" when they can
	Parts   []*Part
	Size    int64

	kind   string // its own content type
	fields []field
	lost   []string
}

// Part is one part that has no parts: its bytes are those from to to of the mail.
type Part struct {
	Type string // "image/jpeg", lower case
	Name string // of the file, as its sender wrote it; may be ""

	fields     []field // of its header
	boundary   string  // of a multipart
	encoding   string
	attachment bool
	whole      bool // it stands for all that could not be taken apart
	alt        int
	from, to   int64
	chars      int64 // without line ends
}

// Length is the size of the part as it stands in the mail, in bytes.
func (p *Part) Length() int64 { return p.to - p.from }

// Size is what it takes on the reader's disk, nearly.
func (p *Part) Size() int64 {
	if p.encoding == "base64" {
		return p.chars * 3 / 4
	}
	return p.Length()
}

// isText reports whether the part is text to be read in its place.
func (p *Part) isText() bool {
	return !p.attachment && (p.Type == "text/plain" || p.Type == "text/html")
}

// sealing is what the part's type says.
func (p *Part) sealing() Sealing {
	switch p.Type {
	case "multipart/signed":
		return Signed
	case "multipart/encrypted", "application/pgp-encrypted", "application/pgp":
		return Encrypted
	case "application/pkcs7-mime", "application/x-pkcs7-mime":
		if f := (&block{fields: p.fields}).find("content-type"); f != nil && bytes.Contains(bytes.ToLower(f.raw), []byte("signed-data")) {
			return Signed
		}
		return Encrypted
	}
	if strings.HasSuffix(strings.ToLower(p.Name), ".p7m") { // S/MIME, by mail systems that call all files octet-stream
		return Encrypted
	}
	return Open
}

func (m *Mail) seal(s Sealing) { m.Sealing = max(m.Sealing, s) }

// take notes what the mail's own header says.
func (m *Mail) take(h *block, p *Part) {
	m.fields, m.lost, m.DKIM, m.kind = h.fields, h.lost, h.dkim, p.Type
	m.Report = p.Type == "multipart/report"
}

// newPart reads what the header of a part says of it.
func newPart(h *block, digest bool) *Part {
	p := &Part{Type: "text/plain"}
	if digest {
		p.Type = "message/rfc822"
	}
	var mh mail.AttachmentHeader
	for _, f := range h.fields {
		if strings.HasPrefix(f.name, "content-") {
			p.fields = append(p.fields, f)
			mh.AddRaw(f.raw)
		}
	}
	if mh.Has("Content-Type") {
		p.Type = "application/octet-stream" // what cannot be read is not text
		kind, params, err := mh.ContentType()
		if kind = strings.ToLower(kind); err != nil { // go-message gives the whole value back
			kind, _, _ = strings.Cut(kind, ";")
			kind = strings.TrimSpace(kind)
		}
		if isType(kind) {
			p.Type = kind
		}
		p.boundary = params["boundary"]
	}
	p.encoding = strings.ToLower(strings.TrimSpace(mh.Get("Content-Transfer-Encoding")))
	how, _, _ := mh.ContentDisposition()
	how, _, _ = strings.Cut(strings.ToLower(how), ";")
	p.Name, _ = mh.Filename()
	if p.Name == "" {
		_, params, _ := (&message.Header{Header: mh.Header.Header}).ContentType()
		p.Name = params["name"]
	}
	how = strings.TrimSpace(how)
	p.attachment = how != "" && how != "inline" || p.Name != ""
	return p
}

// isType reports whether s is a type and a subtype of ordinary characters, not too long.
func isType(s string) bool {
	kind, sub, ok := strings.Cut(s, "/")
	return ok && kind != "" && sub != "" && len(s) <= 127 && strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"[]?=`, r)
	}) < 0 && !strings.Contains(sub, "/")
}

// want says whether a header field is kept.
type want int

const (
	no   want = iota
	may       // while there is room
	must      // the first of that name, whatever the others take
)

// Room for the fields that may be kept.
const (
	roomOfMail = 8 << 10
	roomOfPart = 8 << 10
)

// wantedOfMail are the fields that a summary repeats, and those that say what the mail is. A list of what is taken, not of
// what is left out: signatures, requests for receipts and whatever comes up later do not belong to another mail.
func wantedOfMail(name string) want {
	switch name {
	case "from", "sender", "to", "cc", "date", "subject", "message-id", "in-reply-to", "references", "reply-to",
		"content-type", "content-transfer-encoding", "content-disposition", "auto-submitted", "precedence":
		return must
	case "received", "delivered-to", "x-loop", "organization", "importance", "priority", "x-priority", "sensitivity",
		"keywords", "comments", "list-id", "list-post", "list-help", "list-unsubscribe", "list-owner", "list-archive",
		"x-mailing-list", "x-spam-flag", "x-spam-status", "x-spam-level", "resent-from", "resent-sender", "resent-to", "resent-cc",
		"resent-date", "content-language", "content-id", "content-description":
		return may
	}
	return no
}

// ofSummary reports whether a field is repeated in the summary's header.
func ofSummary(name string) bool {
	switch name {
	case "message-id", "in-reply-to", "references", "reply-to":
		return false
	}
	return !strings.HasPrefix(name, "content-")
}

func wantedOfPart(name string) want {
	switch name {
	case "content-type", "content-transfer-encoding", "content-disposition":
		return must
	case "content-language", "content-id", "content-description":
		return may
	}
	return no
}

// armor looks for PGP in a text.
type armor struct {
	encoding string
	rest     []byte // base64 that is not decoded yet
	tail     []byte // the end of what was decoded
}

const (
	pgpSigned    = "-----BEGIN PGP SIGNED MESSAGE-----"
	pgpEncrypted = "-----BEGIN PGP MESSAGE-----"
)

// dashes undoes what quoted-printable does to armour.
var dashes = strings.NewReplacer("=2D", "-", "=2d", "-", "=20", " ")

func (a *armor) look(line []byte) Sealing {
	switch a.encoding {
	case "base64":
		return a.decoded(line)
	case "quoted-printable":
		if len(line) > 200 || len(line) == 0 || line[0] != '-' && line[0] != '=' {
			return Open
		}
		line = []byte(dashes.Replace(string(line)))
	}
	switch {
	case bytes.HasPrefix(line, []byte(pgpSigned)):
		return Signed
	case bytes.HasPrefix(line, []byte(pgpEncrypted)):
		return Encrypted
	}
	return Open
}

// decoded looks into base64, where the begin of a line cannot be told: better one mail too many counts as signed.
func (a *armor) decoded(line []byte) Sealing {
	a.rest = append(a.rest, line...)
	n := len(a.rest) &^ 3
	buf := make([]byte, base64.StdEncoding.DecodedLen(n))
	k, _ := base64.StdEncoding.Decode(buf, a.rest[:n])
	a.rest = append(a.rest[:0], a.rest[n:]...)
	text := append(a.tail, buf[:k]...)
	s := Open
	switch {
	case bytes.Contains(text, []byte(pgpEncrypted)):
		s = Encrypted
	case bytes.Contains(text, []byte(pgpSigned)):
		s = Signed
	}
	a.tail = bytes.Clone(text[max(0, len(text)-len(pgpSigned)):])
	return s
}
