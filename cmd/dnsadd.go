package cmd

import (
	"context"
	"net/netip"

	"github.com/spf13/cobra"

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

An address must be one that this host attached or exposed, or one of the mesh that it
owns. For any other address, launch the router of this host with --dns-external.

CONTAINER is a container of Docker's by its id, the beginning of the id, or its name;
or an id as weft ps shows it, or the path of a network namespace. A NAME without a
dot is in the domain of the router. Adding twice is harmless.`,
	}, (*api.Client).AddName)
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
				return usagef("%s: name one container; %q and %q are not addresses", c.CommandPath(), r.Container, s)
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
