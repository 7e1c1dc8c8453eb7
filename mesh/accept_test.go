package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/session"
)

// connectFrom connects to a node from an address of loopback.
func connectFrom(n *node, from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Second}
	return d.Dial("tcp", n.addr())
}

func (t *handshakes) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

// Strangers hold 320 connections from ten addresses, on which they send nothing, and connect
// 5,000 times more. A newcomer that knows the password gets in within half the time that a
// handshake may take.
func TestSilentStrangersDoNotKeepNewcomersOut(t *testing.T) {
	t.Parallel()
	pw := password("correct horse")
	a := start(t, pw)
	newcomer := start(t, pw) // deriving the key of a password takes long, so do it before
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range 320 {
		wg.Add(1)
		go func() { // it connects again whenever it is closed
			defer wg.Done()
			for ctx.Err() == nil {
				c, err := connectFrom(a, fmt.Sprintf("127.0.0.%d", 2+i%10))
				if err != nil {
					continue
				}
				stop := context.AfterFunc(ctx, func() { c.Close() })
				_, _ = c.Read(make([]byte, 1))
				stop()
				c.Close()
			}
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := range 5000 {
			if ctx.Err() != nil {
				return
			}
			if c, err := connectFrom(a, fmt.Sprintf("127.0.1.%d", 2+i%50)); err == nil {
				c.Close()
			}
		}
	}()
	eventually(t, "the table is full of strangers", func() bool { return a.handshakes.count() >= (maxHandshakes-knownHandshakes)/2 })
	begun := time.Now()
	newcomer.SetTargets([]string{a.addr()})
	eventually(t, "the newcomer gets in", func() bool { return newcomer.sessions() == 1 })
	if took := time.Since(begun); took > session.Timeout/2 {
		t.Errorf("it took %v", took)
	}
	if n := a.handshakes.count(); n > maxHandshakes {
		t.Errorf("%d handshakes at a time, want at most %d", n, maxHandshakes)
	}
}

// A connection on which nothing comes ends after a second, and does not delay the stop.
func TestSilentConnectionEndsSoon(t *testing.T) {
	t.Parallel()
	a := start(t)
	begun := time.Now()
	c, err := connectFrom(a, "127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a silent stranger gets an answer")
	}
	if took := time.Since(begun); took > session.Timeout/2 {
		t.Errorf("it took %v", took)
	}
	for range 20 {
		if c, err := connectFrom(a, "127.0.0.3"); err == nil {
			defer c.Close()
		}
	}
	begun = time.Now()
	a.stop()
	if took := time.Since(begun); took >= session.Timeout {
		t.Errorf("the stop took %v", took)
	}
}

type fakeConn struct{ net.Conn }

func (fakeConn) Close() error { return nil }

// fill begins n handshakes from an address, over as much time as the rate allows.
func fill(t *handshakes, from string, n int, known bool) (begun []*handshake) {
	now := time.Unix(1_700_000_000, 0)
	for i := range n {
		if h, _ := t.begin(fakeConn{}, netip.MustParseAddr(from), known, now.Add(time.Duration(i)*time.Second)); h != nil {
			begun = append(begun, h)
		}
	}
	return begun
}

func (t *handshakes) has(h *handshake) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !h.evicted
}

func TestSourceWithMostConnectionsMakesRoom(t *testing.T) {
	t.Parallel()
	var h handshakes
	quiet := fill(&h, "192.0.2.1", 3, false)
	fill(&h, "192.0.2.2", maxHandshakes-knownHandshakes-3, false)
	slow := fill(&h, "192.0.2.3", 2, false)
	h.proved(slow[0])
	fill(&h, "192.0.2.4", 2*maxHandshakes, false)
	for i, x := range append(quiet, slow...) {
		if !h.has(x) {
			t.Errorf("handshake %d of a source with few made room", i)
		}
	}
	known := fill(&h, "192.0.2.5", knownHandshakes, true)
	fill(&h, "2001:db8::1", 2*maxHandshakes, false)
	for _, x := range known {
		if !h.has(x) {
			t.Fatal("a handshake from a known address made room for a stranger")
		}
	}
	if n := h.count(); n > maxHandshakes {
		t.Errorf("%d handshakes, want at most %d", n, maxHandshakes)
	}
	for len(h.all) > 0 {
		h.end(h.all[0])
	}
	if len(h.active) != 0 {
		t.Errorf("%d sources are counted although there is no handshake", len(h.active))
	}
}

// Diallers that proved the password keep their place while others have not.
func TestProvedHandshakesStay(t *testing.T) {
	t.Parallel()
	var h handshakes
	proved := fill(&h, "192.0.2.1", 50, false)
	for _, x := range proved {
		h.proved(x)
	}
	for i := range 2 * maxHandshakes {
		fill(&h, fmt.Sprintf("198.51.%d.%d", i/256, i%256), 1, false)
	}
	for _, x := range proved {
		if !h.has(x) {
			t.Fatal("a dialler that proved the password made room for one that did not")
		}
	}
}

