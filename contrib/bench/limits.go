package main

import (
	"bufio"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// machine prints the facts that figures depend on.
func (b *bench) machine() {
	var u syscall.Utsname
	kernel := ""
	if syscall.Uname(&u) == nil {
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			kernel += string(rune(c))
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	load1, _, _ := strings.Cut(string(load), " ")
	b.facts = fmt.Sprintf("%d cores of %s, Linux %s, file system %s, load %s at the start", runtime.NumCPU(), processor(), kernel, fileSystem(b.tmp), load1)
	log.Print("machine: ", b.facts)
	version, err := command(b.ctx, nil, filepath.Join(b.bin, "mochila"), "version")
	if err != nil {
		version = err.Error()
	}
	peer, err := postfixVersion()
	if err != nil {
		peer = err.Error()
	}
	nncp := "none"
	if out, err := exec.Command("nncp-stat", "-version").Output(); err == nil {
		nncp, _, _ = strings.Cut(string(out), "\n")
	}
	spooler := "no Filespooler"
	if out, err := exec.Command("fspl", "--version").Output(); err == nil {
		spooler = strings.TrimSpace(string(out))
	}
	b.peers = fmt.Sprintf("%s; Postfix %s; %s; %s", strings.TrimSpace(version), peer, nncp, spooler)
	log.Print("contestants: ", b.peers)
}

func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// fileSystem names the type of the file system that holds path.
func fileSystem(path string) string {
	out, err := exec.Command("df", "--output=fstype", path).Output()
	f := strings.Fields(string(out))
	if err != nil || len(f) == 0 {
		return "unknown"
	}
	name := f[len(f)-1]
	if name == "tmpfs" {
		log.Printf("WARNING: %s is in memory: fsync costs nothing there, choose a disk with -tmp", path)
	}
	return name
}

// limits measures what the disk gives, so that figures of two days can be compared.
func (b *bench) limits() error {
	dir, err := b.dir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	block := make([]byte, 4096)
	f, err := os.Create(filepath.Join(dir, "append"))
	if err != nil {
		return err
	}
	defer f.Close()
	for range 200 {
		start := time.Now()
		_, err := f.Write(block)
		if err = errors.Join(err, f.Sync()); err != nil {
			return err
		}
		b.fig.add("limit.fsync.append_ms", time.Since(start).Seconds()*1e3)
	}
	for i := range 200 {
		start := time.Now()
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return err
		}
		_, err = f.Write(block)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		b.fig.add("limit.fsync.newfile_ms", time.Since(start).Seconds()*1e3)
	}
	start, big := time.Now(), make([]byte, 1<<20)
	g, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return err
	}
	defer g.Close()
	for range 256 {
		if _, err := g.Write(big); err != nil {
			return err
		}
	}
	if err := g.Sync(); err != nil {
		return err
	}
	b.fig.add("limit.write.MB_per_s", 256*1.048576/time.Since(start).Seconds())
	b.fig.show("limit.")
	return nil
}
