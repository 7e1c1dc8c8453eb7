package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/process"
	"github.com/weft-net/weft/internal/render"
)

// stopTimeout bounds the end of a router that has left the mesh.
const stopTimeout = 15 * time.Second

func (a *app) stop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the router of this host",
		Long: `Leave the mesh and end the router. Containers stay attached, keep their addresses
and reach each other on this host. Stopping twice is harmless.

The unit weft.service stops with the router, and starts again at the next boot if
it is enabled.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, unit := c.Context(), hostUnit()
			used, unitErr := unit.used(ctx, a.socket)
			if err := runStop(ctx, a.client(), a.stdout, a.stderr); err != nil {
				return err
			}
			if unitErr != nil || !used {
				return unitErr
			}
			if err := unit.stop(ctx); err != nil {
				return err
			}
			render.Fprintln(a.stdout, unitName+" is stopped")
			return nil
		},
	}
}

func runStop(ctx context.Context, client *api.Client, stdout, stderr io.Writer) error {
	ready, err := client.Ready(ctx)
	if errors.Is(err, api.ErrNotRunning) {
		render.Fprintln(stdout, "weft was not running")
		return nil
	}
	if err != nil {
		return err
	}
	throughProxy := usesProxy(ctx, client)
	if err := client.Stop(ctx); err != nil {
		return err
	}
	if throughProxy {
		render.Fprintln(stderr, "weft: DOCKER_HOST still names weft's proxy, which stops too; undo it with: eval $(weft env --restore)")
	}
	return waitEnd(ctx, ready.PID)
}

// usesProxy reports whether docker uses the router's proxy in the user's shell.
func usesProxy(ctx context.Context, client *api.Client) bool {
	host := os.Getenv(dockerHostVar)
	if host == "" {
		return false
	}
	r, err := client.Summary(ctx, api.NoLists)
	return err == nil && r.Docker != nil && slices.Contains(r.Docker.ProxyAddresses, host)
}

// waitEnd returns when a process has ended.
func waitEnd(ctx context.Context, pid int) error {
	if pid < 1 {
		return nil // the router runs in another PID namespace
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := process.WaitExit(ctx, pid); err != nil {
		return fmt.Errorf("the router left the mesh: %w", err)
	}
	return nil
}
