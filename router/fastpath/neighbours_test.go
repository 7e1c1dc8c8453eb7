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

// The kernel knows where IP addresses are, as the router heard last, and the next router begins with
// none.
func TestNeighboursInTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, defaults)
		a, b := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")
		at1, at2 := resolve.Place{MAC: macOf(1, 1), At: nameOf(1)}, resolve.Place{MAC: macOf(1, 2), At: nameOf(2)}
		want := func(what string, want map[netip.Addr][6]byte) {
			t.Helper()
			pass(10 * time.Millisecond)
			if got := m.Neighbours(); !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		r.Moved([]resolve.Change{{Addr: a, New: at1}, {Addr: b, New: at2}})
		want("they come", map[netip.Addr][6]byte{a: at1.MAC, b: at2.MAC})
		r.Moved([]resolve.Change{{Addr: a, Old: at1, New: at2}})
		r.Moved([]resolve.Change{{Addr: a, Old: at2, New: at1}, {Addr: b, Old: at2}})
		want("one moves there and back, one ends", map[netip.Addr][6]byte{a: at1.MAC})
		r.stop()
		want("the router is away", map[netip.Addr][6]byte{a: at1.MAC})
		r = start(t, m, defaults)
		want("another router", map[netip.Addr][6]byte{})

		var list []resolve.Change
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
		want("all end", map[netip.Addr][6]byte{})
	})
}
