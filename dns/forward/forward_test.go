package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a name server on loopback, over UDP and TCP.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int64
	tcp   atomic.Int64
}

// serve starts an upstream. handler returns its answers; nil means no answer.
func serve(t *testing.T, handler func(network string, q *dns.Msg) *dns.Msg) *upstream {
	t.Helper()
	u := new(upstream)
	pc, l := listen(t)
	u.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.asked.Add(1)
		network := w.RemoteAddr().Network()
		if network == "tcp" {
			u.tcp.Add(1)
		}
		if m := handler(network, q); m != nil {
			w.WriteMsg(m)
		}
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return u
}

// listen opens a UDP and a TCP socket at the same port.
func listen(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, l
		}
		pc.Close()
	}
	t.Fatal("no port is free")
	panic("unreachable")
}

func query(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

func reply(q *dns.Msg, addrs ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	for _, a := range addrs {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(a),
		})
	}
	return m
}

func answering(addr string) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, q *dns.Msg) *dns.Msg { return reply(q, addr) }
}

func rcode(code int) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, code) }
}

func silent(string, *dns.Msg) *dns.Msg { return nil }

func forwarder(timeout time.Duration, to ...*upstream) *Forwarder {
	f := New(timeout)
	var addrs []netip.AddrPort
	for _, u := range to {
		addrs = append(addrs, u.addr)
	}
	f.SetServers(addrs)
	return f
}

func first(t *testing.T, f *Forwarder, q *dns.Msg) string {
	t.Helper()
	m, err := f.Forward(t.Context(), q)
	if err != nil {
		return err.Error()
	}
	if m.Id != q.Id {
		t.Errorf("the answer has id %d, the query %d", m.Id, q.Id)
	}
	if len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	return m.Answer[0].(*dns.A).A.String()
}

// If a server fails, the next one is queried.
func TestNextServer(t *testing.T) {
	// A silent server gets a quarter of the timeout, and so does the one that answers.
	const long, short = time.Minute, 8 * time.Second
	closed := &upstream{addr: netip.MustParseAddrPort("127.0.0.1:1")}
	for what, c := range map[string]struct {
		timeout time.Duration
		first   *upstream
	}{
		"refuses":   {long, serve(t, rcode(dns.RcodeRefused))},
		"fails":     {long, serve(t, rcode(dns.RcodeServerFailure))},
		"not there": {long, closed},
		"no answer": {short, serve(t, silent)},
		"wrong id": {short, serve(t, func(_ string, q *dns.Msg) *dns.Msg {
			m := reply(q, "192.0.2.66")
			m.Id++
			return m
		})},
		"other question": {short, serve(t, func(_ string, q *dns.Msg) *dns.Msg {
			m := reply(q, "192.0.2.66")
			m.Question[0].Name = "evil.example."
			return m
		})},
	} {
		second := serve(t, answering("192.0.2.1"))
		f := forwarder(c.timeout, c.first, second)
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if got := first(t, f, query("example.com.")); got != "192.0.2.1" {
				t.Error(got)
			}
		})
	}
}

func TestNXDomainIsFinal(t *testing.T) {
	second := serve(t, answering("192.0.2.1"))
	f := forwarder(time.Minute, serve(t, rcode(dns.RcodeNameError)), second)
	if got := first(t, f, query("none.example.")); got != "NXDOMAIN" || second.asked.Load() != 0 {
		t.Errorf("%s, and the second server was asked %d times", got, second.asked.Load())
	}
}

func TestAllServersFail(t *testing.T) {
	f := forwarder(time.Minute, serve(t, rcode(dns.RcodeRefused)))
	if got := first(t, f, query("example.com.")); got != "REFUSED" {
		t.Errorf("a server that refuses: %s", got)
	}
	f = forwarder(300*time.Millisecond, serve(t, silent), serve(t, silent))
	if got := first(t, f, query("example.com.")); !strings.Contains(got, "no answer in time") {
		t.Errorf("only silent servers: %s", got)
	}
	f = forwarder(time.Nanosecond, serve(t, silent))
	if got := first(t, f, query("example.com.")); !strings.Contains(got, "no answer in time") {
		t.Errorf("no time left: %s", got)
	}
	if got := first(t, New(time.Second), query("example.com.")); got != ErrNoServer.Error() {
		t.Errorf("no server: %s", got)
	}
}

