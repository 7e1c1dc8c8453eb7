package cmd

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/lab/bench"
)

func (l *labApp) bench() *cobra.Command {
	var k bench.Config
	var only, record string
	c := &cobra.Command{
		Use:   "bench [flags] [-- LAUNCH-FLAGS...]",
		Short: "Measure the mesh, and other overlays next to it",
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			k.Launch = launch
			if err := checkLaunchFlags(launch); err != nil {
				return err
			}
			var err error
			if k.Only, err = regexp.Compile("(?i)" + only); err != nil {
				return usagef("%s: --only %q: %v", c.CommandPath(), only, err)
			}
			if err := k.Check(); err != nil {
				return usagef("%s: %w", c.CommandPath(), err)
			}
			if i := slices.IndexFunc(k.Paths, bench.NeedsRivals); i >= 0 && k.Rivals == "" && c.Flags().Changed("paths") {
				return usagef("%s: --paths %q: --rivals must name the folder of its program", c.CommandPath(), k.Paths[i])
			}
			if !c.Flags().Changed("name") {
				l.name = fmt.Sprintf("bench%d", os.Getpid())
			}
			k.Name = l.name
			if record == "" {
				return bench.Run(c.Context(), k, l.stdout, l.stderr)
			}
			f, err := os.Create(record)
			if err != nil {
				return fmt.Errorf("record the benchmarks: %w", err)
			}
			k.Record = f
			return errors.Join(bench.Run(c.Context(), k, l.stdout, l.stderr), f.Close())
		},
	}
	c.Flags().IntVar(&k.Rounds, "rounds", 5, "rounds, of which the medians count")
	c.Flags().DurationVar(&k.Time, "time", 2*time.Second, "time for each measurement")
	c.Flags().StringVar(&k.Rivals, "rivals", "", "folder of wireguard, nebula, nebula-cert and coredns, to be measured too")
	c.Flags().StringVar(&only, "only", "", "measure only what this regular expression matches")
	c.Flags().StringSliceVar(&k.Tables, "tables", bench.DefaultTables, "what to measure: sleeve against others in user space, the fast datapath against kernel VXLAN, dns against CoreDNS")
	c.Flags().StringVar(&record, "record", "", "write every value to this file, in Go's benchmark format, for benchstat")
	c.Flags().StringSliceVar(&k.Paths, "paths", bench.PathNames, "paths of the table sleeve, measure only these")
	return c
}
