package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// labApp is what all lab commands share.
type labApp struct {
	*app
	name string // of the lab
}

func (a *app) lab() *cobra.Command {
	l := &labApp{app: a}
	c := &cobra.Command{
		Use:   "lab",
		Short: "Make a whole mesh on this machine out of network namespaces",
		Long: `A lab is a mesh on one machine: hosts h1, h2, ... are network namespaces with a
real router in each, joined by an underlay of their own (192.168.77.N and
fd00:77::N). Nothing is added to the machine's own network.

    weft lab up --hosts 3
    weft lab run h1 web
    weft lab exec h2 -- weft status
    weft lab cut h1 h2
    weft lab down`,
		Args: subcommand,
		RunE: showHelp,
	}
	c.PersistentFlags().StringVar(&l.name, "name", testbed.DefaultName, "name of the lab; labs of different names run at once")
	c.AddCommand(l.up(), l.run(), l.exec(), l.cut(), l.heal(), l.kill(), l.launch(), l.list(), l.down(),
		l.demo(), l.bench(), l.traffic())
	return c
}

// open finds the lab that the command is about.
func (l *labApp) open() (*testbed.Lab, error) {
	if err := testbed.CheckName(l.name); err != nil {
		return nil, usageError{err}
	}
	return testbed.Open(l.name)
}

// labConfig are the flags that make a lab.
type labConfig struct {
	hosts       int
	topology    string
	password    string
	underlayMTU int
}

func (k *labConfig) register(fs *pflag.FlagSet) {
	fs.IntVar(&k.hosts, "hosts", 3, "number of hosts")
	fs.StringVar(&k.topology, "topology", string(testbed.Full), "full, line (only neighbours reach each other) or star (all reach h1 only)")
	fs.StringVar(&k.password, "password", "", "password of the mesh")
	fs.IntVar(&k.underlayMTU, "underlay-mtu", 1500, "MTU of the underlay, in bytes")
}

// config checks the flags of a lab, and those for its routers.
func (k *labConfig) config(name string, launch []string) (testbed.Config, error) {
	c := testbed.Config{
		Name: name, Hosts: k.hosts, Topology: testbed.Topology(k.topology),
		Password: k.password, UnderlayMTU: k.underlayMTU, Flags: launch,
	}
	if err := c.Check(); err != nil {
		return c, usageError{err}
	}
	// The password goes to the routers by their environment.
	check := launch
	if k.password != "" {
		check = append([]string{"--password=" + k.password}, launch...)
	}
	return c, checkLaunchFlags(check)
}

// checkLaunchFlags tells what is wrong with flags of weft launch, before a
// router does.
func checkLaunchFlags(args []string) error {
	var f launchFlags
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	fs.Usage = func() {}
	f.register(fs)
	if err := fs.Parse(args); err != nil {
		return usagef("launch flags: %w", err)
	}
	_, err := f.config(fs, fs.Args(), api.DefaultSocket)
	return err
}

// splitDash cuts arguments at "--".
func splitDash(c *cobra.Command, args []string) (before, after []string, found bool) {
	if n := c.ArgsLenAtDash(); n >= 0 {
		return args[:n], args[n:], true
	}
	return args, nil, false
}

func (l *labApp) up() *cobra.Command {
	var k labConfig
	c := &cobra.Command{
		Use:   "up [flags] [-- LAUNCH-FLAGS...]",
		Short: "Make a lab and wait until its mesh has converged",
		Long: `Make a lab and start its routers, with the flags of weft launch that follow --.
It returns when every host sees all others and has a route to each. If that
fails, nothing is left.`,
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			config, err := k.config(l.name, launch)
			if err != nil {
				return err
			}
			start := time.Now()
			if _, err := lab.Up(c.Context(), config); err != nil {
				return err
			}
			fmt.Fprintf(l.stdout, "lab %s is up: %d hosts, converged in %.1f s\n", config.Name, config.Hosts, time.Since(start).Seconds())
			return nil
		},
	}
	k.register(c.Flags())
	return c
}

func (l *labApp) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, whole or half, with all its processes",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := testbed.CheckName(l.name); err != nil {
				return usageError{err}
			}
			return testbed.Down(l.name)
		},
	}
}

func (l *labApp) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			labs, err := testbed.List()
			if err != nil {
				return err
			}
			for _, s := range labs {
				words := append([]string{s.Name + ":"}, s.Hosts...)
				words = append(words, s.Containers...)
				if !s.Complete {
					words = append(words, "(incomplete; remove it with: weft lab down --name "+s.Name+")")
				}
				fmt.Fprintln(l.stdout, strings.Join(words, " "))
			}
			return nil
		},
	}
}

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
			if err := made.Find(place); err != nil {
				return err
			}
			return l.runIn(c.Context(), made, place, args[1:])
		},
	}
}

