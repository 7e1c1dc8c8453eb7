package groups

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Unix(1_700_000_000, 0)

func name(i int) peer.Name { return peer.Name{2, 0, 0, 0, 0, byte(i)} }

func groups(list ...string) (out []netip.Addr) {
	for _, g := range list {
		out = append(out, netip.MustParseAddr(g))
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// pair returns the states of two hosts that know each other.
func pair(t *testing.T) (a, b *State) {
	t.Helper()
	keys := make(map[peer.Name]peer.Key)
	make1 := func(i int) *State {
		id := peer.Cheap{ID: peer.Key{byte(i)}}
		keys[name(i)] = id.ID
		return New(Config{Self: name(i), Signer: id, Verifier: id, Start: epoch})
	}
	a, b = make1(1), make1(2)
	for _, s := range []*State{a, b} {
		s.SetTime(epoch)
		s.SetOwners(maps.Clone(keys))
	}
	return a, b
}

func announce(t *testing.T, from, to *State, w Wants) (records int) {
	t.Helper()
	deltas, err := from.Announce(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range deltas {
		if _, err := to.Merge(from.self, d); err != nil {
			t.Fatal(err)
		}
		records++
	}
	return records
}

func TestAnnounce(t *testing.T) {
	a, b := pair(t)
	b.TakeChanged()
	if m := b.Members(); len(m.Known) > 0 {
		t.Errorf("before a word of it: %+v", m)
	}
	announce(t, a, b, Wants{Groups: groups("239.1.1.1", "ff05::1", "239.1.1.2")})
	m := b.Members()
	if !b.TakeChanged() || !m.Known[name(1)] || len(m.All) > 0 || len(m.Of) != 3 || !slices.Equal(m.Of[groups("ff05::1")[0]], []peer.Name{name(1)}) {
		t.Errorf("members %+v", m)
	}
	if n := announce(t, a, b, Wants{Groups: groups("ff05::1", "239.1.1.2", "239.1.1.1")}); n != 0 || b.TakeChanged() {
		t.Errorf("%d records although nothing changed", n)
	}
	announce(t, a, b, Wants{Groups: groups("239.1.1.2")})
	if m := b.Members(); len(m.Of) != 1 {
		t.Errorf("members %+v after two groups were left", m)
	}
	if own := a.Members(); len(own.Of) > 0 || len(own.Known) > 0 {
		t.Errorf("a host is a member for itself: %+v", own)
	}
	if list, omitted := a.List(10); len(list) != 1 || omitted != 0 || list[0] != (Listed{groups("239.1.1.2")[0], name(1)}) {
		t.Errorf("list %v, %d left out", list, omitted)
	}
	announce(t, a, b, Wants{All: true})
	if m := b.Members(); !slices.Equal(m.All, []peer.Name{name(1)}) || len(m.Of) > 0 {
		t.Errorf("members %+v of a host that wants all", m)
	}
	b.SetOwners(nil)
	if m := b.Members(); len(m.Known) > 0 || !b.TakeChanged() {
		t.Errorf("members %+v after the host has gone", m)
	}
}

// A host may announce as many groups as its router tells apart, and they fit.
func TestBounds(t *testing.T) {
	a, b := pair(t)
	var list []netip.Addr
	for i := range MaxGroups {
		list = append(list, netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 14: byte(i >> 8), 15: byte(i)}))
	}
	announce(t, a, b, Wants{Groups: list})
	if n := len(b.Members().Of); n != MaxGroups {
		t.Errorf("%d of %d groups arrived", n, MaxGroups)
	}
	if _, err := a.Announce(Wants{Groups: append(list, netip.MustParseAddr("239.1.1.1"))}); err == nil {
		t.Error("one group too many is accepted")
	}
	for _, g := range []string{"10.0.0.1", "::ffff:239.1.1.1", "fe80::1"} {
		if _, err := a.Announce(Wants{Groups: groups(g)}); err == nil || !strings.Contains(err.Error(), "want a multicast address") {
			t.Errorf("group %s: %v", g, err)
		}
	}
	if list, omitted := b.List(3); len(list) != 3 || omitted != MaxGroups-3 {
		t.Errorf("%d listed, %d left out", len(list), omitted)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(0), []byte{1})
	g := groups("239.1.1.1", "ff05::1")
	for _, a := range g {
		f.Add(bucketOf(a), append([]byte{byte(a.BitLen() / 8)}, a.AsSlice()...))
	}
	f.Fuzz(func(t *testing.T, number uint8, b []byte) {
		v, err := decode(number, b)
		if err != nil {
			return
		}
		for i, g := range v.groups {
			if err := check(g); err != nil || bucketOf(g) != number || i > 0 && v.groups[i-1].Compare(g) >= 0 {
				t.Errorf("bucket %d: %v", number, v.groups)
			}
		}
	})
}
