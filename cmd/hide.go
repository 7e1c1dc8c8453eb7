package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) hide() *cobra.Command {
	return &cobra.Command{
		Use:   "hide [ADDRESS...]",
		Short: "Take addresses on the switch from the host",
		Long: `Undo expose for the given addresses, all if none is named, and print those that
the host had on one line. If the host lacks one that is named, it keeps all, and the
exit code is 1.

` + addressForms,
		RunE: func(c *cobra.Command, args []string) error {
			list, err := addresses(c, args)
			if err != nil {
				return err
			}
			ps, err := a.waitingClient().Hide(c.Context(), api.ExposeRequest{Addresses: list})
			if err != nil {
				return err
			}
			printAddresses(a.stdout, ps)
			return nil
		},
	}
}
