package cmd

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
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
agrees if as many hosts that are not in its own ring made the other one as must agree in
its own, or if the command runs on its host too. The command does not wait: it says how
many votes are missing, and so does weft status ipam. The vote of this host holds for ten
minutes. Addresses in use stay in use and are claimed in the other ring. Addresses
that both sides use are shown in weft status until one of the two containers is detached.

With --here only this host changes to RING, whatever the voters say. RING may also be
the ring that this host left last, so that its operator can undo an adoption.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s: name the ring to adopt; weft status shows it", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return runAdopt(c.Context(), a.client(), api.AdoptRequest{Ring: args[0], Here: here}, a.stdout)
		},
	}
	c.Flags().BoolVar(&here, "here", false, "change only this host, without a vote")
	return c
}

func runAdopt(ctx context.Context, client *api.Client, r api.AdoptRequest, stdout io.Writer) error {
	if err := client.Adopt(ctx, r); err != nil {
		return err
	}
	report, err := client.Summary(ctx, api.NoLists)
	if err != nil || r.Here {
		return err
	}
	for _, u := range []*api.IPAM{report.IPAM, report.IPAM6} {
		if u == nil {
			continue
		}
		for i := range u.Votes {
			if v := &u.Votes[i]; v.Kind == api.VoteAdopt && strings.HasPrefix(v.Ring, r.Ring) {
				render.Fprintln(stdout, v.Text())
				return nil
			}
		}
	}
	render.Fprintf(stdout, "The adoption of ring %s is decided.\n", r.Ring)
	return nil
}
