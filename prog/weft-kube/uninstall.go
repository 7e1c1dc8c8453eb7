package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/kube"
)

// uninstallPatience is how long the router has to end first.
const uninstallPatience = 2 * time.Minute

// uninstall removes everything of weft from the node, then waits for ctx to end,
// as a DaemonSet has pods run until it is deleted.
func uninstall(ctx context.Context) error {
	if err := routerEnded(ctx); err != nil {
		return err
	}
	errs := []error{plugin(false).Uninstall(), erase()}
	if err := os.Remove(state{dir: api.DefaultStateDir}.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, os.RemoveAll(api.GoneFolder(api.DefaultStateDir)))
	// The folders themselves are mounted here; these are the node's names of them.
	for _, path := range []string{"/host/var/lib/weft", "/host/run/weft/bpf", "/host/run/weft", "/host/sys/fs/bpf/weft"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println("nothing of weft is left on this node")
	return answerReady(ctx)
}

// answerReady tells the readiness probe that all is done, until ctx ends.
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
	ctx, cancel := context.WithTimeout(ctx, uninstallPatience)
	defer cancel()
	for {
		if _, err := api.NewClient(api.DefaultSocket).Ready(ctx); errors.Is(err, api.ErrNotRunning) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("uninstall weft: its router still runs on this node; delete the DaemonSet weft first")
		case <-time.After(retryEvery):
		}
	}
}
