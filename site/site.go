// Command site builds the documentation: it turns each Markdown file of the directory pages into a
// static HTML page that loads nothing from other sites.
package main

import (
	"bytes"
	"embed"
	"flag"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
)

//go:embed pages/*.md page.html style.css
var sources embed.FS

// order is the order of the pages in the navigation. The first page is the front page, index.html.
var order = []string{"index", "start", "docker", "compose", "concepts", "dns", "kubernetes", "policies", "sleeve", "fastdp", "security", "lab", "weave", "glossary", "benchmarks", "commands"}

// page is one page of the site.
type page struct {
	Name  string // without extension
	Title string // the first heading
	Body  template.HTML
}

// File returns the name of the page's HTML file, which links of other pages use.
func (p page) File() string { return p.Name + ".html" }

func main() {
	out := flag.String("out", "site/public", "directory to write to")
	flag.Parse()
	if err := build(*out); err != nil {
		fmt.Fprintf(os.Stderr, "site: %v\n", err)
		os.Exit(1)
	}
}

// build writes all pages and the style sheet to the directory out.
func build(out string) error {
	pages, err := load()
	if err != nil {
		return err
	}
	layout, err := template.ParseFS(sources, "page.html")
	if err != nil {
		return fmt.Errorf("parse page.html: %w", err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make the output directory: %w", err)
	}
	for _, p := range pages {
		var b bytes.Buffer
		if err := layout.Execute(&b, map[string]any{"Page": p, "Pages": pages}); err != nil {
			return fmt.Errorf("render page %s: %w", p.Name, err)
		}
		if err := os.WriteFile(filepath.Join(out, p.File()), b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", p.Name, err)
		}
	}
	css, err := sources.ReadFile("style.css")
	if err != nil {
		return fmt.Errorf("read the style sheet: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, "style.css"), css, 0o644); err != nil {
		return fmt.Errorf("write the style sheet: %w", err)
	}
	return nil
}

// load converts all Markdown files to pages, in order.
func load() ([]page, error) {
	files, err := fs.Glob(sources, "pages/*.md")
	if err != nil {
		return nil, fmt.Errorf("list the pages: %w", err)
	}
	if len(files) != len(order) {
		return nil, fmt.Errorf("there are %d pages, but the navigation lists %d", len(files), len(order))
	}
	md := goldmark.New(goldmark.WithExtensions(extension.GFM), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
	var pages []page
	for _, name := range order {
		text, err := sources.ReadFile("pages/" + name + ".md")
		if err != nil {
			return nil, fmt.Errorf("read page %s: %w", name, err)
		}
		heading, _, _ := strings.Cut(string(text), "\n")
		title, ok := strings.CutPrefix(heading, "# ")
		if !ok {
			return nil, fmt.Errorf("parse page %s: the first line is not a heading", name)
		}
		var b bytes.Buffer
		if err := md.Convert(text, &b); err != nil {
			return nil, fmt.Errorf("convert page %s: %w", name, err)
		}
		pages = append(pages, page{Name: name, Title: title, Body: template.HTML(b.String())})
	}
	return pages, nil
}
