package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) expose() *cobra.Command {
	var r api.ExposeRequest
	c := &cobra.Command{
		Use:   "expose [ADDRESS...] [-h NAME] [--without-masquerade]",
		Short: "Give the host itself addresses on the switch",
		Long: `Give this host addresses on the switch, one of the default subnet if none is
named, and print them on one line. Then the host reaches the containers, and
containers reach other networks through the host: addresses are translated in both
directions unless --without-masquerade is given. With -h all hosts resolve that name
to these addresses. Exposing twice is harmless.

` + addressForms,
		RunE: func(c *cobra.Command, args []string) (err error) {
			if r.Addresses, err = addresses(c, args); err != nil {
				return err
			}
			ps, err := a.waitingClient().Expose(c.Context(), r)
			if err != nil {
				return err
			}
			printAddresses(a.stdout, ps)
			return nil
		},
	}
	c.Flags().BoolVar(&r.WithoutMasquerade, "without-masquerade", false, "translate no addresses")
	hostnameFlag(c, &r.Hostname, "host name for the addresses, in full or without the domain")
	return c
}
