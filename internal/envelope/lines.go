package envelope

import "bytes"

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
