// Package cmd is the command tree of the weft program, one file per command.
//
// A command that carries out a request is a client of the control API; only
// launch and lab start processes, and only doctor and reset examine the host
// by themselves. Exit codes: 0 done, 1 failed, 2 wrong use; each failure is one
// line on standard error. lab exec and lab run exit as the command they run.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
	"github.com/weft-net/weft/internal/version"
)

// Exit codes.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// app is what all commands of one call share.
type app struct {
	// stdout and stderr take text only, see render.Writer. Programs that weft runs for
	// the user write to rawOut and rawErr.
	stdout, stderr io.Writer
	rawOut, rawErr io.Writer
	socket         string // of the router, by --socket or WEFT_SOCKET
}

// Main runs one command line, without the program's name, and returns the exit
// code.
func Main(args []string, stdout, stderr io.Writer) int {
	ends := []os.Signal{os.Interrupt, unix.SIGTERM}
	if !signal.Ignored(unix.SIGHUP) { // as under nohup(1)
		ends = append(ends, unix.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	a := &app{stdout: render.Writer(stdout), stderr: render.Writer(stderr), rawOut: stdout, rawErr: stderr}
	root := a.root()
	parsed := false
	root.PersistentPreRun = func(*cobra.Command, []string) { parsed = true }
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	render.Fprintln(a.stderr, errorLine(err))
	var usage usageError
	if !parsed || errors.As(err, &usage) || api.ClassOf(err) == api.Usage {
		return ExitUsage
	}
	return ExitFailed
}

// usageError is an error in how the command was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError makes weft exit with code and print nothing.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// errorLine returns the line that shows an error to the user. Errors that name the
// command or the program stay as they are.
func errorLine(err error) string {
	text := oneLine(err)
	if strings.HasPrefix(text, "weft ") || strings.HasPrefix(text, "weft: ") {
		return text
	}
	return "weft: " + text
}

// oneLine writes joined errors on one line.
func oneLine(err error) string {
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// root makes the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft",
		Short: "One virtual Ethernet switch for the containers of all your hosts",
		Long: `weft joins Linux hosts into one virtual Ethernet switch for their containers. With a
password, traffic between hosts is encrypted, except between --trusted-subnets. A
host that knows the address of one other host joins the mesh:

    host1# weft launch --password PASSWORD
    host2# weft launch --password PASSWORD host1`,
		Args:          subcommand,
		RunE:          showHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	socket := os.Getenv("WEFT_SOCKET")
	if socket == "" {
		socket = api.DefaultSocket
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "control socket of the router (WEFT_SOCKET)")
	root.SetHelpCommand(helpCommand())
	root.AddGroup(
		&cobra.Group{ID: "router", Title: "The router of this host:"},
		&cobra.Group{ID: "mesh", Title: "The mesh:"},
		&cobra.Group{ID: "containers", Title: "Containers and addresses:"},
		&cobra.Group{ID: "names", Title: "Host names:"},
		&cobra.Group{ID: "look", Title: "State and diagnosis:"},
	)
	for _, g := range []struct {
		id   string
		cmds []*cobra.Command
	}{
		{"router", []*cobra.Command{a.launch(), a.stop(), a.reset()}},
		{"mesh", []*cobra.Command{a.connect(), a.forget(), a.rmpeer(), a.ban(), a.unban(), a.rotate(), a.adopt(), a.prime()}},
		{"containers", []*cobra.Command{a.attach(), a.detach(), a.expose(), a.hide(), a.ps(), a.env(), a.config()}},
		{"names", []*cobra.Command{a.dnsAdd(), a.dnsRemove(), a.dnsLookup(), a.dnsArgs()}},
		{"look", []*cobra.Command{a.status(), a.report(), a.policy(), a.doctor(), a.lab(), a.version(), a.completion()}},
		{"", []*cobra.Command{a.genDocs()}},
	} {
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	return root
}

// subcommand refuses the arguments of a command that has only subcommands.
func subcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if s := c.SuggestionsFor(args[0]); len(s) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", s[0])
	}
	return usagef("%s has no command %q%s; see: %s --help", c.CommandPath(), args[0], hint, c.CommandPath())
}

func showHelp(c *cobra.Command, _ []string) error { return c.Help() }

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil || about == nil || len(rest) > 0 {
				return usagef("weft has no command %q; see: weft --help", strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// noArgs and atLeast check the number of arguments.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, not %q", c.CommandPath(), args[0])
	}
	return nil
}

func atLeast(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return usagef("%s: %s", c.CommandPath(), what)
		}
		return nil
	}
}

func (a *app) client() *api.Client { return api.NewClient(a.socket) }

// replacedTimeout is how long a command that changes something for a container waits for a
// router that was killed and is being replaced.
const replacedTimeout = 30 * time.Second

// waitingClient is client for such commands.
func (a *app) waitingClient() *api.Client {
	c := a.client()
	c.AwaitReplacement(replacedTimeout)
	return c
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program and of the running router",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			render.Fprintf(a.stdout, "weft %s\n", version.String())
			ready, err := a.client().Ready(c.Context())
			if err == nil {
				render.Fprintf(a.stdout, "router %s\n", ready.Version)
			}
			if errors.Is(err, api.ErrNotRunning) {
				return nil
			}
			return err
		},
	}
}
