package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

var whole = netip.MustParsePrefix("10.32.0.0/12")

func signer(i int) peer.Cheap {
	return peer.Cheap{ID: peer.Key{byte(i), byte(i >> 8), byte(i >> 16), 1}}
}

func name(i int) peer.Name { return peer.Name{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

func holder(i int) Holder { return HolderOf(name(i), signer(i).Key()) }

// numberOf is the inverse of holder.
func numberOf(h Holder) int { return int(h.Name[3])<<16 | int(h.Name[4])<<8 | int(h.Name[5]) }

func holders(from, to int) (out []Holder) {
	for i := from; i < to; i++ {
		out = append(out, holder(i))
	}
	return out
}

// founded returns the genesis of the peers from 0 to n-1, signed by all of them.
func founded(t testing.TB, addrRange netip.Prefix, n int) *Genesis {
	g, err := NewGenesis(addrRange, holders(0, n))
	if err != nil {
		t.Fatal(err)
	}
	var votes []Vote
	for _, h := range g.Voters() {
		v, ok := g.Sign(signer(numberOf(h)), h)
		if !ok {
			t.Fatal(h)
		}
		votes = append(votes, v)
	}
	return g.WithVotes(votes)
}

func newRing(t testing.TB, n int) *Ring {
	r := New(whole, peer.Cheap{}, nil)
	if _, err := r.Start(founded(t, whole, n)); err != nil {
		t.Fatal(err)
	}
	return r
}

// signed returns the decision of actions, signed by the first voters that are a quorum.
func signed(r *Ring, actions ...*Action) []byte {
	return signedBy(r, Quorum(len(r.Voters())), actions...)
}

func signedBy(r *Ring, n int, actions ...*Action) []byte {
	body := r.Body(actions)
	if body == nil {
		return nil
	}
	var votes []Vote
	for i, h := range r.Voters()[:n] {
		s := signer(numberOf(h))
		votes = append(votes, Vote{i, s.Key(), s.Sign(VoteDomain, VoteMessage(r.Genesis().ID(), r.Slot()+1, 0, BodyID(body)))})
	}
	return NewDecision(body, 0, votes)
}

func decide(t testing.TB, r *Ring, actions ...*Action) Outcome {
	t.Helper()
	out, err := r.Decide(signed(r, actions...))
	if err != nil || len(out.Refused) > 0 {
		t.Fatal(err, out.Refused)
	}
	return out
}

func gift(t testing.TB, r *Ring, from, to int, rng addr.Range) *Action {
	t.Helper()
	a, err := r.Give(signer(from), holder(from), holder(to), rng)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func rangeOf(s string) addr.Range { return addr.Of(netip.MustParsePrefix(s)) }

func TestOwnersFollowDecisions(t *testing.T) {
	r := newRing(t, 4)
	decide(t, r, gift(t, r, 0, 9, rangeOf("10.32.1.0/24")))
	if h, ok := r.Owner(netip.MustParseAddr("10.32.1.7")); !ok || h != holder(9) {
		t.Errorf("owner %s", h)
	}
	decide(t, r, &Action{Kind: Remove, From: holder(0), To: holder(1)})
	if h, _ := r.Owner(netip.MustParseAddr("10.32.2.1")); h != holder(1) {
		t.Errorf("owner %s after the removal", h)
	}
	if h, _ := r.Owner(netip.MustParseAddr("10.32.1.7")); h != holder(9) {
		t.Errorf("the removal took what was given before: %s", h)
	}
	if slices.Contains(r.Voters(), holder(0)) {
		t.Error("a removed peer has a vote")
	}
	decide(t, r, &Action{Kind: Ban, From: holder(9), To: holder(2)})
	if !r.IsBanned(holder(9)) || len(r.Owned(holder(9))) > 0 {
		t.Error("a banned peer owns something")
	}
	if _, err := r.Give(signer(1), holder(1), holder(9), rangeOf("10.32.2.0/24")); !errors.Is(err, ErrState) {
		t.Errorf("a banned peer is given a range: %v", err)
	}
	decide(t, r, &Action{Kind: Unban, From: holder(9)})
	decide(t, r, gift(t, r, 1, 9, rangeOf("10.32.2.0/24")))
	sum := addr.Count{}
	for _, e := range r.Entries() {
		sum = sum.Add(e.Range.Size())
	}
	if sum != addr.Of(whole).Size() {
		t.Errorf("the entries have %s addresses", sum)
	}
}

// Each decision here is one that a liar could send. All copies refuse it.
func TestDecisionsWithoutAuthorityAreRefused(t *testing.T) {
	r := newRing(t, 5)
	mine := gift(t, r, 0, 9, rangeOf("10.32.1.0/24"))
	theft := &Action{Kind: Transfer, Range: addr.Single(r.Owned(holder(1))[0].First), From: holder(1), To: holder(9), AsOf: r.Slot()}
	theft.sign(r.Genesis().ID(), signer(9))
	other := newRing(t, 5)
	if _, err := other.Start(founded(t, whole, 5)); err != nil {
		t.Fatal(err)
	}
	strangers := func(d []byte) []byte { // the votes are those of peers without a vote
		parsed, err := ParseDecision(d)
		if err != nil {
			t.Fatal(err)
		}
		for i := range parsed.Votes {
			s := signer(100 + i)
			parsed.Votes[i].Key = s.Key()
			parsed.Votes[i].Sig = s.Sign(VoteDomain, VoteMessage(r.Genesis().ID(), parsed.Slot, 0, parsed.id))
		}
		return NewDecision(r.Body([]*Action{mine}), 0, parsed.Votes)
	}
	twice := func(d []byte) []byte { // one voter votes twice
		parsed, _ := ParseDecision(d)
		parsed.Votes[1] = parsed.Votes[0]
		return NewDecision(r.Body([]*Action{mine}), 0, parsed.Votes)
	}
	before := r.Digest()
	for what, d := range map[string][]byte{
		"too few votes":        signedBy(r, Quorum(5)-1, mine),
		"votes of strangers":   strangers(signed(r, mine)),
		"a vote counted twice": twice(signed(r, mine)),
		"another round":        NewDecision(r.Body([]*Action{mine}), 1, mustVotes(t, signed(r, mine))),
	} {
		if _, err := r.Decide(d); err == nil || !bytes.Equal(before, r.Digest()) {
			t.Errorf("%s: accepted", what)
		}
	}
	if body := r.Body([]*Action{theft}); body != nil {
		t.Error("a transfer that its giver did not sign fits the ring")
	}
	// A liar among the voters that proposes it all the same is not followed.
	forged := r.st.bodyHeader()
	raw := theft.Encode()
	forged[34] = 1
	forged = append(append(forged, 0, byte(len(raw))), raw...)
	if _, err := r.CheckBody(forged); !errors.Is(err, ErrSignature) {
		t.Errorf("CheckBody: %v", err)
	}
}

func mustVotes(t *testing.T, d []byte) []Vote {
	parsed, err := ParseDecision(d)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Votes
}

// A signature moves a range once: not twice, not again after it came back, and not after
// its signer revoked it or its receiver left.
func TestTransferCannotBeRepeated(t *testing.T) {
	r := newRing(t, 4)
	rng := rangeOf("10.32.1.0/24")
	first, second := gift(t, r, 0, 8, rng), gift(t, r, 0, 9, rng)
	decide(t, r, first, second) // the second has no effect
	if h, _ := r.Owner(rng.First); h != holder(8) {
		t.Errorf("owner %s", h)
	}
	for _, a := range []*Action{first, second} {
		if err := r.Check(a); !errors.Is(err, ErrState) {
			t.Errorf("again: %v", err)
		}
	}
	decide(t, r, gift(t, r, 8, 0, rng))
	if err := r.Check(first); !errors.Is(err, ErrState) {
		t.Errorf("after it came back: %v", err)
	}
	offer := gift(t, r, 0, 8, rng)
	decide(t, r, gift(t, r, 0, 0, rng))
	if err := r.Check(offer); !errors.Is(err, ErrState) {
		t.Errorf("after it was revoked: %v", err)
	}
	decide(t, r, gift(t, r, 1, 8, rangeOf("10.36.0.0/24")))
	offer = gift(t, r, 0, 8, rng)
	decide(t, r, &Action{Kind: Remove, From: holder(8), To: holder(1)})
	if err := r.Check(offer); !errors.Is(err, ErrState) {
		t.Errorf("after its receiver was removed: %v", err)
	}
	later := gift(t, r, 0, 8, rng)
	later.AsOf++
	later.sign(r.Genesis().ID(), signer(0))
	if err := r.Check(later); !errors.Is(err, ErrState) {
		t.Errorf("as of a slot that is not decided: %v", err)
	}
}

func TestQuorumsShareAnHonestVoter(t *testing.T) {
	for n := 1; n <= MaxVoters; n++ {
		q, liars := Quorum(n), Liars(n)
		if 2*q-n <= liars {
			t.Errorf("%d voters: two quorums of %d share %d, of which %d may lie", n, q, 2*q-n, liars)
		}
		if q > n-liars {
			t.Errorf("%d voters: %d silent liars leave no quorum of %d", n, liars, q)
		}
	}
}

func TestNamesAreNotEnough(t *testing.T) {
	r := newRing(t, 3)
	impostor := HolderOf(name(0), signer(77).Key())
	if _, err := r.Give(signer(77), impostor, holder(9), rangeOf("10.32.1.0/24")); !errors.Is(err, ErrState) {
		t.Errorf("another key under the name of an owner gives its range: %v", err)
	}
	a := &Action{Kind: Transfer, Range: rangeOf("10.32.1.0/24"), From: holder(0), To: holder(9), AsOf: r.Slot()}
	a.sign(r.Genesis().ID(), signer(77))
	if err := r.Check(a); !errors.Is(err, ErrSignature) {
		t.Errorf("another key signs for an owner: %v", err)
	}
	// A derived name in a record has its own key, or the record is malformed.
	id, err := peer.IdentityFromSeed(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	b := Holder{Name: id.Name, Key: peer.KeyID{1}}.Append([]byte{byte(Unban)})
	if _, err := ParseAction(b); !errors.Is(err, ErrFormat) {
		t.Errorf("a derived name with another key: %v", err)
	}
}

// sync brings two copies together as gossip does.
func sync(t testing.TB, a, b *Ring) {
	t.Helper()
	for range 4 {
		for _, p := range [][2]*Ring{{a, b}, {b, a}} {
			deltas, _, err := p[0].Missing(p[1].Digest())
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range deltas {
				if _, err := p[1].Merge(d); err != nil && !errors.Is(err, ErrEarly) {
					t.Fatal(err)
				}
			}
		}
	}
	if !bytes.Equal(a.Digest(), b.Digest()) {
		t.Fatalf("slots %d and %d after a synchronisation", a.Slot(), b.Slot())
	}
}

// random returns an action that fits r, nil if the dice want none.
func random(r *Ring, rng *rand.Rand, fresh *int) *Action {
	entries := r.Entries()
	e := entries[rng.IntN(len(entries))]
	from := numberOf(e.Owner)
	var a *Action
	switch k := rng.IntN(12); {
	case k < 7:
		*fresh++
		a, _ = r.Give(signer(from), e.Owner, holder(*fresh), addr.Of(e.Range.Block(e.Range.Size().Half())))
	case k < 9:
		a = r.Leaving(signer(from), e.Owner, entries[rng.IntN(len(entries))].Owner)
		r.SignAsHeir(signer(numberOf(a.To)), a)
	case k == 9:
		a = &Action{Kind: Remove, From: e.Owner, To: entries[rng.IntN(len(entries))].Owner}
	case k == 10:
		voters := slices.Clone(r.Voters())
		if !slices.Contains(voters, e.Owner) && len(voters) < MaxVoters {
			voters = append(voters, e.Owner)
			slices.SortFunc(voters, Holder.Compare)
		}
		a = &Action{Kind: Voters, Voters: voters}
	case k == 11:
		a = r.NextSnapshot()
	}
	if a.From == a.To && (a.Kind == Leave || a.Kind == Remove) || r.Check(a) != nil {
		return nil
	}
	return a
}

// Copies that get the decisions in any order, several times, with losses, from disk or
// from a snapshot become equal.
func TestCopiesBecomeEqual(t *testing.T) {
	first := seed.New(t)
	for s := first; s < first+30; s++ {
		rng := rand.New(rand.NewPCG(s, 1))
		r := newRing(t, 1+rng.IntN(6))
		fresh := 100
		copies := []*Ring{newRing(t, len(r.Voters())), newRing(t, len(r.Voters()))}
		var news [][]byte
		for range 200 {
			if a := random(r, rng, &fresh); a != nil {
				news = append(news, decide(t, r, a).News)
			}
			if len(news) > 0 {
				c := copies[rng.IntN(len(copies))]
				_, _ = c.Merge(news[max(0, len(news)-1-rng.IntN(6))])
			}
			if rng.IntN(40) == 0 {
				sync(t, r, copies[0])
			}
		}
		fromNothing := New(whole, peer.Cheap{}, nil)
		fromDisk := New(whole, peer.Cheap{}, nil)
		if errs := fromDisk.Restore(r.Dump()); len(errs) > 0 {
			t.Fatalf("seed %d: %v", s, errs)
		}
		if !bytes.Equal(fromDisk.Digest(), r.Digest()) {
			t.Fatalf("seed %d: slot %d from disk, want %d", s, fromDisk.Slot(), r.Slot())
		}
		for _, c := range append(copies, fromNothing, fromDisk) {
			sync(t, r, c)
			if !slices.Equal(c.Entries(), r.Entries()) || !slices.Equal(c.Voters(), r.Voters()) {
				t.Fatalf("seed %d: copies with one digest differ", s)
			}
		}
	}
}

// A thousand hosts, of which twenty are replaced each day for a year (ten years with
// WEFT_SOAK): the copy stays small, and loads in less than a second.
func TestYearsOfChurn(t *testing.T) {
	const hosts, daily = 1000, 20
	days := 365
	if os.Getenv("WEFT_SOAK") != "" {
		days = 3650
	}
	r := newRing(t, 21)
	rng := rand.New(rand.NewPCG(1, 1))
	fresh := 1000
	for len(r.Owners()) < hosts {
		decide(t, r, halves(r, rng, 100, &fresh)...)
	}
	for day := range days {
		var leave []*Action
		owners := r.Entries()
		for range daily {
			from, to := owners[rng.IntN(len(owners))].Owner, owners[rng.IntN(len(owners))].Owner
			if from == to || slices.Contains(r.Voters(), from) {
				continue
			}
			leave = append(leave, &Action{Kind: Remove, From: from, To: to})
		}
		decide(t, r, leave...)
		decide(t, r, halves(r, rng, len(leave), &fresh)...)
		if tail, snapshot := r.TailSize(); tail > max(256<<10, 2*snapshot) {
			decide(t, r, r.NextSnapshot())
		}
		if day%30 == 0 { // the hosts with a vote are replaced too
			voters := slices.Clone(r.Voters())
			voters[rng.IntN(len(voters))] = owners[rng.IntN(len(owners))].Owner
			slices.SortFunc(voters, Holder.Compare)
			if a := (&Action{Kind: Voters, Voters: slices.Compact(voters)}); r.Check(a) == nil {
				decide(t, r, a)
			}
		}
	}
	size := 0
	stored := r.Dump()
	for k, v := range stored {
		size += len(k) + len(v)
	}
	c := New(whole, peer.Cheap{}, nil)
	if errs := c.Restore(stored); len(errs) > 0 || !bytes.Equal(c.Digest(), r.Digest()) {
		t.Fatal(errs)
	}
	t.Logf("%d decisions, %d owners, %d ranges: %d bytes, %d records", r.Slot(), len(r.Owners()), len(r.Entries()), size, len(stored))
	// A decision on disk costs one check of signatures at launch.
	if size > 1_000_000 || 3*len(stored) > int(r.Slot()) {
		t.Errorf("%d records with %d bytes are kept of %d decisions", len(stored), size, r.Slot())
	}
	sync(t, r, New(whole, peer.Cheap{}, nil))
}

// halves returns n gifts of half of a random range to a new peer.
func halves(r *Ring, rng *rand.Rand, n int, fresh *int) (out []*Action) {
	entries := r.Entries()
	for range n {
		e := entries[rng.IntN(len(entries))]
		*fresh++
		a, err := r.Give(signer(numberOf(e.Owner)), e.Owner, holder(*fresh), addr.Of(e.Range.Block(e.Range.Size().Half())))
		if err == nil {
			out = append(out, a)
		}
	}
	return out
}

// A peer that was away while decisions were dropped checks the snapshot by the changes of
// the voters that it missed; one that has only the genesis does so too.
func TestSnapshotIsCheckedByTheVotersBeforeIt(t *testing.T) {
	r := newRing(t, 4)
	away := newRing(t, 4)
	for i := range 6 {
		decide(t, r, gift(t, r, 0, 20+i, addr.Of(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(i), 0}), 24))))
		voters := append(slices.Clone(r.Voters()), holder(20+i))
		slices.SortFunc(voters, Holder.Compare)
		decide(t, r, &Action{Kind: Voters, Voters: voters[1:]})
	}
	decide(t, r, r.NextSnapshot())
	decide(t, r, gift(t, r, 1, 50, rangeOf("10.36.0.0/24")))
	sync(t, r, away)

	// A made-up snapshot by voters of a liar's choice is not believed.
	liar := newRing(t, 4)
	liar.st.voters = []Holder{holder(66)}
	decideAs(t, liar, 66, liar.NextSnapshot())
	honest := newRing(t, 4)
	decide(t, honest, gift(t, honest, 0, 9, rangeOf("10.32.1.0/24")))
	victim := newRing(t, 4)
	for _, d := range liar.Since(0) {
		_, _ = victim.Merge(d)
	}
	if victim.Slot() != 0 || slices.Contains(victim.Voters(), holder(66)) {
		t.Errorf("slot %d, voters %v", victim.Slot(), victim.Voters())
	}
	sync(t, honest, victim)
}

// A peer that the user named shows a new host a snapshot of a slot far ahead, of which it
// has no parts. The host takes the snapshot of an honest peer all the same, and does not
// call what that one sends malformed.
func TestMadeUpSnapshotDoesNotBlockTheTrueOne(t *testing.T) {
	r := newRing(t, 4)
	for i := range maxLineage + 6 { // more changes of the voters than a copy keeps
		decide(t, r, gift(t, r, 0, 20+i, addr.Of(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)}), 32))))
		voters := append(slices.Clone(r.Voters()), holder(20+i))
		slices.SortFunc(voters, Holder.Compare)
		decide(t, r, &Action{Kind: Voters, Voters: voters[1:]})
	}
	decide(t, r, r.NextSnapshot())
	victim := newRing(t, 4)
	for _, slot := range []uint64{r.Slot(), maxSlot - 1} {
		lie := &Decision{Slot: slot, Actions: []*Action{{Kind: Snapshot, Parts: []ID{{1}}}}}
		raw := encodeDecision(lie)
		victim.Trust()
		_, _ = victim.Merge(appendRecord(newDelta(victim.Genesis().ID()), raw))
	}
	deltas, _, err := r.Missing(victim.Digest())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range deltas {
		victim.Trust()
		if _, err := victim.Merge(d); errors.Is(err, ErrFormat) {
			t.Errorf("an honest delta is called malformed: %v", err)
		}
	}
	if victim.Slot() != r.Slot() {
		t.Errorf("slot %d, want %d", victim.Slot(), r.Slot())
	}
}

