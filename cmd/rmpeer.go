package cmd

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/render"
)

func (a *app) rmpeer() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "rmpeer PEER...",
		Short: "Give the addresses of dead peers to others",
		Long: `Declare peers, given by name or nickname, dead for good, and give their address
ranges to others. The voters of the ring decide it (weft status ipam shows them). A
voter agrees at once if the command runs on its host too. Otherwise it agrees if it could
not reach the peer for ten seconds and two hosts run the command, or for five minutes: one
host alone cannot take the addresses of a host that restarts. The removal goes on for ten
minutes after the command has ended. A peer that is alive is refused.

The host that inherits the addresses leaves them unused for an hour, and gives them back
if the peer returns, unless the command runs on that host, too (weft status ipam).
Before it uses them itself, hosts whose containers use some of the addresses have 15
seconds to claim them, as a host does that lost its state folder and has a new name.

If so many voters are lost that the others cannot decide, --force goes on with this
host alone: it founds the ring again without the peers. The other hosts then show the
new ring in weft status; run weft adopt --here RING on each of them within five minutes.
Until then nobody gets the addresses of the peers, as containers there may use some.`,
		Args: atLeast(1, "name at least one peer to remove"),
		RunE: func(c *cobra.Command, args []string) error {
			return runRmpeer(c.Context(), a.client(), api.PeersRequest{Peers: args, Force: force, Operator: true}, a.stdout)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "go on without the voters, if too few of them are left to decide")
	return c
}

func runRmpeer(ctx context.Context, client *api.Client, r api.PeersRequest, stdout io.Writer) error {
	removed, err := client.RemovePeers(ctx, r)
	if ctx.Err() != nil && !r.Force {
		return fmt.Errorf("interrupted: if the removal of %s is not decided, it goes on for ten minutes; weft status ipam shows it", strings.Join(r.Peers, ", "))
	}
	if err != nil {
		return err
	}
	var unknown []string
	for _, r := range removed {
		if r.Unknown {
			unknown = append(unknown, r.Peer)
			continue
		}
		render.Fprintf(stdout, "%s taken over from %s\n", count.Of(r.Addresses, "IP", "IPs"), r.Peer)
	}
	if len(unknown) > 0 {
		return fmt.Errorf("%s: no such peer owns addresses or has a vote; 'weft status ipam' lists those that do", strings.Join(unknown, ", "))
	}
	return nil
}
