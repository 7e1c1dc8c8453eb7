package cmd

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	floods "github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/render"
)

const allFloods = "all"

func floodNames() (names []string) {
	for _, f := range floods.Floods {
		names = append(names, f.Name)
	}
	return names
}

func (l *labApp) hostile() *cobra.Command {
	var honest int
	var flood string
	var duration time.Duration
	var b strings.Builder
	for _, f := range floods.Floods {
		fmt.Fprintf(&b, "    %-11s %s\n", f.Name, f.Help)
	}
	c := &cobra.Command{
		Use:   "hostile",
		Short: "Flood a lab from a hostile host, and measure what the others suffer",
		Long: `Make a lab of honest hosts with a container each, and one more host that knows the
password of the mesh and lies. Flood the honest hosts from there, print what they
suffer, and remove the lab. Each flood gets a fresh lab. The exit code is 1 if a
limit is broken: pings between containers that get no answer (1 %), the longest
time of an attach (2 s) and of a status (1 s, on a busy machine ten times as long
as without a flood), the memory of a router (200 MB), sessions between honest
hosts that ended, and addresses that others took.

The floods are:

` + strings.TrimSuffix(b.String(), "\n"),
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			chosen := floodNames()
			if flood != allFloods {
				if floods.Find(flood) == nil {
					return usagef("%s: --flood %q: want %s or %s", c.CommandPath(), flood, strings.Join(chosen, ", "), allFloods)
				}
				chosen = []string{flood}
			}
			if honest < 2 || honest >= testbed.MaxHosts-lab.SiegeSources {
				return usagef("%s: --hosts %d: want 2 to %d", c.CommandPath(), honest, testbed.MaxHosts-lab.SiegeSources-1)
			}
			if duration < time.Second {
				return usagef("%s: --for %v: want 1s or more", c.CommandPath(), duration)
			}
			if !c.Flags().Changed("name") {
				l.name = fmt.Sprintf("hostile%d", os.Getpid())
			}
			k := labConfig{hosts: honest + 1, topology: string(testbed.Full), password: "a password for the lab", underlayMTU: 1500}
			config, err := k.config(l.name, nil)
			if err != nil {
				return err
			}
			return l.besiege(c.Context(), config, chosen, duration)
		},
	}
	c.Flags().IntVar(&honest, "hosts", 3, "number of honest hosts")
	c.Flags().StringVar(&flood, "flood", allFloods, "one of the floods below, or all")
	c.Flags().DurationVar(&duration, "for", 30*time.Second, "how long each flood lasts")
	c.AddCommand(l.sendFlood())
	return c
}

// besiege prints the damage of each flood.
func (l *labApp) besiege(ctx context.Context, config testbed.Config, chosen []string, duration time.Duration) error {
	const row = "%-11s %9s %7s %9s %9s %9s %6s  %s\n"
	render.Fprintf(l.stdout, row, "flood", "sent/s", "loss %", "attach s", "status s", "memory MB", "CPUs", "limits broken")
	broken := false
	for _, name := range chosen {
		d, err := lab.Besiege(ctx, config, name, duration)
		if err != nil {
			return err
		}
		out := d.Broken(floods.Find(name).MaxGiven, 0)
		broken = broken || len(out) > 0
		render.Fprintf(l.stdout, row, name, fmt.Sprintf("%.0f", float64(d.Sent)/duration.Seconds()), fmt.Sprintf("%.2f", 100*d.Loss()),
			fmt.Sprintf("%.2f", d.Attach.Seconds()), fmt.Sprintf("%.2f", d.Status.Seconds()), fmt.Sprint(d.Memory>>20),
			fmt.Sprintf("%.2f", d.CPU), strings.Join(out, "; "))
	}
	if broken {
		return exitError{ExitFailed}
	}
	return nil
}

// sendFlood is the hostile host of a lab.
func (l *labApp) sendFlood() *cobra.Command {
	var k floods.Config
	var sources []string
	var addrs string
	c := &cobra.Command{
		Use:    "send FLOOD",
		Short:  "Flood routers until standard input ends, and print how much was sent",
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || floods.Find(args[0]) == nil {
				return usagef("%s: want one flood: %s", c.CommandPath(), strings.Join(floodNames(), ", "))
			}
			var err error
			if k.Range, err = netip.ParsePrefix(addrs); err != nil {
				return usagef("%s: --range: %w", c.CommandPath(), err)
			}
			for _, s := range sources {
				a, err := netip.ParseAddr(s)
				if err != nil {
					return usagef("%s: --source: %w", c.CommandPath(), err)
				}
				k.Sources = append(k.Sources, a)
			}
			k.Password = os.Getenv("WEFT_PASSWORD")
			a, err := floods.New(k)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
			a.Run(ctx, floods.Find(args[0]))
			render.Fprintln(l.stdout, a.Sent())
			return nil
		},
	}
	c.Flags().StringArrayVar(&k.Targets, "target", nil, "HOST:PORT of a router (repeatable)")
	c.Flags().StringArrayVar(&sources, "source", nil, "address to connect from as a stranger (repeatable)")
	c.Flags().StringVar(&addrs, "range", "10.32.0.0/12", "address range of the mesh")
	c.Flags().IntVar(&k.Rate, "rate", 0, "messages for each router, per second; 0 for no limit")
	return c
}
