package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) forget() *cobra.Command {
	return &cobra.Command{
		Use:   "forget PEER...",
		Short: "Stop connecting to peers",
		Long: `Remove peers from the targets. Write each as it was given to launch or connect.
A session that is up stays up. If one is no target, nothing is removed, and the exit
code is 1.`,
		Args: atLeast(1, "name at least one peer to forget"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().Forget(c.Context(), api.PeersRequest{Peers: args})
		},
	}
}
