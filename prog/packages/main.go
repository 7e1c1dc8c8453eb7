// Command packages generates files for the packages of weft: man pages and shell
// completions, from the command tree. It also prints the version of the packages. The
// script build in this directory runs it; nfpm.yaml lists the files of the packages.
package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra/doc"

	"github.com/weft-net/weft/cmd"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "docs":
		return writeDocs(args[1])
	case len(args) == 3 && args[0] == "version":
		at, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH %q: want seconds", args[2])
		}
		v, err := packageVersion(args[1], time.Unix(at, 0))
		if err == nil {
			fmt.Println(v)
		}
		return err
	}
	return errors.New("want: docs DIRECTORY, or version DESCRIPTION SECONDS")
}

// writeDocs writes man pages and completions into the existing directories man and
// completion of dir.
func writeDocs(dir string) error {
	os.Unsetenv("WEFT_SOCKET") // the pages would show it as the default
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var b bytes.Buffer
		if code := cmd.Main([]string{"completion", shell}, &b, os.Stderr); code != 0 {
			return fmt.Errorf("write completions for %s: exit code %d", shell, code)
		}
		if err := os.WriteFile(filepath.Join(dir, "completion", shell), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return writePages(filepath.Join(dir, "man"))
}

// writePages writes a man page for each command, compressed as Debian requires.
func writePages(dir string) error {
	root := cmd.Tree()
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Hidden = true
	}
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "8", Source: "weft", Manual: "weft"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("write man pages: %w", err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		if err := compress(page); err != nil {
			return fmt.Errorf("compress %s: %w", page, err)
		}
	}
	return nil
}

// compress replaces a file by FILE.gz, whose bytes depend on the content only.
func compress(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = z.Write(text)
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	if err := os.WriteFile(name+".gz", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Remove(name)
}
