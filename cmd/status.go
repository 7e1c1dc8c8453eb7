package cmd

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status [" + strings.Join(api.Views(), "|") + "] [PEER|ADDRESS]",
		Short: "Show the state of the router and the mesh",
		Long: `Without an argument, show an overview. With one,
    targets      the peers that this host keeps connected to
    connections  one line per link: direction, address, state, kind and encryption,
                 peer, MTU, and why it is not faster; then one line per peer that
                 is reached over others, and whether those can read the frames
    peers        every peer with its sessions
    ipam         the address range, and how many addresses each peer owns
    dns          every host name of the mesh, with its address, container and peer
    bindings     every MAC address to which weft gave IP addresses, with those and
                 the peer on whose host it is; with a PEER (name or nickname) or
                 an ADDRESS (MAC or IP) only those of it
    multicast    every multicast group that containers want, with the peer on whose
                 host they are; "all" for a host that gets the frames of all groups`,
		ValidArgs: api.Views(),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 2 || len(args) == 2 && args[0] != api.BindingsView {
				return usagef("%s: name one view at a time", c.CommandPath())
			}
			if len(args) > 0 {
				return (&api.Report{}).Text(io.Discard, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			args = append(args, "", "")
			return a.client().StatusTextOf(c.Context(), args[0], args[1], a.stdout)
		},
	}
}
