package cmd

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

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
		render.Fprintf(stdout, "%.0f IPs taken over from %s\n", r.Addresses, r.Peer)
	}
	return nil
}
