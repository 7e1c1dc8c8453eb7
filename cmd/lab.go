package cmd

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
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
		l.demo(), l.bench(), l.hostile(), l.traffic())
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

// checkLaunchFlags returns the first error in flags of weft launch, before a router
// reports it.
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

// parseHosts reads exactly n hosts.
func parseHosts(c *cobra.Command, args []string, n int) ([]int, error) {
	if len(args) != n {
		return nil, usagef("%s: want %s, as h1", c.CommandPath(), count.Of(n, "host", "hosts"))
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
