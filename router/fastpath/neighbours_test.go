package fastpath_test

import (
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/resolve"
)

// The kernel knows where IP addresses are, as the router heard last. The next router leaves them for a minute,
// unless it hears something else.
func TestNeighboursInTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, defaults)
		a, b := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")
		at1, at2 := resolve.Place{MAC: macOf(1, 1), At: nameOf(1)}, resolve.Place{MAC: macOf(1, 2), At: nameOf(2)}
		want := func(what string, want map[netip.Addr]resolve.Place) {
			t.Helper()
			pass(10 * time.Millisecond)
			got := make(map[netip.Addr]resolve.Place)
			for a, n := range m.Neighbours() {
				got[a] = resolve.Place{MAC: n.MAC}
				if n.Peer != 0 {
					got[a] = resolve.Place{MAC: n.MAC, At: nameOf(byte(n.Peer))}
				}
			}
			if !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		unknown := func(p resolve.Place) resolve.Place { return resolve.Place{MAC: p.MAC} }
		r.Moved([]resolve.Change{{Addr: a, New: at1}, {Addr: b, New: at2}})
		want("they come", map[netip.Addr]resolve.Place{a: unknown(at1), b: unknown(at2)})
		r.routes([]byte{2}, nil)
		want("their peers are known", map[netip.Addr]resolve.Place{a: at1, b: at2})
		r.Moved([]resolve.Change{{Addr: a, Old: at1, New: at2}})
		r.Moved([]resolve.Change{{Addr: a, Old: at2, New: at1}, {Addr: b, Old: at2}})
		want("one moves there and back, one may be coming back", map[netip.Addr]resolve.Place{a: at1, b: at2})
		pass(2 * time.Second)
		want("one ends", map[netip.Addr]resolve.Place{a: at1})
		r.Moved([]resolve.Change{{Addr: b, New: at2}})
		want("it comes back", map[netip.Addr]resolve.Place{a: at1, b: at2})
		r.stop()
		want("the router is away", map[netip.Addr]resolve.Place{a: at1, b: at2})
		r = start(t, m, defaults)
		want("another router", map[netip.Addr]resolve.Place{a: at1, b: at2})
		r.Moved([]resolve.Change{{Addr: b, New: at2}})
		want("it hears of one before its peer is known", map[netip.Addr]resolve.Place{a: at1, b: at2})
		r.routes([]byte{2}, nil)
		pass(2 * time.Minute)
		want("it never hears of the other", map[netip.Addr]resolve.Place{b: at2})

		var list []resolve.Change
		r.Moved([]resolve.Change{{Addr: b, Old: at2}})
		pass(2 * time.Second)
		for c := netip.MustParseAddr("10.40.0.0"); len(list) < kernel.MaxNeighbours+100; c = c.Next() {
			list = append(list, resolve.Change{Addr: c, New: at2})
		}
		r.Moved(list)
		pass(10 * time.Millisecond)
		if n := len(m.Neighbours()); n != kernel.MaxNeighbours {
			t.Errorf("%d addresses are in a map for %d", n, kernel.MaxNeighbours)
		}
		for i := range list {
			list[i].Old, list[i].New = at2, resolve.Place{}
		}
		r.Moved(list)
		pass(2*time.Second + 5*time.Millisecond)
		if n := len(m.Neighbours()); n == 0 || n == kernel.MaxNeighbours {
			t.Errorf("%d addresses are left a moment after they end: they must end bit by bit, as echoes wait meanwhile", n)
		}
		pass(time.Second)
		want("all end", map[netip.Addr]resolve.Place{})
	})
}
