package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/render"
)

// maxBody is the longest body of a request, in bytes: several thousand addresses.
const maxBody = 256 << 10

// post reads a Q from the body, calls f and writes what it returns.
func post[Q, A any](f func(context.Context, Q) (A, error)) http.Handler {
	return undoable(func(ctx context.Context, q Q) (A, func(), error) {
		a, err := f(ctx, q)
		return a, nil, err
	})
}

// undoable is post for functions whose effect is undone if the client is gone before it gets
// the reply.
func undoable[Q, A any](f func(context.Context, Q) (a A, undo func(), err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q Q
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&q); err != nil {
			reply(w, nil, Errorf(Usage, "%s %s: read the request: %w", r.Method, r.URL.Path, err))
			return
		}
		a, undo, err := f(r.Context(), q)
		reply(w, a, err)
		if undo == nil || err != nil {
			return
		}
		// A unix socket whose other end is closed refuses the bytes at once.
		if err := http.NewResponseController(w).Flush(); err != nil {
			undo()
		}
	})
}

// get calls f and writes what it returns.
func get[A any](f func(context.Context) (A, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := f(r.Context())
		reply(w, a, err)
	})
}

// addresses is post for functions that return addresses.
func addresses[Q any](f func(context.Context, Q) ([]netip.Prefix, error)) http.Handler {
	return post(func(ctx context.Context, q Q) (AddressReply, error) {
		ps, err := f(ctx, q)
		return AddressReply{Addresses: ps}, err
	})
}

// command is post for functions that return nothing.
func command[Q any](f func(context.Context, Q) error) http.Handler {
	return post(func(ctx context.Context, q Q) (Empty, error) { return Empty{}, f(ctx, q) })
}

// bare is post for functions that take and return nothing.
func bare(f func(context.Context) error) http.Handler {
	return post(func(ctx context.Context, _ Empty) (Empty, error) { return Empty{}, f(ctx) })
}

func reply(w http.ResponseWriter, body any, err error) {
	code := http.StatusOK
	if err != nil {
		class := ClassOf(err)
		switch class {
		case Usage:
			code = http.StatusBadRequest
		case Unavailable:
			code = http.StatusServiceUnavailable
		default:
			code = http.StatusInternalServerError
		}
		body = Error{Class: class, Text: oneLine(err.Error())}
	}
	b, err := json.MarshalIndent(body, "", "    ")
	b = render.JSON(nil, b)
	if err != nil {
		code = http.StatusInternalServerError
		b, _ = json.Marshal(Error{Class: Failed, Text: oneLine(fmt.Sprintf("write the reply: %v", err))})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}

// oneLine makes s one line that is safe to show.
func oneLine(s string) string { return render.Text(strings.Join(strings.Fields(s), " ")) }

// ListenUnix makes a socket that only the owner of the process can open, see hostfile.Listen.
func ListenUnix(path string) (net.Listener, error) { return hostfile.Listen(path) }

// shutdownGrace is how long Serve lets requests finish once ctx has ended.
const shutdownGrace = 2 * time.Second

// Serve answers requests on l, a socket that only root can open, until ctx ends. Then it
// closes l, lets running requests finish for a moment, and returns nil. An error says why
// it stopped before.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serve(ctx, l, h, log, controlLimits)
}

// ServeStatus is Serve for a TCP listener that everybody on the host can reach. Hosts are
// further names that a request may give in its Host header, see HostGuard.
func ServeStatus(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger, hosts []string) error {
	return serve(ctx, l, HostGuard(h, hosts), log, statusLimits)
}

func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger, limits limits) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	l = limits.apply(s, l)
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := s.Shutdown(grace); errors.Is(err, context.DeadlineExceeded) {
		s.Close()
	}
	<-failed
	return nil
}
