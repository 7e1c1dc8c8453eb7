package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) adopt() *cobra.Command {
	var here bool
	c := &cobra.Command{
		Use:   "adopt RING",
		Short: "Abandon this side's ring of addresses and join another",
		Long: `Two meshes that each gave out addresses before they met have two rings, and may have
given the same address twice; weft status then shows both rings. Run on one host of
one side, this command makes all peers on that side abandon their ring and join RING,
given by its number or the beginning of it. The voters of the ring decide that. A voter
agrees if as many hosts made the other ring as must agree in its own, or if the command
runs on its host too. Addresses in use stay in use and are claimed in the other ring.
Addresses that both sides use are shown in weft status until one of the two containers
is detached.

With --here only this host changes to RING, whatever the voters say. RING may also be
the ring that this host left last, so that its operator can undo an adoption.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s: name the ring to adopt; weft status shows it", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().Adopt(c.Context(), api.AdoptRequest{Ring: args[0], Here: here})
		},
	}
	c.Flags().BoolVar(&here, "here", false, "change only this host, without a vote")
	return c
}
