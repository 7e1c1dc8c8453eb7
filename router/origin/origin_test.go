package origin

import (
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

func name(n byte) peer.Name { return peer.Name{2, 0, 0, 0, 0, n} }

func TestFramesComeFromWhereTheRoutesSay(t *testing.T) {
	const now = time.Hour
	a, m, n, stranger := name(1), name(2), name(3), name(4)
	from := func(of map[peer.Name][]peer.Name, old Table, at time.Duration) Table { return New(of, old, at) }
	check := func(what string, tb Table, src, via peer.Name, at time.Duration, want bool) {
		t.Helper()
		if got := tb.Allows(src, via, at); got != want {
			t.Errorf("%s: frames of %s from %s at %v: %v", what, src, via, at-now, got)
		}
		if got := slices.Contains(tb.From(src, at), via); got != (want && src != via) {
			t.Errorf("%s: From(%s) has %s at %v: %v", what, src, via, at-now, got)
		}
	}
	var none Table
	check("no routes", none, n, n, now, true)
	check("no routes", none, a, n, now, false)

	first := from(map[peer.Name][]peer.Name{a: {n}, n: {n}, m: {m}}, none, now)
	check("one path", first, a, n, now, true)
	check("one path", first, a, m, now, false)
	check("one path", first, n, m, now, false)
	check("one path", first, stranger, n, now, false)
	if next := first.Next(now); next != 0 {
		t.Errorf("Next() is %v", next)
	}

	// The path is over m now.
	second := from(map[peer.Name][]peer.Name{a: {m}, n: {n}, m: {m}}, first, now+time.Minute)
	check("after a change", second, a, m, now+time.Minute, true)
	check("after a change", second, a, n, now+time.Minute+Grace-1, true)
	check("after a change", second, a, n, now+time.Minute+Grace, false)
	if next := second.Next(now + time.Minute); next != now+time.Minute+Grace {
		t.Errorf("Next() is %v", next)
	}
	if next := second.Next(now + time.Minute + Grace); next != 0 {
		t.Errorf("Next() is %v after the last change", next)
	}

	// More changes do not make the old path valid for longer, until it is used again.
	third := from(map[peer.Name][]peer.Name{a: {m}, n: {n}, m: {m}}, second, now+time.Minute+Grace/2)
	check("after an unrelated change", third, a, n, now+time.Minute+Grace-1, true)
	check("after an unrelated change", third, a, n, now+time.Minute+Grace, false)
	fourth := from(map[peer.Name][]peer.Name{a: {m, n}, n: {n}, m: {m}}, third, now+time.Minute+Grace/2)
	check("both are as short", fourth, a, n, now+time.Hour, true)
	check("both are as short", fourth, a, m, now+time.Hour, true)

	// A peer that is not reachable sends nothing.
	fifth := from(map[peer.Name][]peer.Name{n: {n}, m: {m}}, fourth, now+time.Hour)
	check("unreachable", fifth, a, n, now+time.Hour, false)
}
