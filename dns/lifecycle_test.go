package dns

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/weft-net/weft/internal/poll"
)

// freePort returns a loopback address with a port that is free.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// isFree reports whether a port is free over UDP and TCP.
func isFree(a netip.AddrPort) bool {
	u, err := net.ListenPacket("udp4", a.String())
	if err != nil {
		return false
	}
	u.Close()
	l, err := net.Listen("tcp4", a.String())
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// runAt runs a service at an address. stop ends it, waits, and returns Run's error.
func runAt(t *testing.T, s *Service, a netip.AddrPort) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	if err := poll.Until(10*time.Second, 5*time.Millisecond, poll.True(func() bool { return len(s.server.Addrs()) > 0 })); err != nil {
		t.Fatalf("listen on %s: %v: %+v", a, err, s.Status().Listening)
	}
	return func() error { cancel(); return <-ended }
}

func at(a netip.AddrPort) func(*Config) {
	return func(c *Config) { c.Listen = []Listen{{Addr: a.Addr(), Port: a.Port()}} }
}

func TestStopBeforeStart(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a := freePort(t)
	s := newService(t, 1, at(a))
	s.NetworkChanged() // must not wait for Run
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil || !isFree(a) {
		t.Errorf("run with a context that has ended: %v; port free: %v", err, isFree(a))
	}
}

func TestStopFreesPorts(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a := freePort(t)
	stop := runAt(t, newService(t, 1, at(a)), a)
	if isFree(a) {
		t.Error("the service runs but its port is free")
	}
	if err := stop(); err != nil || !isFree(a) {
		t.Errorf("stop: %v; port free: %v", err, isFree(a))
	}
	if err := runAt(t, newService(t, 1, at(a)), a)(); err != nil { // the next service gets the port
		t.Error(err)
	}
}

func TestServiceRunsOnce(t *testing.T) {
	a := freePort(t)
	s := newService(t, 1, at(a))
	stop := runAt(t, s, a)
	if err := s.Run(t.Context()); err == nil {
		t.Error("a second Run during the first returned nil")
	}
	if isFree(a) {
		t.Error("the second Run ended the first")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("a second Run after the first returned nil")
	}
}

// A query that waits for a silent name server does not delay the end of Run.
func TestStopWhileForwarding(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a := freePort(t)
	s := newService(t, 1, func(c *Config) { at(a)(c); c.Timeout = time.Hour })
	stop := runAt(t, s, a)
	s.forward.SetServers([]netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort()})
	query, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("udp4", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write(query); err != nil {
		t.Fatal(err)
	}
	if _, _, err := silent.ReadFrom(make([]byte, 512)); err != nil { // the query is being forwarded
		t.Fatal(err)
	}
	begun := time.Now()
	if err := stop(); err != nil || time.Since(begun) > 5*time.Second {
		t.Errorf("stop: %v after %v", err, time.Since(begun))
	}
}

// A port that is in use is reported, and used once it is free.
func TestPortInUse(t *testing.T) {
	a := freePort(t)
	other, err := net.ListenPacket("udp4", a.String())
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t, 1, at(a))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	failing := func() bool { l := s.Status().Listening; return len(l) == 1 && l[0].Fault != "" }
	if err := poll.Until(10*time.Second, 5*time.Millisecond, poll.True(failing)); err != nil {
		t.Fatalf("the status does not report the port: %+v", s.Status().Listening)
	}
	other.Close()
	s.NetworkChanged()
	if err := poll.Until(10*time.Second, 5*time.Millisecond, poll.True(func() bool { return len(s.server.Addrs()) == 1 })); err != nil {
		t.Errorf("the port is free but the service does not use it: %+v", s.Status().Listening)
	}
}
