package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// liveTimeout is how long the router may take to tell its state.
const liveTimeout = 10 * time.Second

// health is what the kubelet's probes are told.
type health struct {
	router Router

	mu       sync.Mutex
	notReady string // why the Node can give pods no network yet; empty: it can
}

// wait says why the Node is not ready, with "" that it is.
func (h *health) setReason(why string) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = h.notReady != why
	h.notReady = why
	return changed
}

func (h *health) reason() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.notReady
}

// ready tells why a pod that is started now would get no network.
func (h *health) ready(ctx context.Context) error {
	if why := h.reason(); why != "" {
		return errors.New(why)
	}
	r, err := h.router.Ready(ctx)
	if err == nil && !r.Ready {
		err = errors.New("the router is starting")
	}
	return err
}

// live reports whether the router is at work: telling its state asks all parts of
// it. One that has not started yet is not stuck.
func (h *health) live(ctx context.Context) error {
	if r, err := h.router.Ready(ctx); err != nil || !r.Ready {
		return nil // it starts, or ends by itself
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	if _, err := h.router.Report(ctx); err != nil {
		return fmt.Errorf("the router does not tell its state: %w", err)
	}
	return nil
}

// serve answers the probes, and metrics unless that is nil, until ctx ends.
func (h *health) serve(ctx context.Context, addr string, metrics http.Handler) error {
	return h.serveOn(ctx, addr, metrics, func(string) {})
}

// serveOn is serve, and tells the address when it listens.
func (h *health) serveOn(ctx context.Context, addr string, metrics http.Handler, listening func(addr string)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	listening(l.Addr().String())
	mux := http.NewServeMux()
	for path, check := range map[string]func(context.Context) error{"/readyz": h.ready, "/healthz": h.live} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := check(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer probes on %s: %w", addr, err)
	}
	return nil
}