// encodeDecision encodes a decision that nobody voted for.
func encodeDecision(d *Decision) []byte {
	b := binary.BigEndian.AppendUint64([]byte{kindDecision}, d.Slot)
	b = append(b, d.Prev[:]...)
	b = binary.BigEndian.AppendUint64(b, d.Since)
	b = binary.BigEndian.AppendUint16(b, uint16(len(d.Actions)))
	for _, a := range d.Actions {
		b = binary.BigEndian.AppendUint16(b, uint16(len(a.Encode())))
		b = append(b, a.Encode()...)
	}
	return NewDecision(b, 0, nil)
}

func decideAs(t testing.TB, r *Ring, who int, a *Action) {
	t.Helper()
	body := r.Body([]*Action{a})
	s := signer(who)
	v := Vote{0, s.Key(), s.Sign(VoteDomain, VoteMessage(r.Genesis().ID(), r.Slot()+1, 0, BodyID(body)))}
	if _, err := r.Decide(NewDecision(body, 0, []Vote{v})); err != nil {
		t.Fatal(err)
	}
}

func TestAdoptionAndTheWayBack(t *testing.T) {
	a := newRing(t, 3)
	g, err := NewGenesis(whole, holders(40, 43))
	if err != nil {
		t.Fatal(err)
	}
	var votes []Vote
	for _, h := range g.Voters() {
		v, _ := g.Sign(signer(numberOf(h)), h)
		votes = append(votes, v)
	}
	if err := a.Check(&Action{Kind: Adopt, Genesis: g}); !errors.Is(err, ErrVotes) {
		t.Errorf("a genesis that nobody signed: %v", err)
	}
	old := a.Genesis().ID()
	decide(t, a, &Action{Kind: Adopt, Genesis: g.WithVotes(votes)})
	if a.Genesis().ID() != g.ID() || !a.Left(old) {
		t.Fatalf("ring %s", a.Genesis().ID())
	}
	// A peer of the old ring hears of the decision from one that has left it.
	late := newRing(t, 3)
	sync(t, a, late)
	if late.Genesis().ID() != g.ID() {
		t.Errorf("the late peer has ring %s", late.Genesis().ID())
	}
	// Its operator goes back, and stays there over a restart.
	if err := late.Follow(old); err != nil {
		t.Fatal(err)
	}
	again := New(whole, peer.Cheap{}, nil)
	if errs := again.Restore(late.Dump()); len(errs) > 0 || !again.Ready() || again.Genesis().ID() != old {
		t.Errorf("%v, ring %v", errs, again.Genesis())
	}
}

