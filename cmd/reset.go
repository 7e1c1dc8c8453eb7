package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

func (a *app) reset() *cobra.Command {
	var force bool
	var stateDir, bridge string
	c := &cobra.Command{
		Use:   "reset [--force]",
		Short: "Stop the router and remove everything it made on this host",
		Long: `Give the address ranges of this host to other peers, stop the router, and remove
its bridge, the interfaces of attached containers, its rules and its state.

A stopped router cannot give its ranges away: launch it first, or use --force and
take its addresses over on another host with weft rmpeer.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("state-dir") {
				stateDir = envOr("WEFT_STATE_DIR", stateDir)
			}
			if !c.Flags().Changed("bridge") {
				bridge = envOr("WEFT_BRIDGE", bridge)
			}
			left := daemon.DefaultConfig()
			left.StateDir, left.Bridge, left.Socket = stateDir, bridge, a.socket
			return a.runReset(c.Context(), left, force)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "reset even if the addresses cannot be given to other peers")
	c.Flags().StringVar(&stateDir, "state-dir", daemon.DefaultStateDir, "folder with the state of a router that is stopped")
	c.Flags().StringVar(&bridge, "bridge", netdev.BridgeName, "bridge of a router that is stopped")
	return c
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (a *app) runReset(ctx context.Context, c *daemon.Config, force bool) error {
	client := a.client()
	ready, err := client.Ready(ctx)
	switch {
	case err == nil:
		err = client.Reset(ctx)
		if err == nil {
			return waitEnd(ctx, ready.PID)
		}
		if !force {
			return fmt.Errorf("%w; reset anyway with --force", err)
		}
		if err := client.Stop(ctx); err != nil {
			return err
		}
		if err := waitEnd(ctx, ready.PID); err != nil {
			return err
		}
	case !errors.Is(err, api.ErrNotRunning):
		return err
	case daemon.Exists(c) && !force:
		return errors.New("weft is stopped, so it cannot give its addresses to other peers; launch it first, or use --force")
	}
	if os.Geteuid() != 0 {
		return errors.New("reset must run as root; try with sudo")
	}
	unit := hostUnit()
	used, err := unit.used(ctx, a.socket)
	if err == nil && used { // else systemd would start a router meanwhile
		err = unit.stop(ctx)
	}
	if err != nil {
		return err
	}
	return daemon.Erase(c)
}
