package cmd

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/docker/hosts"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/render"
)

const addressForms = `An address is written
    net:default       any free address of the default subnet
    net:10.32.1.0/24  any free address of that subnet
    10.32.1.5/24      exactly that address (also ip:10.32.1.5/24)
and several may be given. IPv6 addresses are written the same way.`

// container is the container that attach or detach is for, as flags give it.
type container struct {
	netns string
	pid   int
}

func (k *container) flags(fs *pflag.FlagSet) {
	fs.StringVar(&k.netns, "netns", "", "path of the container's network namespace, as /run/netns/NAME")
	fs.IntVar(&k.pid, "pid", 0, "a process of the container")
}

// request returns the container, which the flags or else the last argument give, and
// the addresses.
func (k *container) request(c *cobra.Command, args []string) (r api.AttachRequest, err error) {
	byFlag := c.Flags().Changed("netns") || c.Flags().Changed("pid")
	if n := len(args); !byFlag && n > 0 && !api.IsAddress(args[n-1]) {
		r.Container, args = args[n-1], args[:n-1]
	}
	if r.Addresses, err = addresses(c, args); err != nil {
		return r, err
	}
	if r.Container == "" {
		r.Netns, err = k.path(c)
	}
	return r, err
}

// path returns the path of the container's network namespace.
func (k *container) path(c *cobra.Command) (string, error) {
	switch fs := c.Flags(); {
	case fs.Changed("netns") && fs.Changed("pid"):
		return "", usagef("%s: give --netns or --pid, not both", c.CommandPath())
	case fs.Changed("pid"):
		if k.pid < 1 {
			return "", usagef("%s: --pid %d: want the number of a process", c.CommandPath(), k.pid)
		}
		return netdev.NSByPID(k.pid), nil
	case k.netns == "":
		return "", usagef("%s: say which container, by its id or name in Docker, or by --netns PATH or --pid N", c.CommandPath())
	}
	path, err := filepath.Abs(k.netns)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", k.netns, err)
	}
	return path, nil
}

// addresses reads the arguments of a command, which are all addresses.
func addresses(c *cobra.Command, args []string) ([]api.Address, error) {
	var list []api.Address
	for _, s := range args {
		a, err := api.ParseAddress(s)
		if err != nil {
			return nil, usagef("%s: %w", c.CommandPath(), err)
		}
		if slices.Contains(list, a) && a.Kind == api.Exactly {
			return nil, usagef("%s: address %s is given twice", c.CommandPath(), s)
		}
		list = append(list, a)
	}
	return list, nil
}

// printAddresses writes the addresses, without the lengths of their subnets,
// on one line.
func printAddresses(w io.Writer, ps []netip.Prefix) {
	if len(ps) == 0 {
		return
	}
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.Addr().String()
	}
	render.Fprintln(w, strings.Join(words, " "))
}

func (a *app) attach() *cobra.Command {
	var options api.AttachRequest
	c := a.addressCommand(&cobra.Command{
		Use:   "attach [ADDRESS...] CONTAINER | --netns PATH | --pid N",
		Short: "Give a container an interface and addresses",
		Long: `Connect a container to the switch with the interface ethwe, give it addresses, one of
the default subnet if none is named, and print them on one line. A container that is
attached already gets the addresses that it lacks. If the router was killed, the command
waits for the next one for up to half a minute. With --hostname all hosts resolve
that name to its addresses; a name without a dot is in the domain of the router.

CONTAINER is a container of Docker's on this host, by its id, the beginning of the
id, or its name. When Docker starts it again it gets its addresses again.

` + addressForms,
	}, (*api.Client).Attach, &options)
	fs := c.Flags()
	fs.StringVar(&options.Hostname, "hostname", "", "host name for the container, in full or without the domain")
	fs.BoolVar(&options.WithoutDNS, "without-dns", false, "give the container no name in DNS")
	fs.BoolVar(&options.RewriteHosts, "rewrite-hosts", false, "map the container's own name to its address on the switch, in its /etc/hosts")
	fs.StringArrayVar(&options.AddHosts, "add-host", nil, "add NAME:IP to the container's /etc/hosts (repeatable)")
	fs.BoolVar(&options.AllowSpoof, "allow-spoof", false, "let the container send with other addresses than its own, as nested bridges, routers and VRRP do")
	fs.BoolVar(&options.NoMulticastRoute, "no-multicast-route", false, "leave multicast to the container's other interfaces")
	return c
}

// addressCommand completes attach or detach, which differ only in the call and in
// the options.
func (a *app) addressCommand(c *cobra.Command, call func(*api.Client, context.Context, api.AttachRequest) ([]netip.Prefix, error), options *api.AttachRequest) *cobra.Command {
	var k container
	var r api.AttachRequest
	c.Args = func(c *cobra.Command, args []string) (err error) {
		r, err = k.request(c, args)
		return err
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.Container == "" && (options.WithoutDNS || options.RewriteHosts || len(options.AddHosts) > 0) {
			return usagef("%s: --without-dns, --rewrite-hosts and --add-host are for containers of Docker's, named by id or name", c.CommandPath())
		}
		for _, h := range options.AddHosts {
			if _, _, err := hosts.ParseEntry(h); err != nil {
				return usagef("%s: --add-host: %w", c.CommandPath(), err)
			}
		}
		options.Netns, options.Container, options.Addresses = r.Netns, r.Container, r.Addresses
		ps, err := call(a.waitingClient(), c.Context(), *options)
		if err != nil {
			return err
		}
		printAddresses(a.stdout, ps)
		return nil
	}
	k.flags(c.Flags())
	return c
}
