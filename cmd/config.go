package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/render"
)

func (a *app) config() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the arguments that make one call of docker use weft's proxy",
		Long: `Print the arguments that make one call of docker use the proxy:

    docker $(weft config) run -d --name web nginx

Without a proxy nothing is printed.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			addr, err := a.proxyAddress(c)
			if err != nil || addr == "" {
				return err
			}
			render.Fprintln(a.stdout, "-H="+addr)
			return nil
		},
	}
}
