package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/render"
)

func (a *app) dnsLookup() *cobra.Command {
	return &cobra.Command{
		Use:   "dns-lookup NAME",
		Short: "Ask this host's DNS server",
		Long: `Print the answer of the DNS server of this host: the addresses of a host name, or
the names of an address, one per line. For names that weft does not know the server
asks the host's own name servers. Nothing is printed for a name without an address.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s: want one host name or address", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			found, err := a.client().LookupName(c.Context(), args[0])
			for _, f := range found {
				render.Fprintln(a.stdout, render.Word(f))
			}
			return err
		},
	}
}
