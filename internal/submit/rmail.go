package submit

// readFrom reads the "From " lines with which uux delivers mail, and returns the path to the sender: each hop put one
// in front of, or behind a ">", the one before (RFC 976 section 2.4).
//
//	From joe Mon Jan  2 15:04:05 2006 remote from inner
//	>From joe Mon Jan  2 15:04:05 2006
func readFrom(in *input) (sender string, found bool, err error) {
	path := ""
	for {
		l, ok, err := in.peek(MaxHeaderSize)
		if err != nil {
			return "", false, err
		}
		s := string(l)
		if ok && hasPrefix(s, ">From ") {
			s = s[1:]
		}
		if !ok || !hasPrefix(s, "From ") {
			break
		}
		in.line(MaxHeaderSize)
		f := fields(s[len("From "):])
		if len(f) == 0 {
			continue
		}
		found = true
		relay := ""
		if n := len(f); n >= 3 && f[n-3] == "remote" && f[n-2] == "from" {
			relay = f[n-1]
		} else if n >= 3 && f[n-3] == "forwarded" && f[n-2] == "by" {
			relay = f[n-1]
		}
		user := f[0]
		if relay != "" {
			path += relay + "!"
		}
		sender = user
	}
	if !found || sender == "<>" || sender == "MAILER-DAEMON" || sender == "" {
		return "", found, nil
	}
	return Unbang(path + sender), true, nil
}
