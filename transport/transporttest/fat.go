package transporttest

import (
	"context"
	"fmt"
	"io"
	"strings"

	"mochila/transport"
)

// FATFolder enforces the rules of a FAT32 stick on what is put into another Folder: names, file size, entries per
// directory, and names that differ in case only being one file.
type FATFolder struct{ transport.Folder }

const (
	fatFileSize = 1<<32 - 1
	fatEntries  = 65534 // directory slots of 32 bytes
)

// Put implements transport.Folder.
func (f FATFolder) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	for _, part := range append(strings.Split(dir, "/"), name) {
		if err := fatName(part); err != nil {
			return err
		}
	}
	if size > fatFileSize {
		return fmt.Errorf("%d bytes are too many for FAT: %w", size, transport.ErrFull)
	}
	there, err := f.Folder.List(ctx, dir)
	if err != nil {
		return err
	}
	slots := fatSlots(name)
	for _, e := range there {
		if e.Name != name && strings.EqualFold(e.Name, name) {
			return fmt.Errorf("%q and %q are one name on FAT", e.Name, name)
		}
		slots += fatSlots(e.Name)
	}
	if slots > fatEntries {
		return fmt.Errorf("directory has no more slots: %w", transport.ErrFull)
	}
	return f.Folder.Put(ctx, dir, name, size, r)
}

// fatSlots is what a name takes in its directory: 13 characters a slot, and one for the short name.
func fatSlots(name string) int { return 1 + (len(name)+12)/13 }

func fatName(name string) error {
	if len(name) > 255 || strings.ContainsAny(name, "\"*:<>?\\|\x7f") || strings.TrimRight(name, ". ") != name {
		return fmt.Errorf("%q is not a name on FAT", name)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c >= 0x80 {
			return fmt.Errorf("%q is not a name on FAT", name)
		}
	}
	base, _, _ := strings.Cut(strings.ToLower(name), ".")
	switch base {
	case "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "lpt1", "lpt2", "lpt3":
		return fmt.Errorf("%q is a device on some systems", name)
	}
	return nil
}
