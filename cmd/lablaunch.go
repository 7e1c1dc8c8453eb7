package cmd

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/lab"
)

func (l *labApp) launch() *cobra.Command {
	var f launchFlags
	c := &cobra.Command{
		Use:   "launch HOST [LAUNCH-FLAGS] [PEER...] [-- LAUNCH-FLAGS]",
		Short: "Start the router of a host again, with the state it had",
		Long: `Start the router of a host with the flags of the lab and further flags of weft
launch. Without peers it connects to the targets that it had, or at a first
start to those of the lab. As --name is the lab's, the name of the peer is given
after --, as in: weft lab launch h1 -- --name 02:00:00:00:00:01`,
		RunE: func(c *cobra.Command, args []string) error {
			before, after, _ := splitDash(c, args)
			if len(before) == 0 {
				return usagef("%s: name a host, as h1", c.CommandPath())
			}
			hosts, err := parseHosts(c, before[:1], 1)
			if err != nil {
				return err
			}
			extra := append(changedArgs(c.LocalNonPersistentFlags(), "help"), after...)
			peers := before[1:]
			if err := checkLaunchFlags(append(extra, peers...)); err != nil {
				return err
			}
			made, err := l.open()
			if err != nil {
				return err
			}
			if len(peers) == 0 && !f.Resume {
				if daemon.Exists(&daemon.Config{StateDir: made.StateDir(hosts[0])}) {
					extra = append(extra, "--resume")
				} else {
					peers = made.Peers(hosts[0])
				}
			}
			ctx, cancel := context.WithTimeout(c.Context(), lab.Timeout)
			defer cancel()
			return made.Launch(ctx, hosts[0], append(extra, peers...)...)
		},
	}
	all := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(all)
	all.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "name" && flag.Name != "foreground" && flag.Name != "log-file" && flag.Name != "http-addr" {
			c.Flags().AddFlag(flag)
		}
	})
	return c
}
