package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/render"
)

func (l *labApp) exec() *cobra.Command {
	return &cobra.Command{
		Use:   "exec HOST[/CONTAINER] -- COMMAND [ARG...]",
		Short: "Run a command on a host or in a container",
		Long: `Run a command in the network namespace of a host or of a container, with
WEFT_SOCKET naming the router of that host, and exit as it does. File systems
are the machine's own.`,
		Args: atLeast(2, "want HOST or HOST/CONTAINER, then -- and a command"),
		RunE: func(c *cobra.Command, args []string) error {
			place, err := testbed.ParsePlace(args[0])
			if err != nil {
				return usageError{err}
			}
			made, err := l.open()
			if err != nil {
				return err
			}
			if err := made.CheckPlace(place); err != nil {
				return err
			}
			return l.runIn(c.Context(), made, place, args[1:])
		},
	}
}

// runIn runs a command in a place and returns its exit code as an error.
func (a *app) runIn(ctx context.Context, made *testbed.Lab, place testbed.Place, argv []string) error {
	cmd := made.Command(ctx, place, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, a.rawOut, a.rawErr
	err := made.Run(place, cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(unix.WaitStatus); ok && status.Signaled() {
			return exitError{128 + int(status.Signal())} // as a shell has it
		}
		return exitError{exit.ExitCode()}
	}
	if err != nil {
		return fmt.Errorf("run %s on %s: %w", argv[0], place, err)
	}
	return nil
}

func (l *labApp) run() *cobra.Command {
	return &cobra.Command{
		Use:   "run HOST CONTAINER [ADDRESS...] [-- COMMAND [ARG...]]",
		Short: "Make a container on a host",
		Long: `Make a container, a network namespace that the host's router attaches by the
interface ethwe, with the given addresses or one of the default subnet. Without
a command it stays, and its addresses are printed. With one the command runs in
it, the container goes when the command ends, and weft exits as it does.

` + addressForms,
		RunE: func(c *cobra.Command, args []string) error {
			before, argv, dash := splitDash(c, args)
			if len(before) < 2 || (dash && len(argv) == 0) {
				return usagef("%s: want HOST CONTAINER [ADDRESS...] [-- COMMAND]", c.CommandPath())
			}
			place, err := testbed.ParsePlace(before[0] + "/" + before[1])
			if err != nil {
				return usageError{err}
			}
			list, err := addresses(c, before[2:])
			if err != nil {
				return err
			}
			made, err := l.open()
			if err != nil {
				return err
			}
			got, err := made.AddContainer(c.Context(), place, list)
			if err != nil {
				return err
			}
			if !dash {
				printAddresses(l.stdout, got)
				return nil
			}
			err = l.runIn(c.Context(), made, place, argv)
			// Also after an interrupt, which ended the command.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), lab.Timeout)
			defer cancel()
			if rerr := made.RemoveContainer(ctx, place); rerr != nil {
				render.Fprintln(l.stderr, errorLine(rerr))
				if err == nil {
					err = exitError{ExitFailed}
				}
			}
			return err
		},
	}
}
