package api

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"github.com/weft-net/weft/internal/connlimit"
	"github.com/weft-net/weft/internal/render"
)

// limits bound what the clients of one listener can make a router hold.
type limits struct {
	conns int           // open connections
	evict bool          // make room for a further one, see package connlimit, which else waits in the kernel
	write time.Duration // for a whole answer; 0: a command may wait for long
	idle  time.Duration // between two requests
}

var (
	// controlLimits are for sockets that only root can open. A node that starts hundreds
	// of containers at once must not be refused.
	controlLimits = limits{conns: 512, idle: time.Minute}
	// statusLimits are for an address that every process of the host can reach.
	statusLimits = limits{conns: 64, evict: true, write: reportTimeout, idle: 30 * time.Second}
)

// apply makes s, which will serve l, keep the limits, and returns the listener to serve.
func (m limits) apply(s *http.Server, l net.Listener) net.Listener {
	s.WriteTimeout, s.IdleTimeout = m.write, m.idle
	if !m.evict {
		return netutil.LimitListener(l, m.conns)
	}
	h := s.Handler
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*connlimit.Conn); ok {
			defer c.Use()()
		}
		h.ServeHTTP(w, r)
	})
	return connlimit.New(l, m.conns, 0)
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// HostGuard refuses requests whose Host header is neither a loopback name or address, nor
// the address at which the request arrived, nor one of hosts. A web page that makes its own
// name resolve to a loopback address (DNS rebinding) sends its own name, and so cannot read
// the answers.
func HostGuard(h http.Handler, hosts []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allowedHost(r, hosts) {
			http.Error(w, render.Sprintf("the Host header names %s, which is not this address; allow it with --status-host", render.Word(r.Host)), http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func allowedHost(r *http.Request, hosts []string) bool {
	host := r.Host
	if host == "" {
		return true // HTTP/1.0, which no browser speaks
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		return ip.IsLoopback() || ip == localAddr(r) || slices.Contains(hosts, ip.String())
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	return name == "localhost" || slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, name) })
}

// localAddr returns the address at which a request arrived.
func localAddr(r *http.Request) netip.Addr {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
