package e2e

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	tomlfile "github.com/pelletier/go-toml/v2"

	"mochila/internal/config"
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