func TestDamagedRecordsOnDiskAreReported(t *testing.T) {
	r := newRing(t, 4)
	for i := range 5 {
		decide(t, r, gift(t, r, 0, 20+i, addr.Of(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(i), 0}), 24))))
	}
	stored := r.Dump()
	for k, v := range stored {
		if slotOf(v) == 4 {
			v = bytes.Clone(v)
			v[len(v)-1]++
			stored[k] = v
		}
	}
	c := New(whole, peer.Cheap{}, nil)
	if errs := c.Restore(stored); len(errs) == 0 || c.Slot() != 3 {
		t.Errorf("slot %d, %v", c.Slot(), errs)
	}
	sync(t, r, c) // the rest comes from other peers
}

func FuzzMerge(f *testing.F) {
	r := newRing(f, 4)
	decide(f, r, gift(f, r, 0, 9, rangeOf("10.32.1.0/24")))
	decide(f, r, r.NextSnapshot())
	for _, d := range r.st.since(0, true) {
		f.Add(d)
	}
	f.Add(r.Digest())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range []*Ring{newRing(t, 4), New(whole, peer.Cheap{}, nil)} {
			before := c.Digest()
			out, err := c.Merge(b)
			if err != nil && !out.Changed && !bytes.Equal(before, c.Digest()) {
				t.Fatal("changed on error")
			}
			if out.News != nil {
				if again, _ := c.Merge(out.News); again.Changed {
					t.Fatal("the news are new a second time")
				}
			}
			if len(c.early) > maxEarly {
				t.Fatal(len(c.early))
			}
			_, _, _ = c.Missing(b)
			_ = Join(b, b)
		}
	})
}

