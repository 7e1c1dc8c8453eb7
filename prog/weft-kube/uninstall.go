package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/render"
	"github.com/weft-net/weft/kube"
)

// uninstallTimeout bounds how long uninstall waits for the end of the router.
const uninstallTimeout = 2 * time.Minute

// uninstalled is the configuration of the router that is removed, with the paths at which
// uninstall.yaml mounts its files.
var uninstalled = &daemon.Config{
	Bridge: netdev.BridgeName, StateDir: "/host/var/lib/weft", Socket: "/host/run/weft/weft.sock", PinDir: "/host/sys/fs/bpf/weft",
}

// uninstall removes weft from the node, then waits until ctx ends: the pods of a DaemonSet
// must run until it is deleted.
func uninstall(ctx context.Context) error {
	if err := awaitRouterEnd(ctx); err != nil {
		return err
	}
	errs := []error{plugin(false).Uninstall(), os.RemoveAll(api.GoneDir(uninstalled.StateDir))}
	// The mount point of /sys/fs/bpf/weft is left as a directory beside the socket.
	run := filepath.Dir(uninstalled.Socket)
	for _, path := range []string{
		nodeRecord{dir: uninstalled.StateDir}.file(), filepath.Join(run, filepath.Base(api.DefaultPolicySocket)), filepath.Join(run, "bpf"),
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, daemon.Erase(uninstalled))...); err != nil {
		return err
	}
	render.Fprintln(os.Stdout, "weft is removed from this node")
	return answerReady(ctx)
}

// answerReady answers the readiness probe until ctx ends.
func answerReady(ctx context.Context) error {
	l, err := net.Listen("tcp", kube.LocalHealthAddr)
	if err != nil {
		return fmt.Errorf("answer probes: %w", err)
	}
	ready := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	if err := api.ServeStatus(ctx, l, ready, slog.New(slog.DiscardHandler), nil); err != nil {
		return fmt.Errorf("answer probes: %w", err)
	}
	return nil
}

// awaitRouterEnd waits until no router runs on the node.
func awaitRouterEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, uninstallTimeout)
	defer cancel()
	for {
		if _, err := api.NewClient(uninstalled.Socket).Ready(ctx); errors.Is(err, api.ErrNotRunning) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("uninstall weft: its router still runs on this node; delete the DaemonSet weft first")
		case <-time.After(retryInterval):
		}
	}
}
