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

// hostnameFlag defines -h for a host name, as it is in docker run, on a command
// whose help is at --help alone then.
func hostnameFlag(c *cobra.Command, p *string, usage string) {
	c.Flags().StringVarP(p, "hostname", "h", "", usage)
	c.Flags().Bool("help", false, "help for "+c.Name())
}

func (a *app) dnsAdd() *cobra.Command {
	return a.nameCommand(&cobra.Command{
		Use:   "dns-add [IP...] CONTAINER [-h NAME] | IP... -h NAME",
		Short: "Give a host name addresses",
		Long: `Have all hosts answer a host name with addresses: those given, or else all that
the container has. Without -h it is the container's first name. Names of a
container go with it.

Without a container the name is for addresses outside the mesh. It is this
host's: answered while its router runs, also after that was launched again, until
dns-remove or reset on this host.

CONTAINER is a container of Docker's by its id, the beginning of that, or its
name; or else an id as weft ps shows it, or the path of a network namespace. A
NAME without a dot is in the domain of the router. Doing it twice is harmless.`,
	}, (*api.Client).AddName)
}

func (a *app) dnsRemove() *cobra.Command {
	return a.nameCommand(&cobra.Command{
		Use:   "dns-remove [IP...] CONTAINER [-h NAME] | [IP...] -h NAME",
		Short: "Take addresses from a host name",
		Long: `Undo dns-add on this host: for the given addresses, else for all, and for NAME,
else for all names of the container. A name that a container of Docker's has by
itself is taken from it until dns-add gives it back, or the container is started
again. What is not there is no error.`,
	}, (*api.Client).RemoveName)
}

type nameCall func(*api.Client, context.Context, api.NameRequest) error

// nameCommand completes dns-add or dns-remove, which differ in the call only.
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
			return usagef("%s: say which container, or which name by -h NAME", c.CommandPath())
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
		Long: `Print what the DNS server of this host answers: the addresses of a host name, or
the names of an address, one a line. Names that weft does not know are asked of
the host's own name servers. Nothing is printed for a name that has no address.`,
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
		Short: "Print the arguments of docker run that have a container use weft's DNS",
		Long: `Print --dns and --dns-search for docker run, so that a container finds others by
their names:

    docker run $(weft dns-args) ...

Given the arguments of docker run, it leaves --dns-search out if that is among
them, and if there is --name but no --hostname it adds a --hostname in the domain.
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

// dockerRun is what the arguments of docker run say of names.
type dockerRun struct {
	name, hostname string
	search         []string
}

// parseDockerRun reads arguments of docker run, among which --socket may be, as
// it may before the name of any command.
func (a *app) parseDockerRun(args []string) (r dockerRun) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	fs.Usage = func() {}
	fs.SetInterspersed(false) // what follows the image is the container's
	fs.StringVar(&a.socket, "socket", a.socket, "")
	fs.StringVar(&r.name, "name", "", "")
	fs.StringVarP(&r.hostname, "hostname", "h", "", "")
	fs.StringArrayVar(&r.search, "dns-search", nil, "")
	_ = fs.Parse(args) // docker will say what is wrong with them
	return r
}

// dnsArgs returns what is to be added to the arguments.
func (r *dockerRun) dnsArgs(d *api.DNS) ([]string, error) {
	if d.Address == "" {
		return nil, errors.New("the DNS server listens nowhere; 'weft status' says why")
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
