// Command debian makes the Debian packages from what `make install DESTDIR=STAGE PREFIX=/usr` has put into a folder
// (make deb). The same tree and version give the same bytes.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // the packager
)

func main() {
	log.SetFlags(0)
	stage := flag.String("stage", "", "`folder` with the installed tree")
	out := flag.String("out", "", "`folder` for the packages")
	version := flag.String("version", "", "version, as Debian writes it")
	arch := flag.String("arch", "amd64", "architecture, as Go calls it")
	flag.Parse()
	for _, name := range flag.Args() {
		path, err := build(name, *stage, *out, *version, *arch)
		if err != nil {
			log.Fatalf("make a package of %s: %v", name, err)
		}
		fmt.Println(path)
	}
}

// build makes one package from its description. In that, STAGE, VERSION and ARCH stand for what the flags say.
func build(description, stage, out, version, arch string) (path string, err error) {
	words := map[string]string{"STAGE": stage, "VERSION": version, "ARCH": arch}
	config, err := nfpm.ParseFileWithEnvMapping(description, func(key string) string { return words[key] })
	if err != nil {
		return "", err
	}
	info, err := config.Get("deb")
	if err != nil {
		return "", err
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, "deb"); err != nil {
		return "", err
	}
	packager, err := nfpm.Get("deb")
	if err != nil {
		return "", err
	}
	path = filepath.Join(out, packager.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	if err := packager.Package(info, f); err != nil {
		f.Close()
		return "", err
	}
	return path, f.Close()
}
