package submit

import "syscall"

// now is the time in microseconds since 1970.
func now() int64 {
	var tv syscall.Timeval
	if syscall.Gettimeofday(&tv) != nil {
		return 0
	}
	return int64(tv.Sec)*1e6 + int64(tv.Usec)
}

const (
	dayNames   = "SunMonTueWedThuFriSat"
	monthNames = "JanFebMarAprMayJunJulAugSepOctNovDec"
)

// appendDate writes a date-time of RFC 5322 section 3.3: seconds since 1970, shown offset seconds east of Greenwich.
func appendDate(b []byte, unix int64, offset int) []byte {
	unix += int64(offset)
	date := floorDiv(unix, 86400)
	sec := unix - date*86400
	year, month, day := civil(date)
	wd := weekday(date)
	b = append(b, dayNames[3*wd:3*wd+3]...)
	b = appendInt(append(b, ", "...), uint64(day), 2)
	b = append(append(b, ' '), monthNames[3*month-3:3*month]...)
	b = appendInt(append(b, ' '), uint64(year), 4)
	b = appendInt(append(b, ' '), uint64(sec/3600), 2)
	b = appendInt(append(b, ':'), uint64(sec/60%60), 2)
	b = appendInt(append(b, ':'), uint64(sec%60), 2)
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	b = appendInt(append(b, ' ', sign), uint64(offset/3600), 2)
	return appendInt(b, uint64(offset/60%60), 2)
}

// civil is the proleptic Gregorian date of a day counted from 1970-01-01.
func civil(days int64) (year, month, day int64) {
	days += 719468 // from 0000-03-01, so that leap days come last
	era := floorDiv(days, 146097)
	doe := days - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	m := (5*doy + 2) / 153
	day = doy - (153*m+2)/5 + 1
	month = m + 3
	if month > 12 {
		month -= 12
	}
	year = yoe + era*400
	if month <= 2 {
		year++
	}
	return year, month, day
}
