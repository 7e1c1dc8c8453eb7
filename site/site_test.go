package main

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	id   = regexp.MustCompile(`id="([^"]*)"`)
)

// Links in pages lead to existing pages and headings, and pages load nothing from other sites.
func TestSiteLinks(t *testing.T) {
	out := t.TempDir()
	if err := build(out); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(out, "*"))
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]map[string]bool)
	text := make(map[string]string)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(f)
		text[name], ids[name] = string(b), make(map[string]bool)
		for _, m := range id.FindAllStringSubmatch(text[name], -1) {
			ids[name][m[1]] = true
		}
	}
	for name, body := range text {
		for _, m := range link.FindAllStringSubmatch(body, -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: link %q: %v", name, m[1], err)
				continue
			}
			if u.IsAbs() || u.Host != "" {
				t.Errorf("%s: link %q leaves the site", name, m[1])
				continue
			}
			to := u.Path
			if to == "" {
				to = name
			}
			if text[to] == "" {
				t.Errorf("%s: link %q has no target", name, m[1])
			} else if u.Fragment != "" && !ids[to][u.Fragment] {
				t.Errorf("%s: link %q: %s has no such heading", name, m[1], to)
			}
		}
	}
}

// Links in Markdown files at the top of the repository lead to existing files.
func TestRepositoryLinks(t *testing.T) {
	inline := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	files, err := filepath.Glob("../*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no Markdown files: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range inline.FindAllStringSubmatch(string(b), -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(f), m[1])); err != nil {
				t.Errorf("%s: link %q has no target", filepath.Base(f), m[1])
			}
		}
	}
}
