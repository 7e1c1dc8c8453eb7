package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

// liveTimeout is the time that the router has to report its state.
const liveTimeout = 10 * time.Second

// liveFor is how long an answer of live is good.
const liveFor = 2 * time.Second

// health is the state that the kubelet's probes read.
type health struct {
	router Router

	hosts []string // see api.ServeStatus

	living  sync.Mutex // held while the router is checked
	livedAt time.Time  // guarded by living
	liveErr error      // guarded by living

	mu       sync.Mutex
	notReady string // why the Node cannot give pods a network yet; empty if it can
}

// setReason sets the reason why the Node is not ready, or "" if it is ready. It reports whether
// the reason changed.
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

// ready returns an error if a pod that starts now would get no network.
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

// live returns an error if the router hangs: the report needs all its parts. A router that has not
// started yet does not hang.
//
// One report answers all probes that ask while it is made, and for a moment after: every process
// that reaches the address can ask.
func (h *health) live(ctx context.Context) error {
	h.living.Lock()
	defer h.living.Unlock()
	if now := time.Now(); now.Sub(h.livedAt) > liveFor {
		h.liveErr = h.check(context.WithoutCancel(ctx)) // the others need the answer too
		h.livedAt = time.Now()
	}
	return h.liveErr
}

// check returns what live does.
func (h *health) check(ctx context.Context) error {
	if r, err := h.router.Ready(ctx); err != nil || !r.Ready {
		return nil // it is starting, or is ending by itself
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	if _, err := h.router.Summary(ctx, api.NoLists); err != nil {
		return fmt.Errorf("the router does not report its state: %w", err)
	}
	return nil
}

// serve answers probes, and serves metrics unless metrics is nil, until ctx ends.
func (h *health) serve(ctx context.Context, addr string, metrics http.Handler) error {
	return h.serveOn(ctx, addr, metrics, func(string) {})
}

// serveOn is serve. It calls listening with the address once it listens.
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
				http.Error(w, render.Text(err.Error()), http.StatusServiceUnavailable)
				return
			}
			io.WriteString(w, "ok\n")
		})
	}
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	if err := api.ServeStatus(ctx, l, mux, slog.New(slog.DiscardHandler), h.hosts); err != nil {
		return fmt.Errorf("answer probes: %w", err)
	}
	return nil
}
