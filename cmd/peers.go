package cmd

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) connect() *cobra.Command {
	var replace bool
	c := &cobra.Command{
		Use:   "connect [--replace] PEER...",
		Short: "Add peers to connect to",
		Long: `Add peers, HOST or HOST:PORT, to the targets: the peers that this host keeps
connected to. A target that is not connected is dialled at once. With --replace
the given peers become the only targets; other sessions stay. Targets survive a
crash, and with weft launch --resume a stop.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 && !replace {
				return usagef("%s: name at least one peer to connect to", c.CommandPath())
			}
			return checkTargets(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			return runConnect(c.Context(), a.client(), args, replace)
		},
	}
	c.Flags().BoolVar(&replace, "replace", false, "forget all other targets")
	return c
}

func runConnect(ctx context.Context, client *api.Client, peers []string, replace bool) error {
	return client.Connect(ctx, api.PeersRequest{Peers: peers, Replace: replace})
}

func (a *app) forget() *cobra.Command {
	return &cobra.Command{
		Use:   "forget PEER...",
		Short: "Stop connecting to peers",
		Long: `Remove peers from the targets. Write each as it was given to launch or connect.
A session that is up stays up.`,
		Args: atLeast(1, "name at least one peer to forget"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().Forget(c.Context(), api.PeersRequest{Peers: args})
		},
	}
}

func checkTargets(c *cobra.Command, peers []string) error {
	for _, p := range peers {
		if err := api.CheckTarget(p); err != nil {
			return usagef("%s: %w", c.CommandPath(), err)
		}
	}
	return nil
}

func (a *app) rmpeer() *cobra.Command {
	return &cobra.Command{
		Use:   "rmpeer PEER...",
		Short: "Take over the addresses of dead peers",
		Long: `Declare peers, given by name or nickname, dead for good, and take over their
address ranges. A majority of the remaining peers must agree, so two hosts may run
the command at once. A peer that is alive is refused.`,
		Args: atLeast(1, "name at least one peer to remove"),
		RunE: func(c *cobra.Command, args []string) error {
			return runRmpeer(c.Context(), a.client(), args, a.stdout)
		},
	}
}

func runRmpeer(ctx context.Context, client *api.Client, peers []string, stdout io.Writer) error {
	removed, err := client.RemovePeers(ctx, api.PeersRequest{Peers: peers})
	if err != nil {
		return err
	}
	for _, r := range removed {
		fmt.Fprintf(stdout, "%.0f IPs taken over from %s\n", r.Addresses, r.Peer)
	}
	return nil
}

func (a *app) adopt() *cobra.Command {
	return &cobra.Command{
		Use:   "adopt RING",
		Short: "Abandon this side's ring of addresses and join another",
		Long: `Two meshes that each gave out addresses before they met have two rings, and may have
given the same address twice; weft status then shows both rings. Run on one host of
one side, this command makes all peers on that side abandon their ring and join RING,
given by its number or the beginning of it. Addresses in use stay in use and are
claimed in the other ring. Addresses that both sides use are shown in weft status
until one of the two containers is detached.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s: name the ring to adopt; weft status shows it", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().Adopt(c.Context(), api.AdoptRequest{Ring: args[0]})
		},
	}
}

func (a *app) prime() *cobra.Command {
	return &cobra.Command{
		Use:   "prime",
		Short: "Wait until addresses can be given out",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.client().Prime(c.Context())
		},
	}
}