func TestSourcesOfHandshakesAreBounded(t *testing.T) {
	t.Parallel()
	var h handshakes
	now := time.Unix(1_700_000_000, 0)
	for i := range 3 * maxSources {
		x, _ := h.begin(fakeConn{}, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), false, now)
		if x != nil {
			h.end(x)
		}
	}
	if len(h.limits) > maxSources {
		t.Errorf("%d sources, want at most %d", len(h.limits), maxSources)
	}
	n := 0
	for range 10 * handshakesBurst {
		if x, _ := h.begin(fakeConn{}, netip.MustParseAddr("192.0.2.1"), false, now); x != nil {
			n++
		}
	}
	if n != handshakesBurst {
		t.Errorf("one source starts %d handshakes at once, want %d", n, handshakesBurst)
	}
}

// Reports of refused handshakes are limited for each source.
func TestRefusalsOfOneSourceAreReportedOnceASecond(t *testing.T) {
	t.Parallel()
	var h handshakes
	fill(&h, "192.0.2.1", 1, false)
	fill(&h, "2001:db8::1", 1, false)
	now := time.Unix(1_700_000_000, 0)
	at := func(addr string, d time.Duration) bool { return h.mayReport(netip.MustParseAddr(addr), now.Add(d)) }
	for i, got := range []bool{at("192.0.2.1", 0), at("2001:db8::2", 0), at("192.0.2.1", time.Second)} {
		if !got {
			t.Errorf("report %d is not made", i)
		}
	}
	for i, got := range []bool{at("192.0.2.1", time.Second+1), at("2001:db8::1", 1), at("192.0.2.9", 0)} {
		if got {
			t.Errorf("report %d is made", i)
		}
	}
}

// One host shows many names. It gets only a part of the sessions of another host, and others
// still get in.
func TestOneHostDoesNotTakeAllSessions(t *testing.T) {
	t.Parallel()
	a := start(t, func(c *Config) { c.ConnLimit, c.settleTime = 24, time.Second })
	from := func(addr string) option {
		return func(c *Config) { c.Discover, c.dialFrom = false, netip.MustParseAddr(addr) }
	}
	var evil []*node
	for range 20 {
		evil = append(evil, start(t, from("127.0.0.2"), to(a)))
	}
	eventually(t, "16 sessions from one address", func() bool { return a.sessions() == 16 })
	eventually(t, "the others are told why", func() bool {
		told := 0
		for _, n := range evil {
			if n.hasFailed("limit") {
				told++
			}
		}
		return told >= 4
	})
	var honest []*node
	for i := range 20 {
		honest = append(honest, start(t, from(fmt.Sprintf("127.0.1.%d", 2+i)), to(a)))
	}
	// Each of the 20 addresses gets one session, after those of the first have settled.
	eventually(t, "every honest host has a session", func() bool {
		for _, n := range honest {
			if a.direct(n.Self()) == nil {
				return false
			}
		}
		return true
	})
	if n := a.sessions(); n > 24 {
		t.Errorf("%d sessions, the limit is 24", n)
	}
	// A far end that was writing may see a reset instead, and one that came back is evicted twice.
	eventually(t, "both ends rejected most of the sessions that made room", func() bool {
		both := 0
		for _, n := range evil {
			if a.downAs(n, Rejected)() && n.downAs(a, Rejected)() {
				both++
			}
		}
		return both > 0 && 4*both >= 3*min(int(a.Status().Evicted), len(evil))
	})
}

// hasFailed reports whether a session of n was refused for a reason.
func (n *node) hasFailed(reason string) bool { return n.Status().HandshakeFailures[reason] > 0 }

// Hosts at refused addresses get no session, and are not dialled.
func TestRefusedAddressesGetNoSession(t *testing.T) {
	t.Parallel()
	container := netip.MustParseAddr("127.0.0.77")
	a := start(t, func(c *Config) {
		c.Refuse = func(a netip.Addr) error {
			if a == container {
				return errors.New("a container")
			}
			return nil
		}
	})
	start(t, noDiscovery, func(c *Config) { c.dialFrom = container }, to(a))
	eventually(t, "it is refused", func() bool { return a.Status().HandshakeFailures["address"] > 0 })
	b := start(t, func(c *Config) { c.Advertise = []netip.AddrPort{netip.AddrPortFrom(container, 6783)} }, to(a))
	eventually(t, "another host gets in", func() bool { return a.sees(b) })
	if a.sessions() != 1 {
		t.Errorf("%d sessions, want 1", a.sessions())
	}
	if a.dialable(netip.AddrPortFrom(container, 6783)) {
		t.Error("it would be dialled")
	}
}
