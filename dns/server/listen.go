package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/connlimit"
)

// endpoint is an address at which queries arrive.
type endpoint struct {
	network string // "udp" or "tcp"
	addr    netip.AddrPort
}

// listeners are the sockets of a Server.
type listeners struct {
	mu      sync.Mutex
	serving map[endpoint]*serving // guarded by mu
	closed  bool                  // guarded by mu
	wg      sync.WaitGroup        // the goroutines that serve
}

// serving is an open socket.
type serving struct {
	close func()
	ended chan struct{} // closed when the socket is no longer served
}

func (v *serving) hasEnded() bool {
	select {
	case <-v.ended:
		return true
	default:
		return false
	}
}

// idleTimeout is how long a TCP connection may be idle.
const idleTimeout = 10 * time.Second

// Listen makes the Server listen at these addresses and nowhere else. It returns an error for each
// address that failed; the caller may retry. Sockets that are already open stay open.
func (s *Server) Listen(addrs []netip.AddrPort) map[netip.AddrPort]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := make(map[netip.AddrPort]error)
	if s.closed {
		return failed
	}
	for e, v := range s.serving {
		if v.hasEnded() || !slices.Contains(addrs, e.addr) {
			v.close()
			delete(s.serving, e)
		}
	}
	for _, a := range addrs {
		for _, network := range []string{"udp", "tcp"} {
			e := endpoint{network, a}
			if s.serving[e] != nil {
				continue
			}
			v, err := s.open(e)
			if err != nil {
				failed[a] = err
				break
			}
			s.serving[e] = v
		}
	}
	return failed
}

// Addrs returns the addresses where the Server listens over UDP, sorted.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []netip.AddrPort
	for e, v := range s.serving {
		if e.network == "udp" && !v.hasEnded() {
			list = append(list, e.addr)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}

// open opens a socket and serves it.
func (s *Server) open(e endpoint) (*serving, error) {
	var v *serving
	var err error
	switch {
	case e.network == "udp" && !e.addr.Addr().IsUnspecified():
		v, err = s.openUDP(e.addr)
	default:
		v, err = s.openLibrary(e)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for DNS queries at %s over %s: %w", e.addr, e.network, unwrapped(err))
	}
	return v, nil
}

// openLibrary serves a socket with the DNS library. It is for TCP, and for UDP at the unspecified
// address, where an answer must come from the address that was queried.
func (s *Server) openLibrary(e endpoint) (*serving, error) {
	started := make(chan struct{})
	lib := &dns.Server{
		Handler: s, UDPSize: maxUDP, IdleTimeout: func() time.Duration { return idleTimeout }, MaxTCPQueries: -1,
		NotifyStartedFunc: func() { close(started) },
	}
	var err error
	var lc net.ListenConfig
	if e.network == "udp" {
		lib.PacketConn, err = lc.ListenPacket(context.Background(), e.network, e.addr.String())
	} else {
		var l net.Listener
		if l, err = lc.Listen(context.Background(), e.network, e.addr.String()); err == nil {
			lib.Listener = connlimit.New(l, maxConns, maxConnsEach)
		}
	}
	if err != nil {
		return nil, err
	}
	v := &serving{ended: make(chan struct{}), close: func() {
		now, cancel := context.WithCancel(context.Background())
		cancel() // do not wait for pending answers
		_ = lib.ShutdownContext(now)
	}}
	s.wg.Go(func() {
		defer close(v.ended)
		_ = lib.ActivateAndServe() // Listen notices the end, and opens the socket again
	})
	select {
	case <-started: // it can be shut down only after it has started
	case <-v.ended:
	}
	return v, nil
}

func unwrapped(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// Close stops listening and forwarding, and returns when all goroutines have ended.
func (s *Server) Close() {
	s.end()
	s.mu.Lock()
	s.closed = true
	for _, v := range s.serving {
		v.close()
	}
	clear(s.serving)
	s.mu.Unlock()
	s.wg.Wait()
}