// A server that failed is queried last for a while, and then in its place again.
func TestFailedServersAreAskedLast(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	one := serve(t, func(_ string, q *dns.Msg) *dns.Msg {
		if broken.Load() {
			return nil
		}
		return reply(q, "192.0.2.1")
	})
	f := forwarder(8*time.Second, one, serve(t, answering("192.0.2.2")))
	now := time.Now()
	f.now = func() time.Time { return now }
	for range 2 {
		if got := first(t, f, query("example.com.")); got != "192.0.2.2" {
			t.Errorf("the first is silent: %s", got)
		}
	}
	if n := one.asked.Load(); n != 1 {
		t.Errorf("the silent server was asked %d times, want once", n)
	}
	if s := f.Status(); !strings.HasPrefix(s[0].Fault, "asked last: ") || s[1].Fault != "" {
		t.Errorf("status: %v", s)
	}
	broken.Store(false)
	now = now.Add(2 * demoteFor)
	if got := first(t, f, query("example.com.")); got != "192.0.2.1" {
		t.Errorf("later: %s", got)
	}
}

// Truncated answers are requested again over TCP.
func TestTruncatedAnswerIsRetriedOverTCP(t *testing.T) {
	u := serve(t, func(network string, q *dns.Msg) *dns.Msg {
		if network == "udp" {
			m := reply(q)
			m.Truncated = true
			return m
		}
		return reply(q, "192.0.2.1")
	})
	if got := first(t, forwarder(time.Minute, u), query("big.example.")); got != "192.0.2.1" || u.tcp.Load() != 1 {
		t.Errorf("%s, asked over TCP %d times", got, u.tcp.Load())
	}
}

// The number of concurrent forwards is bounded.
func TestForwardsAreBounded(t *testing.T) {
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	u := serve(t, func(_ string, q *dns.Msg) *dns.Msg {
		select {
		case arrived <- struct{}{}:
		default:
		}
		<-release
		return reply(q, "192.0.2.1")
	})
	f := forwarder(time.Minute, u)
	f.slots = make(chan struct{}, 2)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { first(t, f, query("example.com.")) })
	}
	for range 2 { // both queries have a slot now
		<-arrived
	}
	if got := first(t, f, query("example.com.")); got != ErrBusy.Error() || f.Busy() != 1 {
		t.Errorf("the third of two: %s, counted %d", got, f.Busy())
	}
	close(release)
	wg.Wait()
	if got := first(t, f, query("example.com.")); got != "192.0.2.1" {
		t.Errorf("after the others: %s", got)
	}
}

func TestForwardEndsWithItsContext(t *testing.T) {
	f := forwarder(time.Hour, serve(t, silent))
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if m, err := f.Forward(ctx, query("example.com.")); err == nil {
		t.Errorf("%v", m)
	}
}

// A server that forwards to weft is not used, even if its queries return by way of another host's
// weft.
func TestLoopIsDetected(t *testing.T) {
	f, other := New(time.Minute), New(time.Minute)
	handle := func(f *Forwarder) func(string, *dns.Msg) *dns.Msg {
		return func(_ string, q *dns.Msg) *dns.Msg {
			if f.IsProbe(q) {
				return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
			}
			m, err := f.Forward(context.Background(), q)
			if err != nil {
				return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
			}
			return m
		}
	}
	self, far := serve(t, handle(f)), serve(t, handle(other))
	good := serve(t, answering("192.0.2.1"))
	other.SetServers([]netip.AddrPort{self.addr})
	f.SetServers([]netip.AddrPort{far.addr, good.addr})
	f.Probe(t.Context())
	if s := f.Status(); s[0].Fault == "" || s[1].Fault != "" {
		t.Errorf("status: %v", s)
	}
	if got := first(t, f, query("example.com.")); got != "192.0.2.1" {
		t.Errorf("with a loop: %s", got)
	}
	if len(f.probes) != 0 {
		t.Error("a probe is still pending")
	}
}

func TestSetServersKeepsState(t *testing.T) {
	a, b := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	f := New(time.Second)
	f.SetServers([]netip.AddrPort{a})
	(*f.servers.Load())[0].fail(f.now(), errors.New("broken"))
	if !f.SetServers([]netip.AddrPort{b, a}) || f.SetServers([]netip.AddrPort{b, a}) {
		t.Error("SetServers does not report changes")
	}
	if got := fmt.Sprint(f.Status()); got != "[{192.0.2.2:53 } {192.0.2.1:53 asked last: broken}]" {
		t.Errorf("status: %s", got)
	}
}
