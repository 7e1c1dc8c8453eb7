package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

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
