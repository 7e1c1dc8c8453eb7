package resolve

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
)

var (
	here, there = peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}
	mine        = ethernet.MAC{2, 1, 0, 0, 0, 1}
	theirs      = ethernet.MAC{2, 1, 0, 0, 0, 2}
	ip1, ip2    = netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("10.32.0.2")
)

func TestDecide(t *testing.T) {
	asks := neighbour.Message{Target: ip2, From: ip1, MAC: mine}
	probe := neighbour.Message{Target: ip2, MAC: mine}
	says := neighbour.Message{From: ip1, MAC: mine}
	for _, c := range []struct {
		what         string
		m            neighbour.Message
		target, from Place
		reached      bool
		want         Verdict
	}{
		{"nothing is bound", asks, Place{}, Place{}, false, Flood},
		{"the target is elsewhere", asks, Place{theirs, there}, Place{mine, here}, true, Answer},
		{"the host of the target is not reached", asks, Place{theirs, there}, Place{mine, here}, false, Flood},
		{"the target is on this host", asks, Place{theirs, here}, Place{mine, here}, false, Local},
		{"a liar asks", asks, Place{theirs, there}, Place{theirs, here}, true, Answer},
		{"a liar asks for an address that is not bound", asks, Place{}, Place{theirs, there}, true, False},
		{"a liar asks for an address of a host that is not reached", asks, Place{theirs, there}, Place{theirs, here}, false, False},
		{"a probe of an address in use elsewhere", probe, Place{theirs, there}, Place{}, true, Answer},
		{"a probe of an address in use on this host", probe, Place{theirs, here}, Place{}, false, Local},
		{"a probe of its own address", probe, Place{mine, here}, Place{}, false, Local},
		{"a probe of its own address, which came here before its binding", probe, Place{mine, there}, Place{}, true, Flood},
		{"a probe of a free address", probe, Place{}, Place{}, false, Flood},
		{"an announcement", says, Place{}, Place{mine, here}, false, Flood},
		{"an announcement before the binding", says, Place{}, Place{mine, there}, true, Flood},
		{"an announcement of an address of another container here", says, Place{}, Place{theirs, here}, false, False},
		{"an announcement of an address of a container elsewhere", says, Place{}, Place{theirs, there}, true, False},
		{"an announcement of an address that is not bound", says, Place{}, Place{}, false, Flood},
	} {
		if got := Decide(c.m, here, c.target, c.from, c.reached); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// moved is Moves with a clock.
type moved struct {
	Moves
	t   *testing.T
	now time.Time
}

func (m *moved) change(a netip.Addr, old, now Place) { m.Changed(m.now, here, []Change{{a, old, now}}) }

func (m *moved) want(what string, want ...Announcement) {
	m.t.Helper()
	m.now = m.now.Add(pause)
	if got := m.Due(m.now); !slices.Equal(got, want) {
		m.t.Errorf("%s: announced %v, want %v", what, got, want)
	}
	if _, ok := m.Next(); ok {
		m.t.Errorf("%s: more waits", what)
	}
}

func TestMoves(t *testing.T) {
	m := &moved{t: t, now: time.Unix(1_700_000_000, 0)}
	another := ethernet.MAC{2, 1, 0, 0, 0, 3}
	at1, at2, at3 := Place{mine, there}, Place{theirs, there}, Place{another, there}
	m.change(ip1, Place{}, at1)
	m.want("the first container with an address")
	m.change(ip1, at1, at2)
	m.want("another MAC address", Announcement{ip1, theirs})
	m.change(ip1, at2, Place{theirs, peer.Name{2, 9}})
	m.want("another host, with its MAC address")
	m.change(ip1, Place{theirs, peer.Name{2, 9}}, Place{mine, here})
	m.want("to this host, where its port announces it")
	m.change(ip1, Place{mine, here}, at1)
	m.want("away from this host with its MAC address")

	m.change(ip1, at1, Place{})
	m.want("it ends")
	m.now = m.now.Add(time.Minute)
	m.change(ip1, Place{}, at1)
	m.want("it comes back")
	m.change(ip1, at1, Place{})
	m.now = m.now.Add(time.Minute)
	m.change(ip1, Place{}, at3)
	m.want("another container gets the address a minute later", Announcement{ip1, another})
	m.change(ip1, at3, Place{})
	m.now = m.now.Add(remember - time.Second)
	m.change(ip2, Place{}, at1)
	m.now = m.now.Add(remember - time.Minute)
	m.change(ip1, Place{}, at1)
	m.want("within the time that it is remembered", Announcement{ip1, mine})
	m.change(ip1, at1, Place{})
	m.now = m.now.Add(2 * remember)
	m.change(ip1, Place{}, at2)
	m.want("long after")

	// Those that asked meanwhile know the second one, those that asked before know the first one.
	m.change(ip1, at2, at1)
	m.change(ip1, at1, at2)
	m.want("there and back", Announcement{ip1, theirs})
	m.change(ip1, at2, at1)
	m.change(ip1, at1, Place{})
	m.want("it ended before it was announced")
}

// Ten thousand addresses that move at once are announced one after the other, and more than fit are
// counted.
func TestMovesAreBounded(t *testing.T) {
	m := &moved{t: t, now: time.Unix(1_700_000_000, 0)}
	const extra = 100
	a := netip.MustParseAddr("10.32.0.0")
	for range maxMoves + extra {
		m.change(a, Place{mine, there}, Place{theirs, there})
		a = a.Next()
	}
	if m.Dropped() != extra {
		t.Errorf("%d were dropped, want %d", m.Dropped(), extra)
	}
	seen, rounds := make(map[netip.Addr]bool), 0
	for _, ok := m.Next(); ok; _, ok = m.Next() {
		due := m.Due(m.now)
		if len(due) > maxDue || len(m.Due(m.now)) > 0 {
			t.Fatalf("%d at once", len(due))
		}
		for _, d := range due {
			seen[d.Addr] = true
		}
		m.now, rounds = m.now.Add(pause), rounds+1
	}
	if len(seen) != maxMoves || rounds != maxMoves/maxDue {
		t.Errorf("%d addresses in %d rounds, want %d in %d", len(seen), rounds, maxMoves, maxMoves/maxDue)
	}
	for range maxMoves + extra {
		m.change(a, Place{mine, there}, Place{})
		a = a.Next()
	}
	if len(m.last) > maxMoves {
		t.Errorf("%d are remembered, want at most %d", len(m.last), maxMoves)
	}
}
