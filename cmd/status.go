package cmd

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status [" + strings.Join(api.Views(), "|") + "]",
		Short: "Show the state of the router and the mesh",
		Long: `Without an argument, show an overview. With one,
    targets      the peers that this host keeps connected to
    connections  one line per link: direction, address, state, kind and encryption,
                 peer, MTU, and why it is not faster; then one line per peer that
                 is reached over others, and whether those can read the frames
    peers        every peer with its sessions
    ipam         the address range, and how many addresses each peer owns
    dns          every host name of the mesh, with its address, container and peer`,
		ValidArgs: api.Views(),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: name one view at a time", c.CommandPath())
			}
			if len(args) == 1 {
				return (&api.Report{}).Text(io.Discard, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.client().StatusText(c.Context(), strings.Join(args, ""), a.stdout)
		},
	}
}
