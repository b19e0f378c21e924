package e2e

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	tomlfile "github.com/pelletier/go-toml/v2"
	"golang.org/x/net/webdav"

	"mochila/internal/config"
	"mochila/internal/peertest"
	"mochila/transport/s3/s3test"
)

// carrierRecipe is the carrier of the contact in a file of contrib/carriers, with this test's places in it. Each text to
// replace must be there.
func carrierRecipe(t testing.TB, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "contrib", "carriers", name))
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Contact []config.Contact `toml:"contact"`
	}
	if err := tomlfile.Unmarshal(b, &conf); err != nil || len(conf.Contact) == 0 {
		t.Fatalf("%s: %d contacts, %v", name, len(conf.Contact), err)
	}
	url := conf.Contact[0].Carrier
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(url, replace[i]) {
			t.Fatalf("%s: %q is not in %q", name, replace[i], url)
		}
		url = strings.Replace(url, replace[i], replace[i+1], 1)
	}
	return url
}

// secret writes a file that only its owner can read.
func secret(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestScenarioS3: a store whose objects get lost and damaged, and that refuses and throttles requests.
func TestScenarioS3(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		s := s3test.New(t)
		url := carrierRecipe(t, "s3.toml", "sites-mail", s.Bucket, "https://s3.example.net", s.URL,
			"/etc/mochila/s3.keys", secret(t, "[default]\naws_access_key_id = camp\naws_secret_access_key = secret\n"))
		s.FailEvery(7)
		return joined{camp: side{url: url}, hub: side{url: url}, harm: func(r *rand.Rand) int { return harmStore(t, s, r) }}
	}})
}

// harmStore loses, cuts or changes objects.
func harmStore(t *testing.T, s *s3test.Store, r *rand.Rand) (hits int) {
	t.Helper()
	list, err := s.Backend.ListBucket(s.Bucket, &gofakes3.Prefix{}, gofakes3.ListBucketPage{})
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range list.Contents {
		if len(filepath.Base(o.Key)) != 52 || i > 0 && r.IntN(2) == 0 {
			continue
		}
		x, err := s.Backend.GetObject(s.Bucket, o.Key, nil)
		if err != nil {
			continue // just deleted
		}
		b, err := io.ReadAll(x.Contents)
		x.Contents.Close()
		if err != nil || len(b) == 0 {
			t.Fatal(err)
		}
		switch r.IntN(3) {
		case 0:
			s.Backend.DeleteObject(s.Bucket, o.Key)
			hits++
			continue
		case 1:
			b = b[:r.IntN(len(b))]
		case 2:
			b = append([]byte{}, b...)
			b[r.IntN(len(b))] ^= 4
		}
		if _, err := s.Backend.PutObject(s.Bucket, o.Key, map[string]string{}, bytes.NewReader(b), int64(len(b)), nil); err != nil {
			t.Fatal(err)
		}
		hits++
	}
	return hits
}

// TestScenarioSFTP: a real sshd that knows nothing of mochila, over a line that breaks; and files get lost and damaged.
func TestScenarioSFTP(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		d := peertest.StartSSHD(t, peertest.SSHDOptions{})
		dir := t.TempDir()
		line := newBadLine(t, random(t), "tcp", d.Addr, 6, true)
		url := carrierRecipe(t, "sftp.toml", "drop@box.example", d.User+"@"+line.addr, "/srv/drop", dir, "/etc/mochila/ssh_config", d.Config)
		return joined{camp: side{url: url}, hub: side{url: url}, harm: newMischief(t, dir).harm, faults: line.faults}
	}})
}

// TestScenarioDAV: a WebDAV server behind a line that breaks.
func TestScenarioDAV(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		dir := t.TempDir()
		h := &webdav.Handler{FileSystem: webdav.Dir(dir), LockSystem: webdav.NewMemLS()}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); password != "password" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		}))
		t.Cleanup(s.Close)
		if err := os.MkdirAll(filepath.Join(dir, "remote.php/dav/files/camp/net"), 0o755); err != nil {
			t.Fatal(err)
		}
		line := newBadLine(t, random(t), "tcp", strings.TrimPrefix(s.URL, "http://"), 8, false)
		url := carrierRecipe(t, "dav.toml", "davs:cloud.example", "dav:"+line.addr, "/etc/mochila/dav.secret", secret(t, "camp:password"))
		return joined{camp: side{url: url}, hub: side{url: url}, harm: newMischief(t, dir).harm, faults: line.faults}
	}})
}

// TestScenarioRclone: a folder that the real rclone encrypts; files below get lost and damaged, names and all.
func TestScenarioRclone(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		r := peertest.NewRclone(t)
		url := carrierRecipe(t, "rclone.toml", "drive:net", "secret:net", "/etc/mochila/rclone.conf", r.Config)
		m := newMischief(t, r.Dir)
		m.any = true
		return joined{camp: side{url: url}, hub: side{url: url}, harm: m.harm}
	}})
}

// TestScenarioSyncthing: two instances of the real Syncthing, and files get lost and damaged at one of them.
func TestScenarioSyncthing(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, _, _ *node) joined {
		a, b := t.TempDir(), t.TempDir()
		for _, dir := range []string{a, b} {
			if err := os.WriteFile(filepath.Join(dir, ".stignore"), []byte("(?d).tmp-*\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		peertest.StartSyncthing(t, a, b)
		here, there := newMischief(t, a), newMischief(t, b)
		return joined{
			camp: side{url: carrierRecipe(t, "syncthing.toml", "/srv/sync/mochila", a)},
			hub:  side{url: carrierRecipe(t, "syncthing.toml", "/srv/sync/mochila", b)},
			harm: func(r *rand.Rand) int { return here.harm(r) + there.harm(r) },
		}
	}})
}

// TestScenarioCourier: each node has a stick of its own, and a machine without keys carries between them, with a pouch
// that is on the way all the time.
func TestScenarioCourier(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, _ *node) joined {
		a, b, pouch := t.TempDir(), t.TempDir(), t.TempDir()
		left, right := newMischief(t, a), newMischief(t, b)
		return joined{camp: side{url: "dir:" + a}, hub: side{url: "dir:" + b},
			carry: func() {
				out, err := exec.Command(program("mochila"), "--home", "/nonexistent", "courier", a, pouch, b).CombinedOutput()
				if err != nil {
					t.Errorf("mochila courier: %v: %s", err, out)
				}
			},
			harm: func(r *rand.Rand) int { return left.harm(r) + right.harm(r) },
		}
	}})
}
