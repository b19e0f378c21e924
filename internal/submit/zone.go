package submit

// The local time zone, from TZif files (RFC 9636) and POSIX TZ rules. Package time would do it, at the price of a
// slower start for every mail.

// localOffset is how many seconds the local zone is east of Greenwich at a time: by $TZ, else /etc/localtime. What
// cannot be read counts as UTC. room is scratch memory.
func localOffset(unix int64, getenv func(string) (string, bool), room []byte) int {
	tz, set := getenv("TZ")
	if !set {
		return fileOffset("/etc/localtime", unix, room)
	}
	if hasPrefix(tz, ":") {
		tz = tz[1:]
	}
	if tz == "" {
		return 0
	}
	if tz[0] == '/' {
		return fileOffset(tz, unix, room)
	}
	if off, ok := ruleOffset(tz, unix); ok {
		return off
	}
	return fileOffset("/usr/share/zoneinfo/"+tz, unix, room)
}

func fileOffset(path string, unix int64, room []byte) int {
	n, err := readFile(path, room)
	if err != nil {
		return 0
	}
	if n < len(room) {
		return tzifOffset(room[:n], unix)
	}
	b, err := readAll(path, 1<<20)
	if err != nil {
		return 0
	}
	return tzifOffset(b, unix)
}

// tzif is one data block of a file.
type tzif struct {
	times, kinds, types []byte
	width               int // bytes of a time
	rest                []byte
}

// tzifBlock reads one header and its data; times are 4 bytes in the first block and 8 in the second.
func tzifBlock(b []byte, width int) (z tzif, version byte, ok bool) {
	const head = 44
	if len(b) < head || string(b[:4]) != "TZif" {
		return z, 0, false
	}
	var count [6]int // isut, isstd, leap, time, type, char
	for i := range count {
		n := get32(b[20+4*i:])
		if n > 1<<16 {
			return z, 0, false
		}
		count[i] = int(n)
	}
	version = b[4]
	times, types := count[3]*width, count[4]*6
	size := times + count[3] + types + count[5] + count[2]*(width+4) + count[1] + count[0]
	if b = b[head:]; len(b) < size || types == 0 {
		return z, 0, false
	}
	z = tzif{times: b[:times], kinds: b[times : times+count[3]], types: b[times+count[3] : times+count[3]+types], width: width, rest: b[size:]}
	return z, version, true
}

func tzifOffset(b []byte, unix int64) int {
	z, version, ok := tzifBlock(b, 4)
	if !ok {
		return 0
	}
	if version >= '2' {
		if z, _, ok = tzifBlock(z.rest, 8); !ok {
			return 0
		}
	}
	kind, last := z.find(unix)
	if last && version >= '2' && len(z.rest) > 2 {
		rule := z.rest[1:]
		if n := indexByte(rule, '\n'); n > 0 {
			if off, ok := ruleOffset(string(rule[:n]), unix); ok {
				return off
			}
		}
	}
	if kind*6+4 > len(z.types) {
		return 0
	}
	return int(int32(get32(z.types[kind*6:])))
}

// find returns the type in force, and whether no transition follows.
func (z *tzif) find(unix int64) (kind int, last bool) {
	n := len(z.kinds)
	i := 0
	for i < n && z.at(i) <= unix {
		i++
	}
	if i == 0 {
		return 0, n == 0
	}
	return int(z.kinds[i-1]), i == n
}

func (z *tzif) at(i int) int64 {
	b := z.times[i*z.width:]
	if z.width == 4 {
		return int64(int32(get32(b)))
	}
	return int64(get32(b))<<32 | int64(get32(b[4:]))
}

// ruleOffset applies a POSIX TZ rule such as "CET-1CEST,M3.5.0,M10.5.0/3".
func ruleOffset(rule string, unix int64) (int, bool) {
	p := tzRule{s: rule}
	std, ok := p.zone()
	if !ok {
		return 0, false
	}
	if p.s == "" {
		return std, true
	}
	if !p.name() {
		return 0, false
	}
	dst := std + 3600
	if p.s != "" && p.s[0] != ',' {
		n, ok := p.offset()
		if !ok {
			return 0, false
		}
		dst = -n
	}
	if p.s == "" {
		p.s = ",M3.2.0,M11.1.0"
	}
	year, _, _ := civil(floorDiv(unix+int64(std), 86400))
	start, ok1 := p.date(year)
	end, ok2 := p.date(year)
	if !ok1 || !ok2 || p.s != "" {
		return 0, false
	}
	start -= int64(std)
	end -= int64(dst)
	in := start <= unix && unix < end
	if end < start {
		in = unix < end || start <= unix
	}
	if in {
		return dst, true
	}
	return std, true
}

