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

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

const addressForms = `An address is written
    net:default       any free address of the default subnet
    net:10.32.1.0/24  any free address of that subnet
    10.32.1.5/24      that very address (also ip:10.32.1.5/24)
and several may be given. IPv6 addresses are written likewise.`

// container is how attach and detach are told which container.
type container struct {
	netns string
	pid   int
}

func (k *container) flags(fs *pflag.FlagSet) {
	fs.StringVar(&k.netns, "netns", "", "path of the container's network namespace, as /run/netns/NAME")
	fs.IntVar(&k.pid, "pid", 0, "a process of the container")
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
		return "", usagef("%s: say which container by --netns PATH or --pid N", c.CommandPath())
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
	fmt.Fprintln(w, strings.Join(words, " "))
}

func (a *app) attach() *cobra.Command {
	var hostname string
	c := a.addressCommand(&cobra.Command{
		Use:   "attach [ADDRESS...] --netns PATH | --pid N [--hostname NAME]",
		Short: "Give a container an interface and addresses",
		Long: `Join a container to the switch by the interface ethwe, give it addresses, one of
the default subnet if none is named, and print them on one line. A container
that is attached gets what it lacks. With --hostname all hosts answer that name
with its addresses; without a dot it is in the domain of the router.

` + addressForms,
	}, func(client *api.Client, ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
		r.Hostname = hostname
		return client.Attach(ctx, r)
	})
	c.Flags().StringVar(&hostname, "hostname", "", "host name for the container, in full or without the domain")
	return c
}

func (a *app) detach() *cobra.Command {
	return a.addressCommand(&cobra.Command{
		Use:   "detach [ADDRESS...] --netns PATH | --pid N",
		Short: "Take addresses from a container",
		Long: `Take addresses, all if none is named, from a container and print those that it
had on one line. The interface goes with the last address.

` + addressForms,
	}, (*api.Client).Detach)
}

// addressCommand completes attach or detach, which differ in the call only.
func (a *app) addressCommand(c *cobra.Command, call func(*api.Client, context.Context, api.AttachRequest) ([]netip.Prefix, error)) *cobra.Command {
	var k container
	var list []api.Address
	c.Args = func(c *cobra.Command, args []string) (err error) {
		list, err = addresses(c, args)
		return err
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		path, err := k.path(c)
		if err != nil {
			return err
		}
		ps, err := call(a.client(), c.Context(), api.AttachRequest{Netns: path, Addresses: list})
		if err != nil {
			return err
		}
		printAddresses(a.stdout, ps)
		return nil
	}
	k.flags(c.Flags())
	return c
}

func (a *app) expose() *cobra.Command {
	var r api.ExposeRequest
	c := &cobra.Command{
		Use:   "expose [ADDRESS...] [-h NAME] [--without-masquerade]",
		Short: "Give the host itself addresses on the switch",
		Long: `Give this host addresses on the switch, one of the default subnet if none is
named, and print them on one line. Then the host reaches the containers, and
containers reach other networks through the host: addresses are translated both
ways unless --without-masquerade is given. With -h all hosts answer that name with
these addresses. Doing it twice is harmless.

` + addressForms,
		RunE: func(c *cobra.Command, args []string) (err error) {
			if r.Addresses, err = addresses(c, args); err != nil {
				return err
			}
			ps, err := a.client().Expose(c.Context(), r)
			if err != nil {
				return err
			}
			printAddresses(a.stdout, ps)
			return nil
		},
	}
	c.Flags().BoolVar(&r.WithoutMasquerade, "without-masquerade", false, "translate no addresses")
	hostnameFlag(c, &r.Hostname, "host name for the addresses, in full or without the domain")
	return c
}

func (a *app) hide() *cobra.Command {
	return &cobra.Command{
		Use:   "hide [ADDRESS...]",
		Short: "Take the host's addresses on the switch away",
		Long: `Undo expose for the given addresses, all if none is named, and print those that
the host had on one line. Doing it twice is harmless.

` + addressForms,
		RunE: func(c *cobra.Command, args []string) error {
			list, err := addresses(c, args)
			if err != nil {
				return err
			}
			ps, err := a.client().Hide(c.Context(), api.ExposeRequest{Addresses: list})
			if err != nil {
				return err
			}
			printAddresses(a.stdout, ps)
			return nil
		},
	}
}

func (a *app) ps() *cobra.Command {
	return &cobra.Command{
		Use:   "ps [CONTAINER...]",
		Short: "List attached containers with their addresses",
		Long: `Print one line for each attached container: its id, its MAC address and its
addresses. weft:expose is the host itself. CONTAINER is an id or the path of a
network namespace.`,
		RunE: func(c *cobra.Command, args []string) error {
			return runPs(c.Context(), a.client(), args, a.stdout)
		},
	}
}

func runPs(ctx context.Context, client *api.Client, which []string, stdout io.Writer) error {
	list, err := client.Attachments(ctx)
	if err != nil {
		return err
	}
	for _, w := range which {
		if !slices.ContainsFunc(list, func(k api.Attachment) bool { return k.ID == w || k.Netns == w }) {
			return fmt.Errorf("container %s is not attached", w)
		}
	}
	for _, k := range list {
		if len(which) > 0 && !slices.Contains(which, k.ID) && !slices.Contains(which, k.Netns) {
			continue
		}
		mac := k.MAC
		if mac == "" {
			mac = "-"
		}
		words := []string{k.ID, mac}
		for _, p := range k.Addresses {
			words = append(words, p.String())
		}
		fmt.Fprintln(stdout, strings.Join(words, " "))
	}
	return nil
}
