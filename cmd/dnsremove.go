package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) dnsRemove() *cobra.Command {
	return a.nameCommand(&cobra.Command{
		Use:   "dns-remove [IP...] CONTAINER [-h NAME] | [IP...] -h NAME",
		Short: "Take addresses from a host name",
		Long: `Undo dns-add on this host: for the given addresses, else for all, and for NAME,
else for all names of the container. A name that a container of Docker's has by
itself is removed until dns-add adds it again, or the container is started again.
If a name or an address that is given does not exist, nothing is removed, and the exit
code is 1.`,
	}, (*api.Client).RemoveName)
}