func floorDiv(a, b int64) int64 {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}

// tzRule is what is left of a rule.
type tzRule struct{ s string }

// zone reads a name and its offset, and returns seconds east.
func (p *tzRule) zone() (int, bool) {
	if !p.name() {
		return 0, false
	}
	n, ok := p.offset()
	return -n, ok
}

func (p *tzRule) name() bool {
	n := 0
	if hasPrefix(p.s, "<") {
		for n < len(p.s) && p.s[n] != '>' {
			n++
		}
		if n == len(p.s) {
			return false
		}
		p.s = p.s[n+1:]
		return n > 1
	}
	for n < len(p.s) && 'a' <= lower(p.s[n]) && lower(p.s[n]) <= 'z' {
		n++
	}
	p.s = p.s[n:]
	return n >= 3
}

func (p *tzRule) number() (int64, bool) {
	n := 0
	for n < len(p.s) && '0' <= p.s[n] && p.s[n] <= '9' {
		n++
	}
	v, ok := atoi(p.s[:n])
	p.s = p.s[n:]
	return v, ok && v < 1e6
}

func (p *tzRule) skip(c byte) bool {
	if p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

// offset reads [+-]hh[:mm[:ss]].
func (p *tzRule) offset() (int, bool) {
	sign := 1
	if p.skip('-') {
		sign = -1
	} else {
		p.skip('+')
	}
	total, unit := 0, 3600
	for {
		n, ok := p.number()
		if !ok || n > 167 {
			return 0, false
		}
		total += int(n) * unit
		if unit /= 60; unit == 0 || !p.skip(':') {
			return sign * total, true
		}
	}
}

// date reads ",Mm.w.d[/time]", ",Jn[/time]" or ",n[/time]" and returns its local seconds since 1970 in a year.
func (p *tzRule) date(year int64) (int64, bool) {
	if !p.skip(',') {
		return 0, false
	}
	jan1 := days(year, 1, 1)
	var day int64
	switch {
	case p.skip('M'):
		m, ok1 := p.number()
		dot1 := p.skip('.')
		w, ok2 := p.number()
		dot2 := p.skip('.')
		wd, ok3 := p.number()
		if !ok1 || !ok2 || !ok3 || !dot1 || !dot2 || m < 1 || m > 12 || w < 1 || w > 5 || wd > 6 {
			return 0, false
		}
		first := days(year, m, 1)
		day = first + (wd-weekday(first)+7)%7 + 7*(w-1)
		next := days(year, m+1, 1)
		if m == 12 {
			next = days(year+1, 1, 1)
		}
		for day >= next {
			day -= 7
		}
	case p.skip('J'):
		n, ok := p.number()
		if !ok || n < 1 || n > 365 {
			return 0, false
		}
		day = jan1 + n - 1
		if n > 59 && days(year, 3, 1)-jan1 == 60 {
			day++
		}
	default:
		n, ok := p.number()
		if !ok || n > 365 {
			return 0, false
		}
		day = jan1 + n
	}
	at := 2 * 3600
	if p.skip('/') {
		var ok bool
		if at, ok = p.offset(); !ok {
			return 0, false
		}
	}
	return day*86400 + int64(at), true
}

// weekday of a day since 1970, Sunday is 0; 1970 began on a Thursday.
func weekday(day int64) int64 { return (day%7 + 11) % 7 }

// days since 1970-01-01 of a date; the inverse of civil.
func days(year, month, day int64) int64 {
	if month <= 2 {
		year--
		month += 12
	}
	era := floorDiv(year, 400)
	yoe := year - era*400
	doy := (153*(month-3)+2)/5 + day - 1
	return era*146097 + yoe*365 + yoe/4 - yoe/100 + doy - 719468
}
