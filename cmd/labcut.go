package cmd

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/lab/testbed"
)

func (l *labApp) cut() *cobra.Command {
	return l.cutCommand(&cobra.Command{
		Use:   "cut HOST HOST",
		Short: "Cut the underlay between two hosts",
		Long: `Drop all packets between two hosts in the underlay, in both directions, or with
--one-way those from the first to the second only.`,
	}, (*testbed.Lab).Cut)
}

func (l *labApp) heal() *cobra.Command {
	return l.cutCommand(&cobra.Command{
		Use:   "heal HOST HOST",
		Short: "Undo cut, or what the topology of the lab cut",
	}, (*testbed.Lab).Heal)
}

func (l *labApp) cutCommand(c *cobra.Command, change func(*testbed.Lab, int, int, testbed.Way) error) *cobra.Command {
	var oneWay bool
	c.Flags().BoolVar(&oneWay, "one-way", false, "only from the first host to the second")
	c.RunE = func(c *cobra.Command, args []string) error {
		hosts, err := parseHosts(c, args, 2)
		if err != nil {
			return err
		}
		if hosts[0] == hosts[1] {
			return usagef("%s: %s twice; there is no underlay between a host and itself", c.CommandPath(), args[0])
		}
		made, err := l.open()
		if err != nil {
			return err
		}
		if err := change(made, hosts[0], hosts[1], testbed.Packets); err != nil || oneWay {
			return err
		}
		return change(made, hosts[1], hosts[0], testbed.Packets)
	}
	return c
}
