package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// arrived is one mail of a Maildir.
type arrived struct {
	path string
	text []byte
}

// readMaildirs reads every mail of every Maildir below root.
func readMaildirs(root string) ([]arrived, error) {
	var out []arrived
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == root {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if sub := filepath.Base(filepath.Dir(path)); sub != "new" && sub != "cur" {
			return nil
		}
		b, err := os.ReadFile(path)
		out = append(out, arrived{path, b})
		return err
	})
	return out, err
}

// compare proves that every mail that was sent lies in the Maildirs once for each recipient, and is what was sent
// except for the trace fields in front of it.
func compare(sent, maildir string, missing int) error {
	b, err := os.ReadFile(filepath.Join(sent, indexFile))
	if err != nil {
		return err
	}
	var index []sentMail
	if err := json.Unmarshal(b, &index); err != nil {
		return fmt.Errorf("%s: %w", indexFile, err)
	}
	type delivery struct{ file, to string }
	want := map[delivery]string{} // the shape
	texts := map[string][]byte{}
	for _, m := range index {
		if texts[m.File], err = os.ReadFile(filepath.Join(sent, m.File)); err != nil {
			return err
		}
		for _, to := range m.To {
			want[delivery{m.File, to}] = m.Shape
		}
	}
	got, err := readMaildirs(maildir)
	if err != nil {
		return err
	}
	all, size := len(want), 0
	var bad []error
	for _, a := range got {
		name, trace := original(texts, a.text)
		if name == "" {
			bad = append(bad, fmt.Errorf("%s is not what was sent", a.path))
			continue
		}
		to, err := checkTrace(trace)
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", a.path, err))
		}
		if _, ok := want[delivery{name, to}]; !ok {
			bad = append(bad, fmt.Errorf("%s: %s came twice, or to the wrong one (%s)", a.path, name, to))
		}
		delete(want, delivery{name, to})
		size += len(texts[name])
	}
	fmt.Printf("%d of %d deliveries are there, once each; %.1f MB compared", all-len(want), all, float64(size)/1e6)
	if len(bad) == 0 {
		fmt.Print(", every byte is as it was sent")
	}
	fmt.Println(".")
	for d, shape := range want {
		fmt.Printf("Not there yet: %s for %s (%s)\n", d.file, d.to, shape)
	}
	if len(want) != missing {
		bad = append(bad, fmt.Errorf("%d deliveries are missing, expected %d", len(want), missing))
	}
	return errors.Join(bad...)
}

// original finds the mail that text ends with, and what stands in front of it.
func original(texts map[string][]byte, text []byte) (name string, trace []byte) {
	for n, t := range texts {
		if bytes.HasSuffix(text, t) && (name == "" || len(t) > len(texts[name])) {
			name, trace = n, text[:len(text)-len(t)]
		}
	}
	return name, trace
}

// field is one header field with its folded lines.
var field = regexp.MustCompile(`(?m)^([A-Za-z-]+): ?(.*(?:\n[ \t].*)*)\n`)

// checkTrace accepts what a delivery adds and no more: Return-Path, Delivered-To, and one Received of each node. It
// returns the recipient.
func checkTrace(trace []byte) (to string, err error) {
	count := map[string]int{}
	rest := field.ReplaceAllFunc(trace, func(f []byte) []byte {
		m := field.FindSubmatch(f)
		count[string(m[1])]++
		if string(m[1]) == "Delivered-To" {
			to = string(m[2])
		}
		return nil
	})
	if len(rest) > 0 || len(count) != 3 || count["Return-Path"] != 1 || count["Delivered-To"] != 1 || count["Received"] != 2 {
		return to, fmt.Errorf("the trace fields are not the expected ones: %q", trace)
	}
	return to, nil
}

// report waits for a delivery status notification about an address, and prints what it says.
func report(maildir, address string) error {
	var found string
	err := await("a report about "+address, func() bool {
		list, err := readMaildirs(maildir)
		if err != nil {
			return false
		}
		for _, a := range list {
			s := string(a.text)
			if strings.Contains(s, "message/delivery-status") && strings.Contains(s, "Final-Recipient:") && strings.Contains(s, address) {
				found = s
			}
		}
		return found != ""
	})
	if err != nil {
		return err
	}
	header, body, _ := strings.Cut(found, "\n\n")
	for _, f := range field.FindAllString(header+"\n", -1) {
		if strings.HasPrefix(f, "From:") || strings.HasPrefix(f, "To:") || strings.HasPrefix(f, "Subject:") {
			fmt.Print(f)
		}
	}
	// the paragraph about the recipient in the part for people, then the fields for programs
	for _, paragraph := range strings.Split(body, "\n\n") {
		if strings.HasPrefix(paragraph, "<"+address+">") {
			fmt.Println("…\n" + paragraph + "\n…")
			break
		}
	}
	for _, f := range field.FindAllString(body, -1) {
		for _, name := range []string{"Final-Recipient:", "Action:", "Status:"} {
			if strings.HasPrefix(f, name) {
				fmt.Print(f)
			}
		}
	}
	return nil
}
