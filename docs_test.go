package mochila

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var flowName = regexp.MustCompile("`([a-z_/]+\\.go): ([A-Za-z_., ]+)`")

// TestFlowNames looks up every "file: function" of docs/flow.md: a map that leads nowhere is worse than none.
func TestFlowNames(t *testing.T) {
	doc, err := os.ReadFile("docs/flow.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(doc), "\n"); n >= 100 {
		t.Errorf("docs/flow.md has %d lines; it is to fit on two screens", n)
	}
	found := flowName.FindAllStringSubmatch(string(doc), -1)
	if len(found) < 30 {
		t.Fatalf("only %d names found", len(found))
	}
	for _, m := range found {
		path := m[1]
		if _, err := os.Stat(path); err != nil {
			path = "bridge/" + path
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v", m[0], err)
			continue
		}
		for _, name := range strings.Split(m[2], ",") {
			name = strings.TrimSpace(name[strings.LastIndex(name, ".")+1:])
			if !regexp.MustCompile(`\b` + name + `\(`).Match(src) {
				t.Errorf("docs/flow.md names %s in %s, which is not there", name, path)
			}
		}
	}
}
