package cmd

import (
	"bytes"
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

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
	if format == "" {
		return client.ReportJSON(ctx, stdout)
	}
	r, err := client.Report(ctx)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := r.Execute(&text, format); err != nil {
		return err
	}
	if !bytes.HasSuffix(text.Bytes(), []byte("\n")) {
		text.WriteByte('\n')
	}
	_, err = text.WriteTo(stdout)
	return err
}
