package cmd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
)

// hostnameFlag defines -h for a host name, as docker run does. The command then has
// its help at --help only.
func hostnameFlag(c *cobra.Command, p *string, usage string) {
	c.Flags().StringVarP(p, "hostname", "h", "", usage)
	c.Flags().Bool("help", false, "help for "+c.Name())
}

func (a *app) dnsAdd() *cobra.Command {
	return a.nameCommand(&cobra.Command{
		Use:   "dns-add [IP...] CONTAINER [-h NAME] | IP... -h NAME",
		Short: "Give a host name addresses",
		Long: `Make all hosts resolve a host name to addresses: those given, or else all that the
container has. Without -h it is the container's first name. The names of a container
are removed with it.

Without a container the name is for addresses outside the mesh. It belongs to this
host: it is answered while the router of this host runs, also after that was launched
again, until dns-remove or reset on this host.

CONTAINER is a container of Docker's by its id, the beginning of the id, or its name;
or an id as weft ps shows it, or the path of a network namespace. A NAME without a
dot is in the domain of the router. Adding twice is harmless.`,
	}, (*api.Client).AddName)
}

func (a *app) dnsRemove() *cobra.Command {
	return a.nameCommand(&cobra.Command{
		Use:   "dns-remove [IP...] CONTAINER [-h NAME] | [IP...] -h NAME",
		Short: "Take addresses from a host name",
		Long: `Undo dns-add on this host: for the given addresses, else for all, and for NAME,
else for all names of the container. A name that a container of Docker's has by
itself is removed until dns-add adds it again, or the container is started again.
A name that does not exist is no error.`,
	}, (*api.Client).RemoveName)
}

type nameCall func(*api.Client, context.Context, api.NameRequest) error

// nameCommand completes dns-add or dns-remove, which differ only in the call.
func (a *app) nameCommand(c *cobra.Command, call nameCall) *cobra.Command {
	var r api.NameRequest
	c.Args = func(c *cobra.Command, args []string) error {
		for _, s := range args {
			ip, err := netip.ParseAddr(s)
			switch {
			case err == nil && ip.Zone() == "":
				r.Addresses = append(r.Addresses, ip.Unmap())
			case r.Container != "":
				return usagef("%s: %q and %q are no addresses: one container can be given", c.CommandPath(), r.Container, s)
			default:
				r.Container = s
			}
		}
		if r.Container == "" && r.Hostname == "" {
			return usagef("%s: name a container, or a host name with -h NAME", c.CommandPath())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return call(a.client(), c.Context(), r) }
	hostnameFlag(c, &r.Hostname, "host name, in full or without the domain")
	return c
}

func (a *app) dnsLookup() *cobra.Command {
	return &cobra.Command{
		Use:   "dns-lookup NAME",
		Short: "Ask this host's DNS server",
		Long: `Print the answer of the DNS server of this host: the addresses of a host name, or
the names of an address, one per line. For names that weft does not know the server
asks the host's own name servers. Nothing is printed for a name without an address.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s: want one host name or address", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			found, err := a.client().LookupName(c.Context(), args[0])
			for _, f := range found {
				fmt.Fprintln(a.stdout, f)
			}
			return err
		},
	}
}

func (a *app) dnsArgs() *cobra.Command {
	return &cobra.Command{
		Use:   "dns-args [ARGUMENTS OF DOCKER RUN...]",
		Short: "Print the arguments of docker run that make a container use weft's DNS",
		Long: `Print --dns and --dns-search for docker run, so that a container resolves the names
of others:

    docker run $(weft dns-args) ...

Given the arguments of docker run, the command omits --dns-search if that is among
them, and adds a --hostname in the domain if there is --name but no --hostname.
Nothing is printed if the router was launched with --no-dns.`,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && args[0] == "--help" {
				return c.Help()
			}
			run := a.parseDockerRun(args)
			r, err := a.client().Report(c.Context())
			if err != nil || r.DNS == nil {
				return err
			}
			words, err := run.dnsArgs(r.DNS)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, strings.Join(words, " "))
			return nil
		},
	}
}

// dockerRun are the names in the arguments of docker run.
type dockerRun struct {
	name, hostname string
	search         []string
}

// parseDockerRun reads arguments of docker run. They may have --socket, which every
// command of weft takes.
func (a *app) parseDockerRun(args []string) (r dockerRun) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	fs.Usage = func() {}
	fs.SetInterspersed(false) // arguments behind the image are the container's
	fs.StringVar(&a.socket, "socket", a.socket, "")
	fs.StringVar(&r.name, "name", "", "")
	fs.StringVarP(&r.hostname, "hostname", "h", "", "")
	fs.StringArrayVar(&r.search, "dns-search", nil, "")
	_ = fs.Parse(args) // docker reports errors in them
	return r
}

// dnsArgs returns the arguments to add.
func (r *dockerRun) dnsArgs(d *api.DNS) ([]string, error) {
	if d.Address == "" {
		return nil, errors.New("the DNS server has no address to listen on; 'weft status' says why")
	}
	at, err := netip.ParseAddrPort(d.Address)
	if err != nil {
		return nil, fmt.Errorf("the router says that its DNS server listens at %q: %w", d.Address, err)
	}
	if at.Port() != dns.Port {
		return nil, fmt.Errorf("the DNS server listens at %s, and containers ask port %d only", at, dns.Port)
	}
	words := []string{"--dns=" + at.Addr().String()}
	if len(r.search) == 0 {
		words = append(words, "--dns-search="+d.Domain)
	}
	if r.name != "" && r.hostname == "" {
		words = append(words, "--hostname="+r.name+"."+d.Domain)
	}
	return words, nil
}
