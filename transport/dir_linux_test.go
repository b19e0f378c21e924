package transport

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMountPoints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fstab")
	table := "# /dev/sda1 /commented ext4\n\nUUID=1 / ext4 defaults 0 1\nLABEL=x /media/my\\040stick vfat noauto 0 0\nshort\nnone /odd\\9 tmpfs\n"
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	points, err := mountPoints(file, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(points)), []string{"/", "/media/my stick", `/odd\9`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
