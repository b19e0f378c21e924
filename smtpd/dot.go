package smtpd

import (
	"bytes"

	"mochila/internal/envelope"
)

// dotState is where in a line the decoder stands.
type dotState uint8

const (
	dotStart     dotState = iota // at the start of a line, after a true CRLF: only here "." CRLF ends the data
	dotMid                       // inside a line
	dotCR                        // crs carriage returns are held back
	dotDot                       // "." at dotStart, not written
	dotDotCR                     // "." CR at dotStart
	dotSoft                      // at the start of a line, after a bare LF
	dotSoftDot                   // "." at dotSoft, held back
	dotSoftDotCR                 // "." CR at dotSoft
)

// dotFault names what is not allowed in message content (RFC 5321 sections 2.3.8 and 4.5.2).
type dotFault string

const (
	faultNone   dotFault = ""
	faultBareLF dotFault = "bare <LF>"
	faultBareCR dotFault = "bare <CR>"
	faultNUL    dotFault = "<NUL>"
)

// dotEnd is what feed found.
type dotEnd uint8

const (
	dotMore  dotEnd = iota // all input used, the data go on
	dotDone                // CRLF "." CRLF
	dotFalse               // LF "." LF, LF "." CRLF or CRLF "." LF: other servers end here, so the client may think it has ended
)

// contentWriter takes decoded content; it remembers its errors.
type contentWriter interface{ write(p []byte) }

// dotDecoder takes the dots off DATA content and finds its end, in whatever pieces it arrives. Its zero value
// refuses: it remembers the first fault and writes nothing after it. With normalize, faults are repaired instead:
//
//   - LF and CR on their own become CRLF, and CR CR LF too; NUL is left out;
//   - after such an LF a doubled dot loses one dot (the sender stuffed LF lines), a single one stays (it did not);
//   - none of these sequences ends the data.
type dotDecoder struct {
	normalize bool
	state     dotState
	crs       int
	fault     dotFault
}

var (
	textCRLF    = []byte("\r\n")
	textDot     = []byte(".")
	textDotCRLF = []byte(".\r\n")
)

// feed decodes p into w and returns how much of p belongs to the data.
func (d *dotDecoder) feed(p []byte, w contentWriter) (int, dotEnd) {
	from := 0         // p[from:i] is content that is not written yet
	nl, nul := -1, -1 // positions of the next LF and NUL, len(p) for none; stale when before i
	clean := true     // nothing in p has been found yet that is no clean line
	for i := 0; i < len(p); {
		b := p[i]
		if clean && (d.state == dotMid || d.state == dotStart && b != '.') {
			n := envelope.CleanLines(p[i:])
			if clean = n > 0 && bytes.IndexByte(p[i:i+n], 0) < 0; clean {
				i += n
				d.state = dotStart
				continue
			}
		}
		switch d.state {
		case dotStart:
			d.state = dotMid
			if b == '.' {
				d.put(w, p[from:i])
				i++
				from, d.state = i, dotDot
			}
		case dotMid:
			nl, nul = next(p, i, nl, '\n'), next(p, i, nul, 0)
			i = next(p[:min(nl, nul)], i, -1, '\r')
			switch {
			case i == len(p):
			case i == nul:
				d.put(w, p[from:i])
				d.seen(faultNUL)
				i++
				from = i
			case i == nl:
				d.put(w, p[from:i])
				d.seen(faultBareLF)
				d.put(w, textCRLF)
				i++
				from, d.state = i, dotSoft
			case i+1 == nl && nl < len(p):
				i += 2
				d.state = dotStart
			default:
				d.put(w, p[from:i])
				i++
				from, d.state, d.crs = i, dotCR, 1
			}
		case dotCR:
			switch b {
			case '\n':
				if d.crs > 1 {
					d.seen(faultBareCR)
				}
				d.put(w, textCRLF)
				i++
				from, d.state = i, dotStart
			case '\r':
				i++
				from = i
				d.crs++
			default:
				d.seen(faultBareCR)
				for ; d.crs > 0; d.crs-- {
					d.put(w, textCRLF)
				}
				d.state = dotMid
			}
		case dotDot:
			switch b {
			case '\r':
				i++
				from, d.state = i, dotDotCR
			case '\n':
				d.seen(faultBareLF)
				if !d.normalize {
					return i + 1, dotFalse
				}
				d.state = dotMid
			default:
				d.state = dotMid
			}
		case dotDotCR:
			if b == '\n' {
				d.state = dotStart
				return i + 1, dotDone
			}
			d.state, d.crs = dotCR, 1
		case dotSoft:
			d.state = dotMid
			if b == '.' {
				i++
				from, d.state = i, dotSoftDot
			}
		case dotSoftDot:
			d.state = dotMid
			switch b {
			case '.':
			case '\r':
				i++
				from, d.state = i, dotSoftDotCR
			case '\n':
				if !d.normalize {
					return i + 1, dotFalse
				}
				d.put(w, textDot)
			default:
				d.put(w, textDot)
			}
		case dotSoftDotCR:
			if b == '\n' {
				if !d.normalize {
					return i + 1, dotFalse
				}
				d.put(w, textDotCRLF)
				i++
				from, d.state = i, dotStart
			} else {
				d.put(w, textDot)
				d.state, d.crs = dotCR, 1
			}
		}
	}
	d.put(w, p[from:])
	return len(p), dotMore
}

// next is the position of the first b in p at or after i, len(p) for none; known is an earlier answer.
func next(p []byte, i, known int, b byte) int {
	if known >= i {
		return known
	}
	if n := bytes.IndexByte(p[i:], b); n >= 0 {
		return i + n
	}
	return len(p)
}

// seen notes the first fault.
func (d *dotDecoder) seen(f dotFault) {
	if d.fault == faultNone {
		d.fault = f
	}
}

// put writes content, unless a fault has made it worthless.
func (d *dotDecoder) put(w contentWriter, p []byte) {
	if len(p) > 0 && (d.normalize || d.fault == faultNone) {
		w.write(p)
	}
}
