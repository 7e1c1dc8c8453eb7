package cmd

import (
	"github.com/spf13/cobra"
)

func (l *labApp) kill() *cobra.Command {
	return &cobra.Command{
		Use:   "kill HOST",
		Short: "Kill the router of a host with SIGKILL",
		RunE: func(c *cobra.Command, args []string) error {
			hosts, err := parseHosts(c, args, 1)
			if err != nil {
				return err
			}
			made, err := l.open()
			if err != nil {
				return err
			}
			return made.Kill(hosts[0])
		},
	}
}
