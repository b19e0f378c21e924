package submit

import (
	"archive/zip"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDateAgreesWithPackageTime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		unix := r.Int64N(8e9) - 2e9
		offset := (r.IntN(2*14*4) - 14*4) * 900
		want := time.Unix(unix, 0).In(time.FixedZone("", offset)).Format("Mon, 02 Jan 2006 15:04:05 -0700")
		if got := string(appendDate(nil, unix, offset)); got != want {
			t.Fatalf("appendDate(%d, %d) = %q, want %q", unix, offset, got, want)
		}
	}
}

// zones is the database that Go ships: every machine with a Go tree has it.
func zones(t *testing.T) map[string][]byte {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.OpenReader(filepath.Join(strings.TrimSpace(string(root)), "lib/time/zoneinfo.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	out := map[string][]byte{}
	for _, f := range z.File {
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 0 {
			out[f.Name] = b
		}
	}
	return out
}

func TestZonesAgreeWithPackageTime(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	all := zones(t)
	if len(all) < 100 {
		t.Fatalf("only %d zones", len(all))
	}
	for name, b := range all {
		loc, err := time.LoadLocationFromTZData(name, b)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			unix := r.Int64N(4e9) // 1970 to 2096
			_, want := time.Unix(unix, 0).In(loc).Zone()
			if got := tzifOffset(b, unix); got != want {
				t.Errorf("%s at %d: %d, want %d", name, unix, got, want)
				break
			}
		}
	}
}

func TestLocalOffset(t *testing.T) {
	summer := time.Date(2025, 7, 1, 12, 0, 0, 0, time.UTC).Unix()
	for _, c := range []struct {
		tz   string
		want int
	}{
		{"", 0}, {"UTC0", 0}, {"CET-1CEST,M3.5.0,M10.5.0/3", 7200}, {":CET-1CEST,M3.5.0,M10.5.0/3", 7200},
		{"EST5EDT", -4 * 3600}, {"<+0545>-5:45", 20700}, {"AEST-10AEDT,M10.1.0,M4.1.0/3", 36000},
		{"XXX4YYY,J60,J300", -3 * 3600}, {"XXX4YYY,200,300", -4 * 3600}, {"/no/such/file", 0}, {"No/Such_Zone", 0},
		{"CET-1CEST,M13.5.0,M10.5.0", 0}, {"CET-1CEST,M3", 0}, {"<", 0}, {"CET-999", 0},
	} {
		got := localOffset(summer, func(string) (string, bool) { return c.tz, true }, make([]byte, 64))
		if got != c.want {
			t.Errorf("TZ=%q: %d, want %d", c.tz, got, c.want)
		}
	}
}

func FuzzZone(f *testing.F) {
	f.Add([]byte("TZif2"), "CET-1CEST,M3.5.0,M10.5.0/3", int64(1e9))
	f.Fuzz(func(t *testing.T, b []byte, rule string, unix int64) {
		unix %= 1e11
		tzifOffset(b, unix)
		ruleOffset(rule, unix)
	})
}
