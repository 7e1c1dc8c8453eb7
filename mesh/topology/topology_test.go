package topology

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Unix(1_700_000_000, 0)

func identity(t testing.TB, i int) *peer.Identity {
	t.Helper()
	seed := sha256.Sum256(fmt.Appendf(nil, "peer %d", i))
	id, err := peer.IdentityFromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newState(t testing.TB, id *peer.Identity, instance uint64, start time.Time) *State {
	t.Helper()
	s, err := New(Config{Self: id.Name, Nickname: "host-" + id.Name.String(), Instance: instance,
		Signer: id, Verifier: peer.Ed25519{}, Book: new(peer.Book), Start: start})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mesh returns states 0..n-1 with the given links. Each state has all entries.
func mesh(t testing.TB, n int, flags LinkFlags, pairs ...[2]int) []*State {
	t.Helper()
	states := make([]*State, n)
	for i := range states {
		states[i] = newState(t, identity(t, i), uint64(i)+1, epoch)
	}
	for i, s := range states {
		var links []Link
		for _, p := range pairs {
			if p[0] == i {
				links = append(links, Link{To: states[p[1]].cfg.Self, Flags: flags})
			}
			if p[1] == i {
				links = append(links, Link{To: states[p[0]].cfg.Self, Flags: flags})
			}
		}
		s.SetLinks(links)
	}
	exchange(t, states...)
	return states
}

// exchange repairs every pair of states until no entry is missing. States without links
// are linked with the first one before, or nobody would store their entries.
func exchange(t testing.TB, states ...*State) {
	t.Helper()
	hub := states[0]
	links := slices.Clone(hub.own.Links)
	for _, s := range states[1:] {
		if len(s.own.Links) == 0 && s.cfg.Self != hub.cfg.Self {
			s.SetLinks([]Link{{To: hub.cfg.Self, Flags: hubFlag}})
			links = append(links, Link{To: s.cfg.Self, Flags: hubFlag})
		}
	}
	hub.SetLinks(links)
	for range len(states) + 1 {
		quiet := true
		for _, a := range states {
			for _, b := range states {
				if a == b {
					continue
				}
				deltas, _, err := a.Missing(b.Digest())
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range deltas {
					quiet = false
					if _, err := b.Merge(a.cfg.Self, d); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if quiet {
			return
		}
	}
}

// meet adds links to others to those of s and returns the links that each of them has to
// have for it to count.
func meet(s *State, others ...peer.Name) []Link {
	links := slices.Clone(s.own.Links)
	for _, n := range others {
		links = append(links, Link{To: n, Flags: LinkSession})
	}
	s.SetLinks(links)
	return []Link{{To: s.cfg.Self, Flags: LinkSession}}
}

// hubFlag marks the links that exchange makes.
const hubFlag LinkFlags = 1 << 7

func TestEntryLengthFieldsRoundTrip(t *testing.T) {
	id := identity(t, 1)
	e := &Entry{Name: id.Name, Key: id.Key(), Instance: 7, Version: 9, Nickname: "web-1", ShortID: 4095,
		Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.1.2.3:6783"), netip.MustParseAddrPort("[fd00::1]:99")},
		Links: []Link{{To: peer.Name{2, 1}, Flags: LinkSession, Cost: 3}, {To: peer.Name{2, 2}, Flags: LinkData}}}
	e.sign(id)
	got, n, err := parseEntry(append(slices.Clone(e.raw), 1, 2, 3))
	if err != nil || n != len(e.raw) {
		t.Fatalf("parse: %d bytes of %d, %v", n, len(e.raw), err)
	}
	if !got.verify(peer.Ed25519{}) {
		t.Error("the signature does not verify")
	}
	if got.Nickname != e.Nickname || got.ShortID != e.ShortID || !slices.Equal(got.Links, e.Links) || !slices.Equal(got.Addrs, e.Addrs) ||
		got.Version != e.Version || got.Instance != e.Instance || got.Key != e.Key || got.Name != e.Name {
		t.Errorf("got %+v, want %+v", got, e)
	}
	for i := range e.raw[4:] {
		b := slices.Clone(e.raw)
		b[4+i] ^= 1
		if got, _, err := parseEntry(b); err == nil && got.verify(peer.Ed25519{}) {
			t.Fatalf("an entry with byte %d changed still verifies", 4+i)
		}
	}
}

func TestMergeRefusesWhatItsOwnerDidNotSign(t *testing.T) {
	a, b := newState(t, identity(t, 1), 1, epoch), newState(t, identity(t, 2), 1, epoch)
	b.SetLinks(meet(a, b.cfg.Self))
	forged := &Entry{Name: identity(t, 3).Name, Key: identity(t, 3).Key(), Version: 5}
	forged.sign(identity(t, 2)) // signed by a key that is not its owner's
	if news, err := a.Merge(b.cfg.Self, append(forged.raw, b.own.raw...)); err != nil || !bytes.Equal(news, b.own.raw) {
		t.Fatalf("news %x, err %v; want only b's own entry", news, err)
	}
	r := a.Refused()
	if len(r) != 1 || !errors.Is(r[0].Cause, ErrForged) || r[0].From != b.cfg.Self || r[0].Owner != forged.Name {
		t.Errorf("refusals %+v", r)
	}
	if a.Entry(forged.Name) != nil {
		t.Error("the forged entry was merged")
	}
}

func TestNameBindsToFirstKey(t *testing.T) {
	a := newState(t, identity(t, 1), 1, epoch)
	first, second := identity(t, 2), identity(t, 3)
	first.Name, second.Name = peer.Name{0, 0, 0, 0, 0, 9}, peer.Name{0, 0, 0, 0, 0, 9}
	f, s := newState(t, first, 1, epoch), newState(t, second, 1, epoch.Add(time.Hour))
	f.SetLinks(meet(a, first.Name))
	if _, err := a.Merge(first.Name, f.own.raw); err != nil {
		t.Fatal(err)
	}
	if news, err := a.Merge(first.Name, s.own.raw); err != nil || news != nil {
		t.Fatalf("news %x, err %v; want none", news, err)
	}
	if r := a.Refused(); len(r) != 1 || !errors.Is(r[0].Cause, peer.ErrNameTaken) {
		t.Errorf("refusals %+v", r)
	}
}

func TestRestartedPeerOverridesItsOldEntry(t *testing.T) {
	id := identity(t, 1)
	old := newState(t, id, 1, epoch.Add(time.Hour)) // its clock was set back later
	other := newState(t, identity(t, 2), 1, epoch)
	exchange(t, old, other)
	again := newState(t, id, 2, epoch)
	exchange(t, again, other)
	if e := other.Entry(id.Name); e.Instance != 2 {
		t.Errorf("the mesh still holds instance %d of the restarted peer", e.Instance)
	}
	if r := again.Refused(); r != nil {
		t.Errorf("a restart is reported as a clone: %+v", r)
	}
}

func TestCloneIsNoticedByBoth(t *testing.T) {
	id := identity(t, 1)
	a, b := newState(t, id, 1, epoch), newState(t, id, 2, epoch)
	other := newState(t, identity(t, 2), 1, epoch)
	exchange(t, a, other)
	for range 6 {
		for _, s := range []*State{a, b} {
			d, _, _ := other.Missing(s.Digest())
			for _, d := range d {
				s.Merge(other.cfg.Self, d)
			}
			d, _, _ = s.Missing(other.Digest())
			for _, d := range d {
				other.Merge(s.cfg.Self, d)
			}
		}
	}
	for _, s := range []*State{a, b} {
		if r := s.Refused(); len(r) == 0 || !errors.Is(r[0].Cause, ErrRival) {
			t.Errorf("instance %d did not notice its clone: %+v", s.cfg.Instance, r)
		}
	}
}

func TestMergeInAnyOrderConverges(t *testing.T) {
	rng := seed.Rand(t)
	var deltas [][]byte
	for i := range 8 {
		s := newState(t, identity(t, i), 1, epoch)
		deltas = append(deltas, slices.Clone(s.own.raw))
		for k := range 4 {
			links := []Link{{To: identity(t, (i+k+1)%8).Name, Flags: LinkSession, Cost: uint8(8 * k)}}
			if i < 3 || k == 3 { // the others are known only over other peers for a while
				links = append(links, Link{To: identity(t, 100).Name, Flags: LinkSession})
			}
			deltas = append(deltas, s.SetLinks(links))
		}
	}
	var want []byte
	for range 50 {
		rng.Shuffle(len(deltas), func(i, j int) { deltas[i], deltas[j] = deltas[j], deltas[i] })
		s := newState(t, identity(t, 100), 1, epoch)
		for i := range 8 {
			meet(s, identity(t, i).Name)
		}
		for i, d := range deltas {
			if j := rng.IntN(len(deltas)); rng.IntN(3) == 0 {
				if joined := s.Join(d, deltas[j]); joined != nil {
					d = joined
				}
			}
			if _, err := s.Merge(peer.Name{}, d); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Merge(peer.Name{}, deltas[i]); err != nil {
				t.Fatal(err)
			}
			if news, err := s.Merge(peer.Name{}, deltas[i]); err != nil || news != nil {
				t.Fatalf("a delta is new when it is merged again: %x, %v", news, err)
			}
		}
		if len(s.entries) != 9 {
			t.Fatalf("%d entries, want 9", len(s.entries))
		}
		if want == nil {
			want = s.Digest()
		}
		if !bytes.Equal(want, s.Digest()) {
			t.Fatal("two orders of the same deltas give different states")
		}
	}
}

func TestRoutesOverALine(t *testing.T) {
	m := mesh(t, 5, LinkSession|LinkData, [2]int{0, 1}, [2]int{1, 2}, [2]int{2, 3}, [2]int{3, 4})
	name := func(i int) peer.Name { return m[i].cfg.Self }
	r := m[1].Graph().Routes(LinkData)
	for dst, via := range map[int]int{0: 0, 2: 2, 3: 2, 4: 2} {
		if got := r.Unicast[name(dst)]; got != name(via) {
			t.Errorf("the route from 1 to %d goes over %s, want %s", dst, got, name(via))
		}
	}
	for src, to := range map[int][]int{0: {2}, 1: {0, 2}, 2: {0}, 4: {0}} {
		var want []peer.Name
		for _, i := range to {
			want = append(want, name(i))
		}
		slices.SortFunc(want, peer.Name.Compare)
		if got := r.Broadcast[name(src)]; !slices.Equal(got, want) {
			t.Errorf("broadcast from %d: %v, want %v", src, got, want)
		}
	}
}

func TestLinkCountsOnlyIfBothEndsListIt(t *testing.T) {
	a, b := newState(t, identity(t, 1), 1, epoch), newState(t, identity(t, 2), 1, epoch)
	a.SetLinks([]Link{{To: b.cfg.Self, Flags: LinkSession | LinkData}})
	exchange(t, a, b)
	if a.Graph().Reaches(b.cfg.Self) {
		t.Error("a link counts although only one end lists it")
	}
	b.SetLinks([]Link{{To: a.cfg.Self, Flags: LinkSession}})
	exchange(t, a, b)
	if r := a.Graph().Routes(LinkSession); r.Unicast[b.cfg.Self] != b.cfg.Self {
		t.Error("no session route")
	}
	if r := a.Graph().Routes(LinkData); len(r.Unicast) != 0 {
		t.Error("a data route over a link that only one end has")
	}
}

func TestShorterRoundTripWinsAmongEqualHops(t *testing.T) {
	m := mesh(t, 4, LinkData, [2]int{0, 1}, [2]int{0, 2}, [2]int{1, 3}, [2]int{2, 3})
	for fast, slow := range map[int]int{1: 2, 2: 1} {
		m[0].SetLinks([]Link{
			{To: m[fast].cfg.Self, Flags: LinkData, Cost: CostOf(100 * time.Microsecond)},
			{To: m[slow].cfg.Self, Flags: LinkData, Cost: CostOf(time.Millisecond)}})
		if got := m[0].Graph().Routes(LinkData).Unicast[m[3].cfg.Self]; got != m[fast].cfg.Self {
			t.Errorf("the route goes over %s, want the faster %d", got, fast)
		}
	}
}

// randomRoutes returns the routes of all peers of a random graph.
func randomRoutes(t *testing.T, rng *rand.Rand) ([]*State, map[peer.Name]*Routes) {
	t.Helper()
	n := 2 + rng.IntN(24)
	var pairs [][2]int
	for i := range n {
		for j := range i {
			if rng.IntN(n) < 3 {
				pairs = append(pairs, [2]int{j, i})
			}
		}
	}
	m := mesh(t, n, LinkData, pairs...)
	routes := make(map[peer.Name]*Routes)
	for _, s := range m {
		routes[s.cfg.Self] = s.Graph().Routes(LinkData)
	}
	return m, routes
}

// In any graph, frames arrive only from neighbours from which the routes expect them:
// unicast and broadcast ones, at each peer on their way.
func TestFramesComeFromExpectedNeighbours(t *testing.T) {
	rng := seed.Rand(t)
	for range 20 {
		m, routes := randomRoutes(t, rng)
		expect := func(at, src, from peer.Name) {
			t.Helper()
			if !slices.Contains(routes[at].From[src], from) {
				t.Fatalf("at %s a frame of %s comes from %s, expected is %s", at, src, from, routes[at].From[src])
			}
		}
		for _, s := range m {
			src := s.cfg.Self
			for dst := range routes[src].Unicast {
				for at := src; at != dst; {
					next := routes[at].Unicast[dst]
					expect(next, src, at)
					at = next
				}
			}
			for queue := []peer.Name{src}; len(queue) > 0; queue = queue[1:] {
				for _, next := range routes[queue[0]].Broadcast[src] {
					expect(next, src, queue[0])
					queue = append(queue, next)
				}
			}
			if len(routes[src].From) != len(routes[src].Unicast) {
				t.Errorf("frames are expected from %d peers, reachable are %d", len(routes[src].From), len(routes[src].Unicast))
			}
			for n, via := range routes[src].Unicast {
				if n == via && !slices.Equal(routes[src].From[n], []peer.Name{n}) {
					t.Errorf("frames of the neighbour %s are expected from %s", n, routes[src].From[n])
				}
			}
		}
	}
}

// In any graph, a broadcast reaches every reachable peer exactly once.
func TestBroadcastReachesEachOnce(t *testing.T) {
	rng := seed.Rand(t)
	for range 20 {
		m, routes := randomRoutes(t, rng)
		for _, s := range m {
			src, got := s.cfg.Self, map[peer.Name]int{}
			for queue := []peer.Name{src}; len(queue) > 0; queue = queue[1:] {
				if got[queue[0]]++; got[queue[0]] > 1 {
					t.Fatalf("%s gets it twice", queue[0])
				}
				queue = append(queue, routes[queue[0]].Broadcast[src]...)
			}
			if want := len(routes[src].Unicast) + 1; len(got) != want {
				t.Fatalf("reaches %d of %d", len(got), want)
			}
		}
	}
}

func TestUnreachablePeerIsForgottenAndNotRelearned(t *testing.T) {
	m := mesh(t, 3, LinkSession, [2]int{0, 1}, [2]int{1, 2})
	m[1].SetLinks([]Link{{To: m[0].cfg.Self, Flags: LinkSession}})
	exchange(t, m[0], m[1])
	if gone, _ := m[0].Expire(epoch); gone != nil {
		t.Errorf("forgotten at once: %v", gone)
	}
	if gone, _ := m[0].Expire(epoch.Add(ForgetAfter)); !slices.Equal(gone, []peer.Name{m[2].cfg.Self}) {
		t.Errorf("forgotten: %v", gone)
	}
	exchange(t, m[0], m[1])
	if m[0].Entry(m[2].cfg.Self) != nil {
		t.Error("learned again from a slower neighbour")
	}
	m[1].SetLinks([]Link{{To: m[0].cfg.Self, Flags: LinkSession}, {To: m[2].cfg.Self, Flags: LinkSession}})
	m[2].SetLinks(nil)
	m[2].SetLinks([]Link{{To: m[1].cfg.Self, Flags: LinkSession}})
	exchange(t, m...)
	if !m[0].Graph().Reaches(m[2].cfg.Self) {
		t.Error("a peer that came back is not seen")
	}
}

func TestLargeMeshDigestsByTable(t *testing.T) {
	cheap := func(i int) peer.Cheap { return peer.Cheap{ID: peer.Key{byte(i), byte(i >> 8), 1}} }
	name := func(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }
	start := func(i, n int) *State { // a chain of stars: 0, 100, 200 and so on are linked
		s, err := New(Config{Self: name(i), Signer: cheap(i), Verifier: peer.Cheap{}, Book: new(peer.Book), Start: epoch})
		if err != nil {
			t.Fatal(err)
		}
		link := func(j int) {
			if j >= 0 && j < n && j != i {
				meet(s, name(j))
			}
		}
		if i%100 != 0 {
			link(i / 100 * 100)
			return s
		}
		for j := range 100 {
			link(i + j)
		}
		link(i - 100)
		link(i + 100)
		return s
	}
	fill := func(from, n, most int) *State {
		s := start(from, most)
		for i := range n {
			if i != from {
				s.SetTime(epoch.Add(time.Duration(i) * time.Second))
				s.Merge(peer.Name{}, start(i, most).own.raw)
			}
		}
		return s
	}
	a, b := fill(0, maxList+100, maxList+100), fill(100, maxList+90, maxList+100)
	d := a.Digest()
	if d[0] != digestTable {
		t.Fatal("the digest is a list, want a table")
	}
	exchange(t, a, b)
	if len(b.entries) != maxList+100 || !bytes.Equal(a.Digest(), b.Digest()) {
		t.Errorf("%d and %d entries after an exchange", len(a.entries), len(b.entries))
	}
}

func FuzzEntry(f *testing.F) {
	id := identity(f, 1)
	e := &Entry{Name: id.Name, Key: id.Key(), Version: 9, Nickname: "x", Links: []Link{{To: peer.Name{2, 1}}}}
	e.sign(id)
	f.Add(e.raw)
	for _, tail := range [][]byte{nil, {1}, {0, 7}, {0x0f, 0xff}, {0x10, 0}, {0, 7, 1, 2, 3}} {
		f.Add(withTail(e, id, tail))
	}
	f.Add([]byte{0, 0, 0, 70, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, n, err := parseEntry(b)
		if err != nil {
			return
		}
		if n > len(b) || len(e.raw) != n {
			t.Fatalf("takes %d of %d bytes", n, len(b))
		}
		if e.ShortID > MaxShortID || e.ShortID != 0 && !e.hasShortID {
			t.Fatalf("short id %d, has one: %t", e.ShortID, e.hasShortID)
		}
		again := &Entry{Version: e.Version, Name: e.Name, Key: e.Key, Instance: e.Instance, Links: e.Links, Addrs: e.Addrs, Nickname: e.Nickname, ShortID: e.ShortID}
		again.sign(id)
		most := n
		if !e.hasShortID {
			most += 2
		}
		got, m, err := parseEntry(again.raw)
		if err != nil || m > most {
			t.Fatalf("encoded again: %d bytes, %v", m, err)
		}
		if got.ShortID != e.ShortID || got.Nickname != e.Nickname || !slices.Equal(got.Links, e.Links) || !slices.Equal(got.Addrs, e.Addrs) {
			t.Fatalf("encoded again: %+v, was %+v", got, e)
		}
	})
}

func FuzzMissing(f *testing.F) {
	s := mesh(f, 3, LinkSession, [2]int{0, 1})[0]
	f.Add(s.Digest())
	f.Add([]byte{digestList})
	f.Add(make([]byte, 1+8*buckets))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := s.Missing(b); err != nil && len(b) > 0 && b[0] == digestList && (len(b)-1)%digestEntry == 0 {
			t.Fatal(err)
		}
	})
}

func BenchmarkRoutes(b *testing.B) {
	for _, n := range []int{100, 300} {
		s := func() *State {
			states := make([]*State, n)
			for i := range states {
				states[i] = newState(b, identity(b, i), 1, epoch)
			}
			for i, s := range states {
				var links []Link
				for j, o := range states {
					if i != j {
						links = append(links, Link{To: o.cfg.Self, Flags: LinkData})
					}
				}
				s.SetLinks(links)
				if i > 0 {
					states[0].Merge(peer.Name{}, s.own.raw)
				}
			}
			return states[0]
		}()
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for range b.N {
				s.graph = nil
				s.Graph().Routes(LinkData)
			}
		})
	}
}
