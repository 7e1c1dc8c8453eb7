package router

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

func TestLinkStatus(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		s, ok := m.nodes[0].Link(nameOf(1))
		if !ok || s.State != link.Established || s.Kind != "sleeve" || s.Cipher == "" || s.Reason != "" || s.MTU != 1500-71 ||
			s.Addr != m.nodes[1].addr || !s.Dialled {
			t.Errorf("status: %+v", s)
		}
		if _, ok := m.nodes[0].Link(nameOf(7)); ok {
			t.Error("a link with a stranger")
		}
	})
}

func TestSilenceAndRecovery(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		a, b := m.nodes[0], m.nodes[1]
		cut := func(on bool) {
			m.f.mu.Lock()
			defer m.f.mu.Unlock()
			m.f.cut[[2]netip.AddrPort{a.addr, b.addr}] = on
		}
		cut(true)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if a.isUp(b) || b.isUp(a) {
			t.Error("a link is up after ten seconds of silence")
		}
		if s, _ := a.Link(b.name); s.State != link.Failed || !strings.Contains(s.Reason, "no answer on UDP") {
			t.Errorf("status: %+v", s)
		}
		m.say(0, frameOf(ethernet.Broadcast, macOf(0), 60, 1))
		if a.dropped(DropLinkDown) != 1 {
			t.Errorf("drops: %+v", a.Status())
		}
		cut(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !a.isUp(b) || !b.isUp(a) {
			t.Error("the link does not come back")
		}
		a.NeighbourDown(b.name)
		synctest.Wait()
		if a.isUp(b) || len(a.Status().Links) != 0 || len(*a.keys.Load()) != 0 || len(a.taken) != 0 {
			t.Errorf("something is left of the link: %+v", a.Status())
		}
		m.join(0) // as after another session
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !a.isUp(b) || !b.isUp(a) {
			t.Error("the link does not come up with another session")
		}
	})
}

// TestTrafficOverRenewals sends for ten minutes, in which keys change several
// times, and loses nothing.
func TestTrafficOverRenewals(t *testing.T) {
	inMesh(t, names(3), line(3), func(m *mesh) {
		for i := range 3 {
			m.say(i, frameOf(ethernet.Broadcast, macOf(i), 60, 1))
		}
		m.got()
		keys := map[uint32]bool{}
		m.f.spy = func(_, _ netip.AddrPort, p []byte) {
			h, _ := wire.ParseHeader(p)
			keys[h.Index] = true
		}
		const n = 10 * 60 * 20
		for i := range n {
			m.nodes[0].tap.in <- memFrame{b: frameOf(macOf(2), macOf(0), 300, byte(i))}
			m.nodes[2].tap.in <- memFrame{b: frameOf(macOf(0), macOf(2), 300, byte(i))}
			time.Sleep(50 * time.Millisecond)
		}
		synctest.Wait()
		m.wantCounts("ten minutes", n, 0, n)
		if len(keys) < 4*5 {
			t.Errorf("%d keys were used", len(keys))
		}
	})
}

func TestLossyUnderlay(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		m.f.mu.Lock()
		m.f.loss = 0.1
		m.f.mu.Unlock()
		time.Sleep(5 * time.Minute)
		got := 0
		for range 1000 {
			m.say(0, frameOf(ethernet.Broadcast, macOf(0), 300, 1))
		}
		got = len(m.nodes[1].tap.took())
		if got < 850 || got > 950 {
			t.Errorf("%d of 1000 frames came through 10 %% loss", got)
		}
		if m.nodes[0].Status().LinksLost != 0 {
			t.Error("the link went down")
		}
	})
}

func TestReplayedAndForgedPackets(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		b := m.nodes[1]
		var seen []byte
		m.f.spy = func(_, to netip.AddrPort, p []byte) {
			if p[0] == byte(wire.Data) && to == b.addr && seen == nil {
				seen = bytes.Clone(p)
			}
		}
		secret := frameOf(ethernet.Broadcast, macOf(0), 300, 0x5a)
		m.say(0, secret)
		m.wantCounts("once", 0, 1)
		if bytes.Contains(seen, secret[14:40]) {
			t.Error("the frame is readable on the wire")
		}
		stranger := netip.MustParseAddrPort("203.0.113.1:1")
		m.f.send(stranger, b.addr, seen)
		forged := bytes.Clone(seen)
		forged[11]++ // another counter
		m.f.send(stranger, b.addr, forged)
		unknown := bytes.Clone(seen)
		unknown[3] ^= 0xff
		m.f.send(stranger, b.addr, unknown)
		m.f.send(stranger, b.addr, []byte{1})
		synctest.Wait()
		m.wantCounts("nothing", 0, 0)
		for r, want := range map[Reason]uint64{DropReplay: 1, DropForged: 1, DropUnknownKey: 1, DropMalformed: 1} {
			if got := b.dropped(r); got != want {
				t.Errorf("%s: %d drops, want %d", r, got, want)
			}
		}
		if s, _ := b.Link(nameOf(0)); s.Addr != m.nodes[0].addr {
			t.Errorf("a stranger moved the link to %s", s.Addr)
		}
	})
}