// runIn runs a command in a place and returns its exit code as an error.
func (a *app) runIn(ctx context.Context, made *testbed.Lab, place testbed.Place, argv []string) error {
	cmd := made.Command(ctx, place, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, a.stdout, a.stderr
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
				fmt.Fprintln(l.stderr, errorLine(rerr))
				if err == nil {
					err = exitError{ExitFailed}
				}
			}
			return err
		},
	}
}

func (l *labApp) cut() *cobra.Command {
	return l.cutCommand(&cobra.Command{
		Use:   "cut HOST HOST",
		Short: "Cut the underlay between two hosts",
		Long: `Drop all packets between two hosts in the underlay, in both directions, or with
--one-way those from the first to the second only.`,
	}, (*testbed.Lab).Cut)
}

func (l *labApp) heal() *cobra.Command {
	return l.cutCommand(&cobra.Command{
		Use:   "heal HOST HOST",
		Short: "Undo cut, or what the topology of the lab cut",
	}, (*testbed.Lab).Heal)
}

func (l *labApp) cutCommand(c *cobra.Command, change func(*testbed.Lab, int, int, testbed.Way) error) *cobra.Command {
	var oneWay bool
	c.Flags().BoolVar(&oneWay, "one-way", false, "only from the first host to the second")
	c.RunE = func(c *cobra.Command, args []string) error {
		hosts, err := parseHosts(c, args, 2)
		if err != nil {
			return err
		}
		if hosts[0] == hosts[1] {
			return usagef("%s: %s twice; there is no underlay between a host and itself", c.CommandPath(), args[0])
		}
		made, err := l.open()
		if err != nil {
			return err
		}
		if err := change(made, hosts[0], hosts[1], testbed.Packets); err != nil || oneWay {
			return err
		}
		return change(made, hosts[1], hosts[0], testbed.Packets)
	}
	return c
}

// parseHosts reads exactly n hosts.
func parseHosts(c *cobra.Command, args []string, n int) ([]int, error) {
	if len(args) != n {
		return nil, usagef("%s: want %d %s, as h1", c.CommandPath(), n, plural(n, "host", "hosts"))
	}
	var hosts []int
	for _, s := range args {
		p, err := testbed.ParsePlace(s)
		if err != nil {
			return nil, usageError{err}
		}
		if p.Container != "" {
			return nil, usagef("%s: %s is a container; want a host", c.CommandPath(), s)
		}
		hosts = append(hosts, p.Host)
	}
	return hosts, nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func (l *labApp) kill() *cobra.Command {
	return &cobra.Command{
		Use:   "kill HOST",
		Short: "Kill the router of a host with SIGKILL",
		RunE: func(c *cobra.Command, args []string) error {
			hosts, err := parseHosts(c, args, 1)
			if err != nil {
				return err
			}
			made, err := l.open()
			if err != nil {
				return err
			}
			return made.Kill(hosts[0])
		},
	}
}

func (l *labApp) launch() *cobra.Command {
	var f launchFlags
	c := &cobra.Command{
		Use:   "launch HOST [LAUNCH-FLAGS] [PEER...] [-- LAUNCH-FLAGS]",
		Short: "Start the router of a host again, with the state it had",
		Long: `Start the router of a host with the flags of the lab and further flags of weft
launch. Without peers it connects to the targets that it had, or at a first
start to those of the lab. As --name is the lab's, the name of the peer is given
after --, as in: weft lab launch h1 -- --name 02:00:00:00:00:01`,
		RunE: func(c *cobra.Command, args []string) error {
			before, after, _ := splitDash(c, args)
			if len(before) == 0 {
				return usagef("%s: name a host, as h1", c.CommandPath())
			}
			hosts, err := parseHosts(c, before[:1], 1)
			if err != nil {
				return err
			}
			extra := append(changedArgs(c.LocalNonPersistentFlags(), "help"), after...)
			peers := before[1:]
			if err := checkLaunchFlags(append(extra, peers...)); err != nil {
				return err
			}
			made, err := l.open()
			if err != nil {
				return err
			}
			if len(peers) == 0 && !f.Resume {
				if daemon.Exists(&daemon.Config{StateDir: made.StateDir(hosts[0])}) {
					extra = append(extra, "--resume")
				} else {
					peers = made.Peers(hosts[0])
				}
			}
			ctx, cancel := context.WithTimeout(c.Context(), lab.Timeout)
			defer cancel()
			return made.Launch(ctx, hosts[0], append(extra, peers...)...)
		},
	}
	all := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(all)
	all.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "name" && flag.Name != "foreground" && flag.Name != "log-file" && flag.Name != "http-addr" {
			c.Flags().AddFlag(flag)
		}
	})
	return c
}
