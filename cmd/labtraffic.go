package cmd

import (
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/lab/traffic"
	"github.com/weft-net/weft/internal/render"
)

func (l *labApp) traffic() *cobra.Command {
	c := &cobra.Command{
		Use:    "traffic",
		Short:  "Measure a network between two processes",
		Hidden: true,
		Args:   subcommand,
		RunE:   showHelp,
	}
	serve := &cobra.Command{
		Use:   "serve ADDRESS:PORT",
		Short: "Answer lab traffic send; the first line is the address",
		Args:  atLeast(1, "name the address to listen on"),
		RunE: func(c *cobra.Command, args []string) error {
			ln, err := net.Listen("tcp", args[0])
			if err != nil {
				return fmt.Errorf("serve traffic: %w", err)
			}
			render.Fprintln(l.stdout, ln.Addr())
			return traffic.Serve(c.Context(), ln)
		},
	}
	c.AddCommand(serve, l.sendTraffic())
	return c
}

func (l *labApp) sendTraffic() *cobra.Command {
	var o traffic.Order
	var kind string
	c := &cobra.Command{
		Use:   "send ADDRESS:PORT",
		Short: "Measure towards lab traffic serve and print JSON",
		Args:  atLeast(1, "name the address of the server"),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: one server at a time, not %q", c.CommandPath(), args)
			}
			if o.Streams == 0 || o.Size == 0 {
				return usagef("%s: want at least one stream and one byte", c.CommandPath())
			}
			o.Kind = traffic.Kind(kind)
			if err := o.Check(); err != nil {
				return usagef("%s: %w", c.CommandPath(), err)
			}
			var dialer net.Dialer
			r, err := o.Measure(c.Context(), traffic.Client{Dial: dialer.DialContext, Addr: args[0]})
			if err != nil {
				return err
			}
			return json.NewEncoder(l.stdout).Encode(r)
		},
	}
	c.Flags().StringVar(&kind, "kind", string(traffic.TCP), "tcp, tcp-pinned (senders on one CPU, receivers on another), udp (as fast as it goes), udp-sustained (with less than 1 % lost), latency, trips (round trips on one CPU) or connect")
	c.Flags().IntVar(&o.Streams, "streams", 1, "TCP connections at once")
	c.Flags().IntVar(&o.Size, "size", 64, "bytes of data in a UDP packet")
	c.Flags().DurationVar(&o.Time, "time", time.Second, "how long to send")
	return c
}
