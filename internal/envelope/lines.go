package envelope

import (
	"bytes"
	"encoding/binary"
)

// CleanLines is the length of the whole lines at the beginning of p that may pass as they are where mail goes in or out by
// SMTP: each ends with CRLF, none has another CR or LF, and no line but the first begins with a dot. It is 0 when there
// is none, or a CR on its own among them. It says nothing of NUL. Mail is made of such lines, and finding them together
// takes a fraction of the time of looking at each byte that may mean something.
func CleanLines(p []byte) int {
	end, lines := 0, 0
	for {
		lf := bytes.IndexByte(p[end:], '\n')
		if lf < 1 || p[end+lf-1] != '\r' {
			break
		}
		end += lf + 1
		if lines++; end == len(p) || p[end] == '.' {
			break
		}
	}
	if bytes.Count(p[:end], carriageReturn) != lines {
		return 0
	}
	return end
}

var carriageReturn = []byte("\r")

// SevenBit reports whether no byte of b is above 127.
func SevenBit(b []byte) bool {
	const high = 0x8080808080808080
	for ; len(b) >= 32; b = b[32:] {
		w := binary.LittleEndian.Uint64(b) | binary.LittleEndian.Uint64(b[8:]) | binary.LittleEndian.Uint64(b[16:]) | binary.LittleEndian.Uint64(b[24:])
		if w&high != 0 {
			return false
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
