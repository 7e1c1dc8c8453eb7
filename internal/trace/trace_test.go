package trace

import (
	"errors"
	"strings"
	"testing"
)

// counter is a world of one number.
type counter int

func (n *counter) Do(c Command, out *Output) error {
	switch c.Name {
	case "add":
		*n += counter(len(c.Args))
		return nil
	case "print":
		out.Printf("%s%d", c.Options["sign"], *n)
		return nil
	}
	return errors.New("no such command")
}

func TestRun(t *testing.T) {
	Run(t, "testdata/*.txt", func(*testing.T) World { return new(counter) })
}

func TestOutputReplacesThatOfAnotherDay(t *testing.T) {
	const before = "add x\n----\nok\n\n# More.\nadd x y\nprint\n----\n7\n8\n\nprint\n----\n"
	const after = "add x\n----\nok\n\n# More.\nadd x y\nprint\n----\n3\n\nprint\n----\n3\n"
	got, err := play(before, new(counter))
	if err != nil || got != after {
		t.Errorf("got %q, %v", got, err)
	}
	if again, err := play(after, new(counter)); err != nil || again != after {
		t.Errorf("a story that is right becomes %q, %v", again, err)
	}
}

func TestMistakesNameTheLine(t *testing.T) {
	for script, want := range map[string]string{
		"add x\n\nfly\n----\n":     "line 3: fly: no such command",
		"print\n\nadd x\n----\nok": "line 2: the commands above have output",
		"add x\nprint":             "the last commands have output",
	} {
		if _, err := play(script, new(counter)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", script, err, want)
		}
	}
}

func TestEmptyOutputDoesNotEndItsBlock(t *testing.T) {
	var out Output
	out.Printf("")
	if out.lines[0] == "" {
		t.Error("an empty line of output would end its block")
	}
}

func TestDifferenceShowsTheFirst(t *testing.T) {
	got := difference("a\nb\nc\nd", "a\nb\nx\nd")
	if want := "from line 3 on (- expected, + got):\n  a\n  b\n- c\n- d\n+ x\n+ d"; got != want {
		t.Errorf("got %q", got)
	}
}