func TestFollowsARebinding(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		a, b := m.nodes[0], m.nodes[1]
		moved := netip.MustParseAddrPort("198.51.100.1:50000")
		conn := a.conn.(*memConn)
		m.f.mu.Lock()
		delete(m.f.ports, a.addr)
		m.f.ports[moved] = conn
		m.f.nat[a.addr] = moved
		m.f.mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if s, _ := b.Link(a.name); s.Addr != moved {
			t.Errorf("sent to %s", s.Addr)
		}
		m.say(1, frameOf(ethernet.Broadcast, macOf(1), 300, 1))
		m.wantCounts("after the move", 1, 0)
	})
}

// TestPeerCannotReflect: a neighbour writes a third host's address on its packets. The
// third host gets as many small packets as the neighbour sends at most, and no frame.
func TestPeerCannotReflect(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		a, b := m.nodes[0], m.nodes[1]
		third := netip.MustParseAddrPort("203.0.113.1:53")
		toThird, bytes := 0, 0
		m.f.spy = func(_, to netip.AddrPort, p []byte) {
			if to == third {
				toThird, bytes = toThird+1, bytes+len(p)
			}
		}
		m.f.mu.Lock()
		m.f.nat[a.addr] = third // all that it sends seems to come from there
		m.f.mu.Unlock()
		for range 100 {
			m.say(0, frameOf(ethernet.Broadcast, macOf(0), 60, 1))
			m.say(1, frameOf(ethernet.Broadcast, macOf(1), 1000, 1))
			time.Sleep(100 * time.Millisecond)
		}
		if s, _ := b.Link(a.name); s.Addr != a.addr {
			t.Errorf("the link moved to %s", s.Addr)
		}
		if toThird == 0 || bytes > 100*toThird || toThird > 200 {
			t.Errorf("%d packets, %d bytes to the third host in ten seconds", toThird, bytes)
		}
	})
}

// TestAFloodOfProbesStaysItsOwn: a neighbour that sends answers to no question
// faster than the control goroutine handles them costs only itself.
func TestAFloodOfProbesStaysItsOwn(t *testing.T) {
	s := newStill(t, seal.AES256GCM)
	m := &udp.Message{Buf: make([]byte, maxPacket)}
	answer := make([]byte, wire.ProbeLen)
	wire.ProbeBody{Answer: true}.Put(answer)
	for range 10 * maxPending {
		s.packet(t, m, wire.Probe, answer)
		s.fromUDP(s.ln, m)
	}
	if n := len(s.events); n > maxPending {
		t.Errorf("%d events of one link wait", n)
	}
	if s.link.drops[DropBusy].Load() == 0 {
		t.Error("nothing was counted")
	}
	for len(s.events) > 0 {
		s.handle(<-s.events)
	}
	if n := s.link.pending.Load(); n != 0 {
		t.Errorf("%d events pending after all were handled", n)
	}
}

// TestAHeartbeatIsAnsweredAtOnce by the lane that it came on, to where it came
// from, without the control goroutine.
func TestAHeartbeatIsAnsweredAtOnce(t *testing.T) {
	s := newStill(t, seal.AES256GCM)
	m := &udp.Message{Buf: make([]byte, maxPacket), Addr: *s.link.addr.Load()}
	s.packet(t, m, wire.Probe, make([]byte, wire.ProbeLen))
	s.fromUDP(s.ln, m)
	for len(s.events) > 0 {
		if e := <-s.events; e.kind != firstUse {
			t.Errorf("event of kind %d for the control goroutine", e.kind)
		}
	}
	sent := s.link.txPackets.Load()
	s.ln.flush()
	if n := s.link.txPackets.Load() - sent; n != 1 {
		t.Errorf("%d answers to one heartbeat", n)
	}
}

func TestRefusesImpossibleMTU(t *testing.T) {
	for _, mtu := range []int{0, MinMTU - 1, MaxMTU + 1} {
		if _, err := New(Config{MTU: mtu, Host: "127.0.0.1"}, mute{}); err == nil || !strings.Contains(err.Error(), "want 576 to 65521") {
			t.Errorf("mtu %d: %v", mtu, err)
		}
	}
}

func TestLifecycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		build := func() (*Router, *memTAP) {
			n := &node{name: nameOf(0)}
			q := newMemTAP()
			r, err := New(Config{MTU: 1376, Conn: f.listen(netip.MustParseAddrPort("192.0.2.1:6783")), Queues: []tap.Queue{q}}, n)
			if err != nil {
				t.Fatal(err)
			}
			return r, q
		}
		r, _ := build()
		r.Close()
		r.Close() // closing twice, and without running

		r, _ = build()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Run(ctx); err != nil {
			t.Errorf("stopped before it began: %v", err)
		}
		if err := r.Run(t.Context()); err == nil {
			t.Error("ran twice")
		}
		for range 2000 {
			r.NeighbourDown(nameOf(1)) // must not wait for a router that has ended
		}

		r, q := build()
		done := run(func() error { return r.Run(t.Context()) })
		q.Close()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("a TAP that fails: %v", err)
		}
	})
}

func run(f func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// lines counts the lines of a log that have a word.
type lines struct {
	word string
	n    atomic.Int64
}

func (l *lines) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(l.word)) {
		l.n.Add(1)
	}
	return len(p), nil
}

// A peer that sends malformed messages does not fill the disk with log lines.
func TestRefusedControlIsLoggedNowAndThen(t *testing.T) {
	logged := &lines{word: "refused link control"}
	o := meshOptions{mtu: 1376, log: slog.New(slog.NewTextHandler(logged, nil))}
	inMeshWith(t, o, names(2), line(2), func(m *mesh) {
		short := m.nodes[0].links[nameOf(1)].session.Tagged([]byte{byte(wire.Offer)})
		for range 100 {
			m.nodes[0].HandleControl(nameOf(1), short)
		}
		synctest.Wait()
		if n := logged.n.Load(); n != 1 {
			t.Errorf("logged %d times for 100 messages", n)
		}
		time.Sleep(refusedEvery) // of the fake clock
		m.nodes[0].HandleControl(nameOf(1), short)
		synctest.Wait()
		if n := logged.n.Load(); n != 2 {
			t.Errorf("logged %d times after one more message, later", n)
		}
	})
}

// A message of the session before reaches the link of the new one, or the other way round:
// it belongs to other secrets, and must not make keys.
func TestLinkControlOfAnotherSession(t *testing.T) {
	for early := range 2 {
		inMesh(t, names(2), line(2), func(m *mesh) {
			before := m.nodes[0].links[nameOf(1)].session
			up := [2]Neighbour{}
			for i := range up {
				up[i] = Neighbour{Name: nameOf(1 - i), Addr: m.nodes[1-i].addr, Secret: [32]byte{99}}
			}
			m.nodes[early].NeighbourUp(up[early])
			synctest.Wait() // it offers, or is offered, keys
			m.nodes[0].HandleControl(nameOf(1), before.Tagged(control(wire.Control{Type: wire.Renew})))
			m.nodes[1].HandleControl(nameOf(0), before.Tagged(control(wire.Control{Type: wire.Offer, Round: 1 << 31, Index: 5, Suites: 3, Key: [32]byte{9}})))
			synctest.Wait()
			m.nodes[1-early].NeighbourUp(up[1-early])
			time.Sleep(3 * time.Second)
			synctest.Wait()
			for i := range 2 {
				if !m.nodes[i].isUp(m.nodes[1-i]) {
					s, _ := m.nodes[i].Link(nameOf(1 - i))
					t.Errorf("node %d hears of the new session first; link of node %d: %+v", early, i, s)
				}
			}
		})
	}
}

func control(c wire.Control) []byte { return c.Append(nil) }

// Frames to every peer now and then make no router watch all its links closely, a stream of
// them does.
func TestLoneFloodsCauseNoHeartbeats(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		beats := func(between time.Duration, frames int) int32 {
			var probes atomic.Int32
			time.Sleep(10 * time.Second)
			m.f.mu.Lock()
			m.f.spy = func(_, _ netip.AddrPort, p []byte) {
				if wire.Type(p[0]) == wire.Probe {
					probes.Add(1)
				}
			}
			m.f.mu.Unlock()
			for range frames {
				m.say(0, frameOf(ethernet.Broadcast, macOf(0), 60, 1))
				time.Sleep(between)
			}
			return probes.Load()
		}
		// Two ends send one each two seconds, and answer it.
		if n := beats(time.Second, 12); n > 2*2*7 {
			t.Errorf("%d heartbeats and answers in 12 s with a frame a second", n)
		}
		if n := beats(50*time.Millisecond, 12*20); n < 2*9*10 {
			t.Errorf("%d heartbeats and answers in 12 s of a stream", n)
		}
	})
}
