package cmd

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/render"
)

func (l *labApp) up() *cobra.Command {
	var k labConfig
	c := &cobra.Command{
		Use:   "up [flags] [-- LAUNCH-FLAGS...]",
		Short: "Make a lab and wait until its mesh has converged",
		Long: `Make a lab and start its routers, with the flags of weft launch that follow --.
It returns when every host sees all others and has a route to each. If that
fails, nothing is left.`,
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			config, err := k.config(l.name, launch)
			if err != nil {
				return err
			}
			start := time.Now()
			made, err := lab.Up(c.Context(), config)
			if err != nil {
				return err
			}
			if made.Raised {
				render.Fprintf(l.stdout, "raised this machine's limits of neighbours (net.ipv4.neigh.default.gc_thresh3 and the like), which all labs share\n")
			}
			render.Fprintf(l.stdout, "lab %s is up: %s, converged in %.1f s\n", config.Name, count.Of(config.Hosts, "host", "hosts"), time.Since(start).Seconds())
			return nil
		},
	}
	k.register(c.Flags())
	return c
}

func (l *labApp) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, even an incomplete one, and its processes",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := testbed.CheckName(l.name); err != nil {
				return usageError{err}
			}
			return testbed.Down(l.name)
		},
	}
}

func (l *labApp) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			labs, err := testbed.List()
			if err != nil {
				return err
			}
			for _, s := range labs {
				words := append([]string{s.Name + ":"}, s.Hosts...)
				words = append(words, s.Containers...)
				if !s.Complete {
					words = append(words, "(incomplete; remove it with: weft lab down --name "+s.Name+")")
				}
				render.Fprintln(l.stdout, strings.Join(words, " "))
			}
			return nil
		},
	}
}
