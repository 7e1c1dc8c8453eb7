package cmd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Tree returns the command tree, to be described and not to be run.
func Tree() *cobra.Command { return (&app{stdout: io.Discard, stderr: io.Discard}).root() }

func (a *app) genDocs() *cobra.Command {
	return &cobra.Command{
		Use:    "gen-docs FILE",
		Short:  "Write the reference of all commands as Markdown",
		Hidden: true,
		Args:   atLeast(1, "name the file to write"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.WriteFile(args[0], reference(c.Root()), 0o644); err != nil {
				return fmt.Errorf("write the reference: %w", err)
			}
			return nil
		},
	}
}

// reference describes the command tree. It depends on nothing of the machine.
func reference(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("# Commands\n\n<!-- Made by `weft gen-docs` from the command tree; change it there. -->\n\n" +
		"Exit codes: 0 done, 1 failed, 2 wrong use. Every failure is one line on standard error.\n" +
		"All commands take `--socket PATH` (or `WEFT_SOCKET`), the control socket of the router.\n")
	describe(&b, root)
	return b.Bytes()
}

func describe(b *bytes.Buffer, c *cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.Hidden || sub.Name() == "help" {
			continue
		}
		fmt.Fprintf(b, "\n## %s\n\n", sub.CommandPath())
		fmt.Fprintf(b, "```\n%s\n```\n\n", strings.TrimSuffix(sub.UseLine(), " [flags]"))
		text := sub.Long
		if text == "" {
			text = sub.Short + "."
		}
		b.WriteString(markdown(text))
		if sub.LocalNonPersistentFlags().HasAvailableFlags() {
			fmt.Fprintf(b, "\n```\n%s```\n", sub.LocalNonPersistentFlags().FlagUsages())
		}
		describe(b, sub)
	}
}

// markdown makes code blocks of indented lines, as help texts have them.
func markdown(text string) string {
	var b strings.Builder
	code := false
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		indented := strings.HasPrefix(line, "    ")
		if indented != code && (indented || line != "") {
			b.WriteString("```\n")
			code = indented
		}
		b.WriteString(strings.TrimPrefix(line, "    ") + "\n")
	}
	if code {
		b.WriteString("```\n")
	}
	return b.String()
}
