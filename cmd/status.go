package cmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status [" + strings.Join(api.Views(), "|") + "]",
		Short: "Show the state of the router and the mesh",
		Long: `Without an argument, show an overview. With one,
    targets      the peers that this host keeps connected to
    connections  one line per link: direction, address, state, kind and encryption,
                 peer, MTU, and why it is not faster
    peers        every peer with its sessions
    ipam         the address range, and how many addresses each peer owns
    dns          every host name of the mesh, with its address, container and peer`,
		ValidArgs: api.Views(),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: name one view at a time", c.CommandPath())
			}
			if len(args) == 1 {
				return (&api.Report{}).Text(io.Discard, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.client().Report(c.Context())
			if err != nil {
				return err
			}
			return r.Text(a.stdout, strings.Join(args, ""))
		},
	}
}

func (a *app) report() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "report [-f TEMPLATE]",
		Short: "Show the whole state as JSON, or parts of it with a template",
		Long: `Print the state of the router as JSON, or as a Go text/template formats it;
the template function json prints a part as JSON:

    weft report -f '{{.Router.Name}}'
    weft report -f '{{json .IPAM}}'`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return runReport(c.Context(), a.client(), format, a.stdout)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go text/template over the report")
	return c
}

func runReport(ctx context.Context, client *api.Client, format string, stdout io.Writer) error {
	if format != "" {
		// A template that does not parse is refused without asking the router.
		if err := api.CheckTemplate(format); err != nil {
			return err
		}
	}
	r, err := client.Report(ctx)
	if err != nil {
		return err
	}
	if format != "" {
		if err := r.Execute(stdout, format); err != nil {
			return err
		}
		fmt.Fprintln(stdout)
		return nil
	}
	e := json.NewEncoder(stdout)
	e.SetIndent("", "    ")
	return e.Encode(r)
}
