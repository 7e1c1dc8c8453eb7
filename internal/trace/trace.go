// Package trace tests step machines by stories: text files that hold a script
// and everything that the machines do in answer, in order.
//
//	# Lines that begin with # are for the reader.
//
//	start a
//	start b
//	----
//	a -> b: hello
//	b -> a: hello to you
//
//	run 3s
//	----
//	ok
//
// A block is some commands, a line of four dashes, and the output of those
// commands up to an empty line; "ok" stands for no output. Run plays each story
// and compares the whole file byte for byte. With the flag -rewrite it writes
// the output of today into the file instead, for a person to read as a diff.
package trace

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write what the machines do now into the stories")

// Command is one line of a script.
type Command struct {
	Name string
	// Args are the words after the name that have no "=".
	Args []string
	// Options are the words of the form key=value.
	Options map[string]string
}

// Arg returns the argument number i, "" if there are fewer.
func (c Command) Arg(i int) string {
	if i < len(c.Args) {
		return c.Args[i]
	}
	return ""
}

// World is what a story happens to.
type World interface {
	// Do carries out a command and appends lines of output to out. An error is a
	// mistake in the script: it fails the test.
	Do(c Command, out *Output) error
}

// Output collects the lines that a block expects.
type Output struct{ lines []string }

// Printf appends a line. An empty one is written as "(empty)", because an empty line ends
// the output of a block.
func (o *Output) Printf(format string, args ...any) {
	o.lines = append(o.lines, cmp.Or(fmt.Sprintf(format, args...), "(empty)"))
}

// Run plays each file that matches pattern as a subtest, in a world of its own.
func Run(t *testing.T, pattern string, begin func(t *testing.T) World) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("stories %s: %d files, error %v", pattern, len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := play(string(want), begin(t))
			switch {
			case err != nil:
				t.Fatalf("%s: %v", path, err)
			case got == string(want):
			case *rewrite:
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("%s: %s\nIf the story of today is right, run the test with -rewrite.", path, difference(string(want), got))
			}
		})
	}
}

const dashes = "----"

// play runs a script and returns it with the output of w in the place of that
// which it holds.
func play(text string, w World) (string, error) {
	var got []string
	var out Output
	inOutput := false
	for i, line := range strings.Split(text, "\n") {
		switch {
		case inOutput && line != "":
			continue // the output of another day
		case inOutput:
			inOutput = false
		case line == dashes:
			if len(out.lines) == 0 {
				out.Printf("ok")
			}
			got = append(append(got, dashes), out.lines...)
			out.lines, inOutput = nil, true
			continue
		case line == "" && len(out.lines) > 0:
			return "", fmt.Errorf("line %d: the commands above have output: want a line of %s", i+1, dashes)
		case line != "" && !strings.HasPrefix(line, "#"):
			if err := w.Do(parse(line), &out); err != nil {
				return "", fmt.Errorf("line %d: %s: %w", i+1, line, err)
			}
		}
		got = append(got, line)
	}
	if len(out.lines) > 0 {
		return "", fmt.Errorf("the last commands have output: want a line of %s after them", dashes)
	}
	if inOutput {
		got = append(got, "") // a file ends in a new line
	}
	return strings.Join(got, "\n"), nil
}

func parse(line string) Command {
	words := strings.Fields(line)
	c := Command{Name: words[0], Options: make(map[string]string)}
	for _, w := range words[1:] {
		if key, value, ok := strings.Cut(w, "="); ok {
			c.Options[key] = value
		} else {
			c.Args = append(c.Args, w)
		}
	}
	return c
}

// difference shows the first lines that differ, after some that do not.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	first := 0
	for first < min(len(w), len(g)) && w[first] == g[first] {
		first++
	}
	const around = 4
	part := func(lines []string, sign string, from, to int) (out []string) {
		for _, l := range lines[min(from, len(lines)):min(to, len(lines))] {
			out = append(out, sign+l)
		}
		return out
	}
	lines := slices.Concat(part(w, "  ", max(first-around, 0), first),
		part(w, "- ", first, first+around), part(g, "+ ", first, first+around))
	return fmt.Sprintf("from line %d on (- expected, + got):\n%s", first+1, strings.Join(lines, "\n"))
}
