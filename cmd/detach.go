package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) detach() *cobra.Command {
	return a.addressCommand(&cobra.Command{
		Use:   "detach [ADDRESS...] CONTAINER | --netns PATH | --pid N",
		Short: "Take addresses from a container",
		Long: `Take addresses, all if none is named, from a container and print those that it
had on one line. The interface is removed with the last address. If the container is not
attached, or lacks an address that is named, nothing is taken, and the exit code is 1.

` + addressForms,
	}, (*api.Client).Detach, new(api.AttachRequest))
}
