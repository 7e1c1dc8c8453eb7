package cmd

import (
	"context"

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

func checkTargets(c *cobra.Command, peers []string) error {
	for _, p := range peers {
		if err := api.CheckTarget(p); err != nil {
			return usagef("%s: %w", c.CommandPath(), err)
		}
	}
	return nil
}
