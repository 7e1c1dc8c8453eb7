package cmd

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/internal/lab"
)

func (l *labApp) demo() *cobra.Command {
	var k labConfig
	c := &cobra.Command{
		Use:   "demo [flags] [-- LAUNCH-FLAGS...]",
		Short: "Show a mesh at work, from up to down",
		Long: `Make a lab, put one container on each host, let each ping each other, measure the
throughput between two, show the status and remove everything. Exit code 0 only
if all of it worked.`,
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			if !c.Flags().Changed("name") {
				// Does not disturb a lab of the user's, nor another demo.
				l.name = fmt.Sprintf("demo%d", os.Getpid())
			}
			config, err := k.config(l.name, launch)
			if err != nil {
				return err
			}
			return lab.Demo(c.Context(), config, l.stdout)
		},
	}
	k.register(c.Flags())
	if f := c.Flags().Lookup("password"); f != nil {
		f.DefValue = "a password for the demo"
		k.password = f.DefValue
	}
	return c
}
