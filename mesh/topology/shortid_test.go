package topology

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

// withTail returns e encoded and signed, with tail in place of all bytes after the
// nickname.
func withTail(e *Entry, s peer.Signer, tail []byte) []byte {
	e.sign(s)
	b := slices.Concat(e.raw[:len(e.raw)-peer.SignatureLen-2], tail)
	binary.BigEndian.PutUint32(b, uint32(len(b)+peer.SignatureLen))
	sig := s.Sign(signDomain, b[4:])
	return append(b, sig[:]...)
}

// claim returns a state that starts with a short id.
func claim(t testing.TB, i int, id uint16) *State { return relaunch(t, i, id, 1) }

func relaunch(t testing.TB, i int, id uint16, instance uint64) *State {
	t.Helper()
	who := identity(t, i)
	s, err := New(Config{Self: who.Name, Instance: instance, Signer: who, Verifier: peer.Ed25519{}, Book: new(peer.Book), Start: epoch, ShortID: id})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rivals returns states that all start with one short id, in order of name.
func rivals(t testing.TB, n int, id uint16) (states []*State) {
	t.Helper()
	for i := range n {
		states = append(states, claim(t, i, id))
	}
	slices.SortFunc(states, func(a, b *State) int { return a.cfg.Self.Compare(b.cfg.Self) })
	return states
}

// settle exchanges entries until no state chooses another id, and returns how many
// choices there were.
func settle(t testing.TB, states ...*State) (moves int) {
	t.Helper()
	for range 100 {
		exchange(t, states...)
		before := moves
		for _, s := range states {
			if s.SettleShortID() != nil {
				moves++
			}
		}
		if moves == before {
			return moves
		}
	}
	t.Fatalf("states still choose after %d moves", moves)
	return 0
}

func (s *State) knows() map[peer.Name]uint16 { return s.Graph().Routes(LinkData).ShortIDs }

func TestFirstShortIDFollowsFromTheName(t *testing.T) {
	id := identity(t, 1)
	a, again := newState(t, id, 1, epoch), newState(t, id, 2, epoch.Add(time.Hour))
	if a.own.ShortID == 0 || a.own.ShortID != again.own.ShortID {
		t.Errorf("a peer starts with %d, and with %d at its next launch", a.own.ShortID, again.own.ShortID)
	}
	// If a release drew differently, every peer would change its id.
	for name, want := range map[peer.Name]uint16{{2}: 2087, {2, 0, 0, 0, 0, 1}: 3830, {0xfe, 1, 2, 3, 4, 5}: 2394} {
		if got := probe(name, 0, MaxShortID); got != want {
			t.Errorf("%s draws %d, want %d", name, got, want)
		}
	}
	if _, err := New(Config{Signer: id, Book: new(peer.Book), ShortID: MaxShortID + 1}); err == nil {
		t.Error("an invalid id is accepted")
	}
}

// Consecutive names draw as if at random, within the range.
func TestProbesAreSpreadEvenly(t *testing.T) {
	var drawn [MaxShortID + 1]int
	const n = 16 * MaxShortID
	for i := range n {
		drawn[probe(peer.Name{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, 0, MaxShortID)]++
	}
	if drawn[0] != 0 {
		t.Error("0 was drawn")
	}
	chi2 := 0.0
	for _, k := range drawn[1:] {
		chi2 += float64((k-16)*(k-16)) / 16
	}
	// Of 4,094 degrees of freedom the standard deviation is 90.
	if chi2 < MaxShortID-500 || chi2 > MaxShortID+500 {
		t.Errorf("chi squared %.0f for %d ids", chi2, MaxShortID)
	}
}

func TestLowerNameKeepsAContestedShortID(t *testing.T) {
	s := rivals(t, 3, 77)
	exchange(t, s...)
	for i, s := range s {
		r := s.Graph().Routes(LinkData)
		if len(r.ShortIDs) != 1 || r.ByShortID[77] != s.sorted[0].Name {
			t.Errorf("contested, peer %d knows %v", i, r.ByShortID)
		}
	}
	generation := s[1].Generation()
	delta := s[1].SettleShortID()
	if delta == nil || s[1].Generation() == generation {
		t.Fatal("the loser keeps the id, or Generation did not change")
	}
	if s[0].SettleShortID() != nil {
		t.Error("the winner changes its id")
	}
	if news, err := s[0].Merge(s[1].cfg.Self, delta); err != nil || !bytes.Equal(news, delta) {
		t.Errorf("the choice is not new: %x, %v", news, err)
	}
	settle(t, s...)
	want := s[0].knows()
	if len(want) != 3 || want[s[0].cfg.Self] != 77 {
		t.Errorf("settled, they know %v", want)
	}
	for _, s := range s {
		if fmt.Sprint(s.knows()) != fmt.Sprint(want) || s.knows()[s.cfg.Self] != s.own.ShortID {
			t.Errorf("%s knows %v, the first %v", s.cfg.Self, s.knows(), want)
		}
	}
}

func TestShortIDStaysWhenTheFirstChoiceBecomesFree(t *testing.T) {
	s := rivals(t, 2, 77)
	settle(t, s...)
	second := s[1].own.ShortID
	// The winner changes to another id, and then leaves.
	s[0].shortID = second%MaxShortID + 1
	s[0].SetLinks([]Link{{To: s[1].cfg.Self, Flags: LinkData}})
	if moves := settle(t, s...); moves != 0 {
		t.Errorf("%d moves although no id was contested", moves)
	}
	s[1].Expire(epoch)
	if gone, _ := s[1].Expire(epoch.Add(ForgetAfter)); len(gone) != 1 {
		t.Fatalf("forgot %v", gone)
	}
	if s[1].SettleShortID() != nil || s[1].own.ShortID != second {
		t.Errorf("%d became %d without need", second, s[1].own.ShortID)
	}
	if got := s[1].knows(); len(got) != 1 {
		t.Errorf("ids of forgotten peers are known: %v", got)
	}
}

// A rival that is gone at the time of the choice has no effect.
func TestShortIDStaysWhenTheRivalMovedMeanwhile(t *testing.T) {
	s := rivals(t, 2, 77)
	exchange(t, s...)
	s[0].shortID = 78
	s[0].SetLinks([]Link{{To: s[1].cfg.Self}})
	exchange(t, s...)
	if s[1].SettleShortID() != nil || s[1].own.ShortID != 77 {
		t.Error("the id changed without a rival")
	}
}

func TestRestartedPeerKeepsShortIDWhenItMeetsItsOldEntry(t *testing.T) {
	old := claim(t, 1, 500)
	other := claim(t, 2, 600)
	settle(t, old, other)
	again := relaunch(t, 1, 501, 2)
	settle(t, again, other)
	if got := other.knows()[again.cfg.Self]; got != 501 || again.own.ShortID != 501 {
		t.Errorf("the mesh knows %d, the peer claims %d; want 501", got, again.own.ShortID)
	}
}

func TestOlderPeersHaveNoShortID(t *testing.T) {
	id := identity(t, 2)
	s := claim(t, 1, 77)
	raw := withTail(&Entry{Name: id.Name, Key: id.Key(), Version: 5, Nickname: "old", Links: meet(s, id.Name)}, id, nil)
	if news, err := s.Merge(id.Name, raw); err != nil || !bytes.Equal(news, raw) {
		t.Fatalf("news %x, %v; want the entry as it came", news, err)
	}
	if e := s.Entry(id.Name); e.ShortID != 0 || e.Nickname != "old" {
		t.Errorf("read as %+v", e)
	}
	if got := s.knows(); len(got) != 1 || got[s.cfg.Self] != 77 {
		t.Errorf("known: %v", got)
	}
}

func TestUnknownFieldsAfterTheShortIDAreKept(t *testing.T) {
	id := identity(t, 2)
	s := claim(t, 1, 77)
	raw := withTail(&Entry{Name: id.Name, Key: id.Key(), Version: 5, Links: meet(s, id.Name)}, id, []byte{0, 9, 1, 2, 3})
	if news, err := s.Merge(id.Name, raw); err != nil || !bytes.Equal(news, raw) {
		t.Fatalf("news %x, %v; want the entry as it came", news, err)
	}
	if got := s.knows()[id.Name]; got != 9 {
		t.Errorf("short id %d, want 9", got)
	}
}

// An invalid short id must neither end the sessions of older peers, which pass it on
// unread, nor block the other entries of a delta.
func TestInvalidShortIDIsRefusedAlone(t *testing.T) {
	for _, c := range []struct {
		tail []byte
		says string
	}{{[]byte{7}, "one byte"}, {[]byte{0x10, 0}, "4096"}, {[]byte{0xff, 0xff, 1}, "65535"}} {
		bad, good := identity(t, 2), claim(t, 3, 5)
		raw := withTail(&Entry{Name: bad.Name, Key: bad.Key(), Version: 5}, bad, c.tail)
		s := claim(t, 1, 77)
		good.SetLinks(meet(s, good.cfg.Self))
		news, err := s.Merge(good.cfg.Self, slices.Concat(raw, good.own.raw))
		if err != nil || !bytes.Equal(news, good.own.raw) {
			t.Fatalf("%x: news %x, %v; want the good entry", c.tail, news, err)
		}
		r := s.Refused()
		if len(r) != 1 || r[0].Owner != bad.Name || !errors.Is(r[0].Cause, errShortID) || !strings.Contains(r[0].Cause.Error(), "short id: "+c.says) {
			t.Errorf("%x: refusals %v", c.tail, r)
		}
		if s.Entry(bad.Name) != nil {
			t.Errorf("%x: merged", c.tail)
		}
	}
}

// Despite losses each peer gets an id and all agree: with spare ids (sim_test.go has a
// thousand peers with all ids), with exactly enough, and with too few.
func TestShortIDsConverge(t *testing.T) {
	t.Parallel()
	first := seed.New(t)
	for _, c := range []struct {
		peers int
		ids   uint16
	}{{300, MaxShortID}, {300, 300}, {80, 50}} {
		w := newSimWithIDs(t, first, c.peers, 4, 0.2, c.ids)
		was := make([]uint16, c.peers)
		for i, n := range w.nodes {
			was[i] = n.own.ShortID
		}
		secs := w.converge(t)
		moved, versions := 0, uint64(0)
		for i, n := range w.nodes {
			if n.own.ShortID != was[i] {
				moved++
			}
			versions = max(versions, n.own.Version-uint64(epoch.UnixMicro()))
		}
		ids := w.shortIDs(t)
		t.Logf("%d peers, %d ids: %d s, %d peers moved, at most %d versions of an entry", c.peers, c.ids, secs, moved, versions)
		if want := min(c.peers, int(c.ids)); len(ids) != want {
			t.Errorf("%d peers, %d ids: %d have one, want %d", c.peers, c.ids, len(ids), want)
		}
	}
}

// If a peer leaves a mesh without free ids, one waiting peer gets its id. The others do
// nothing.
func TestOneFreeShortIDMovesOnePeer(t *testing.T) {
	w := newSimWithIDs(t, seed.New(t), 60, 8, 0, 50)
	w.converge(t)
	before := w.shortIDs(t)
	var leaves int
	for leaves = 0; before[simName(leaves)] == 0; leaves++ {
	}
	w.kill(leaves)
	w.converge(t)
	for i, n := range w.nodes {
		if i != leaves {
			n.Expire(w.now)
		}
	}
	w.now = w.now.Add(ForgetAfter)
	said := make(map[int]uint64)
	for i, n := range w.nodes {
		if i != leaves {
			n.Expire(w.now)
			said[i] = n.own.Version
		}
	}
	w.converge(t)
	after := w.shortIDs(t)
	moved := 0
	for i, n := range w.nodes {
		if i != leaves && n.own.Version != said[i] {
			moved++
		}
	}
	if free := before[simName(leaves)]; moved != 1 || len(after) != 50 {
		t.Errorf("%d peers moved when id %d became free, %d have one", moved, free, len(after))
	}
}

// Five thousand peers start at once, and each knows all entries before it chooses again.
// The ids run out, few choices are needed, and then no peer chooses any more.
func TestFiveThousandPeersSettleInFewChoices(t *testing.T) {
	t.Parallel()
	for _, n := range []int{4000, MaxShortID, 5000} {
		all := make([]*Entry, n)
		for i := range all {
			name := simName(i)
			all[i] = &Entry{Name: name, ShortID: probe(name, 0, MaxShortID), hasShortID: true}
		}
		rounds, choices := 0, 0
		for changed := true; changed; rounds++ {
			if rounds > 40 {
				t.Fatalf("%d peers still choose after %d rounds", n, rounds)
			}
			changed = false
			ids, _ := shortIDs(all)
			next := slices.Clone(all)
			for i, e := range all {
				if e.ShortID != 0 && ids[e.Name] == e.ShortID && i%100 > 0 {
					continue // it has its id and keeps it, which is checked for one in a hundred
				}
				if id := nextShortID(e, all, MaxShortID); id != e.ShortID {
					next[i] = &Entry{Name: e.Name, ShortID: id, hasShortID: true}
					changed = true
					choices++
				}
			}
			all = next
		}
		ids, names := shortIDs(all)
		t.Logf("%d peers: %d choices in %d rounds", n, choices, rounds)
		if want := min(n, MaxShortID); len(ids) != want || len(names) != want || choices > 2*n {
			t.Errorf("%d peers: %d have an id after %d choices, want %d after at most %d", n, len(ids), choices, want, 2*n)
		}
		for _, e := range all {
			if e.ShortID != ids[e.Name] {
				t.Fatalf("%s claims %d, others know %d", e.Name, e.ShortID, ids[e.Name])
			}
		}
	}
}
