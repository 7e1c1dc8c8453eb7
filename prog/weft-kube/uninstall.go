package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/kube"
)

// uninstallTimeout bounds the wait for the end of the router.
const uninstallTimeout = 2 * time.Minute

// left is the router whose state is removed, at the places where the manifest of the
// uninstall mounts it.
var uninstalled = &daemon.Config{
	Bridge: netdev.BridgeName, StateDir: "/host/var/lib/weft", Socket: "/host/run/weft/weft.sock", PinDir: "/host/sys/fs/bpf/weft",
}

// uninstall removes everything of weft from the node, then waits for ctx to end: the pods
// of a DaemonSet must run until it is deleted.
func uninstall(ctx context.Context) error {
	if err := routerEnded(ctx); err != nil {
		return err
	}
	errs := []error{plugin(false).Uninstall(), os.RemoveAll(api.GoneFolder(uninstalled.StateDir))}
	// Where /sys/fs/bpf/weft was mounted, beside the socket, a folder is left.
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
	fmt.Println("weft is removed from this node")
	return answerReady(ctx)
}

// answerReady answers the readiness probe until ctx ends.
func answerReady(ctx context.Context) error {
	s := &http.Server{Addr: kube.LocalHealthAddr, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") },
	)}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer probes: %w", err)
	}
	return nil
}

// routerEnded waits until no router runs on the node.
func routerEnded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, uninstallTimeout)
	defer cancel()
	for {
		if _, err := api.NewClient(uninstalled.Socket).Ready(ctx); errors.Is(err, api.ErrNotRunning) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("uninstall weft: its router still runs on this node; delete the DaemonSet weft first")
		case <-time.After(retryEvery):
		}
	}
}
