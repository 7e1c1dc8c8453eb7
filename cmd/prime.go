package cmd

import (
	"github.com/spf13/cobra"
)

func (a *app) prime() *cobra.Command {
	return &cobra.Command{
		Use:   "prime",
		Short: "Wait until addresses can be given out",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.client().Prime(c.Context())
		},
	}
}
