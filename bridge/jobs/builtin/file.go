package builtin

import (
	"bufio"
	"fmt"
	"slices"
	"strconv"

	"mochila/bridge/jobs/tree"
	"mochila/internal/durable"
)

// file puts the tree on standard input into a folder.
func (s Settings) file(args []string, p *Process) error {
	dir := ""
	if len(args) == 1 {
		dir = args[0]
	}
	folder, rel, err := s.locate(dir)
	if err != nil {
		return err
	}
	root, err := s.open(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	size, err := strconv.ParseInt(p.Getenv("MOCHILA_STDIN_SIZE"), 10, 64)
	key := p.Getenv("MOCHILA_JOB_ID")
	if err != nil || key == "" {
		return failure(err, exitConfig, "MOCHILA_STDIN_SIZE or MOCHILA_JOB_ID is missing")
	}
	if free, _, err := durable.Free(folder); err == nil && free < size {
		return failure(nil, exitTemp, "%d bytes are free in %s, and %d have come", free, folder, size)
	}
	done, err := tree.Unpack(bufio.NewReaderSize(p.In, 256<<10), tree.Place{Root: root, Dir: rel, Key: key, Overwrite: tree.Overwrite(s.Overwrite), Size: size})
	if err != nil {
		return err
	}
	for _, name := range done.Names {
		was := ""
		if slices.Contains(done.Same, name) {
			was = " (was there already)"
		}
		fmt.Fprintf(p.Out, "%q%s\n", join(folder, rel, name), was)
	}
	fmt.Fprintf(p.Out, "%v, sha256 %s\n", done.Summary, done.Sum)
	return nil
}

func join(folder, rel, name string) string {
	if rel == "." {
		return folder + "/" + name
	}
	return folder + "/" + rel + "/" + name
}
