package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) ban() *cobra.Command {
	return &cobra.Command{
		Use:   "ban PEER...",
		Short: "Throw peers out of the mesh",
		Long: `Ask for peers, given by name or nickname, to be thrown out of the mesh. Run it on the
hosts of as many voters as must agree (weft status ipam shows the voters and the number);
the command waits for the others and says how many are missing. A router votes for a ban
only if its own operator asked for it, so one stolen host bans nobody.

Within seconds of the decision the peer has no session, link, kernel path or name
anywhere, and its addresses belong to others. It stays out after restarts, also if it
knows the password. Whoever has the host can make a new key, so change the password of
the mesh too.`,
		Args: atLeast(1, "name at least one peer to ban"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().Ban(c.Context(), api.BanRequest{Peers: args})
		},
	}
}

func (a *app) unban() *cobra.Command {
	return &cobra.Command{
		Use:   "unban PEER...",
		Short: "Let banned peers into the mesh again",
		Long: `Ask for the ban of peers, given by name, to end. As for weft ban, the operators of as
many voters as must agree run it.`,
		Args: atLeast(1, "name at least one peer"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().Ban(c.Context(), api.BanRequest{Peers: args, Unban: true})
		},
	}
}