// Each state has one encoding, so that equal states have equal parts.
func TestSnapshotWithAnOwnerOfNothingIsRefused(t *testing.T) {
	r := newRing(t, 4)
	b := slices.Concat(r.st.encode()...)
	if _, err := decodeState(r.Genesis(), [][]byte{b}); err != nil {
		t.Fatal(err)
	}
	at := 1 + 16 + 8 + 16 + 8 + 4 + len(r.st.voters)*holderLen + 4 + 4 // of the number of owners, as nobody is banned or departed
	owners := binary.BigEndian.Uint32(b[at:])
	binary.BigEndian.PutUint32(b[at:], owners+1)
	more := slices.Insert(slices.Clone(b), at+4+int(owners)*holderLen, bytes.Repeat([]byte{0xfe}, holderLen)...)
	if _, err := decodeState(r.Genesis(), [][]byte{more}); err == nil {
		t.Error("it was taken")
	}
}

func FuzzRecords(f *testing.F) {
	r := newRing(f, 4)
	f.Add(gift(f, r, 0, 9, rangeOf("10.32.1.0/24")).Encode())
	f.Add((&Action{Kind: Adopt, Genesis: founded(f, whole, 2)}).Encode())
	f.Add(signed(r, gift(f, r, 0, 9, rangeOf("10.32.1.0/24"))))
	f.Add(r.Genesis().raw)
	f.Add(r.st.encode()[0])
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAction(b); err == nil {
			a.raw = nil
			if !bytes.Equal(a.Encode(), b) {
				t.Fatalf("action does not round trip: %x", b)
			}
			_ = r.Check(a)
		}
		if g, err := ParseGenesis(b); err == nil && !bytes.Equal(g.raw, b) {
			t.Fatal("genesis does not round trip")
		}
		if d, err := ParseDecision(b); err == nil && d.Slot == 0 {
			t.Fatal("slot 0")
		}
		if st, err := decodeState(r.Genesis(), [][]byte{b}); err == nil && !bytes.Equal(slices.Concat(st.encode()...), b) {
			t.Fatal("state does not round trip")
		}
	})
}

func ExampleQuorum() {
	fmt.Println(Quorum(1), Quorum(3), Quorum(5), Quorum(MaxVoters))
	// Output: 1 2 4 14
}
