package ring

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/mesh/peer"
)

func owner(t *testing.T, r *Ring, a string) Holder {
	t.Helper()
	h, ok := r.Owner(ip4(0).Next().Prev())
	if a != "" {
		h, ok = r.Owner(must(parse(a)))
	}
	if !ok {
		t.Fatalf("no owner of %s", a)
	}
	return h
}

func TestGenesisIsTheSameForAll(t *testing.T) {
	a := must(NewGenesis(pfx("10.32.0.0/12"), []peer.Name{name(2), name(0), name(1), name(0)}))
	b := must(NewGenesis(pfx("10.32.0.0/12"), names(3)))
	if a.ID() != b.ID() {
		t.Error("the order of the peers matters")
	}
	c := must(NewGenesis(pfx("10.32.0.0/12"), names(4)))
	if a.ID() == c.ID() {
		t.Error("other peers, same ring")
	}
}

func TestGiveAndProof(t *testing.T) {
	for _, addrRange := range []string{"10.0.0.0/24", "255.255.255.0/24", "fd00::/16"} {
		r := started(addrRange, 2)
		mine := r.Owned(name(0))[0]
		block := addr.Of(mine.Block(addr.N(16)))
		must(r.Give(signer(0), name(0), name(5), block))
		out := must(r.Give(signer(5), name(5), name(6), addr.Single(block.Last)))
		if h, _ := r.Owner(block.Last); h.Name != name(6) {
			t.Errorf("%s: owner is %s", addrRange, h)
		}
		if _, err := r.Give(signer(5), name(5), name(6), block); err == nil || !strings.Contains(err.Error(), name(6).String()) {
			t.Errorf("%s: gave what it does not own: %v", addrRange, err)
		}
		// The record alone proves nothing; Proof has the records that do.
		alone := New(pfx(addrRange), peer.Cheap{})
		must(alone.Start(r.Genesis()))
		var refused *RefusedError
		if _, err := alone.Merge(out.News); !errors.As(err, &refused) || !errors.Is(err, ErrAuthority) || refused.By.Name != name(5) {
			t.Errorf("%s: merged without proof: %v", addrRange, err)
		}
		if alone.Refused() != 1 {
			t.Errorf("%s: %d refused", addrRange, alone.Refused())
		}
		fresh := New(pfx(addrRange), peer.Cheap{})
		for _, d := range r.Proof(out.Records) {
			must(fresh.Merge(d))
		}
		if h, _ := fresh.Owner(block.Last); h.Name != name(6) {
			t.Errorf("%s: after the proof the owner is %s", addrRange, h)
		}
		if other := New(pfx("172.16.0.0/12"), peer.Cheap{}); true {
			if _, err := other.Start(r.Genesis()); !errors.Is(err, ErrRange) {
				t.Errorf("%s: started over another address range: %v", addrRange, err)
			}
		}
	}
}

func TestForgedGrantIsRefused(t *testing.T) {
	r := started("10.0.0.0/24", 2)
	block := addr.Of(r.Owned(name(0))[0].Block(addr.N(16)))
	must(r.Give(signer(0), name(0), name(1), block))
	before := r.Digest()
	// Peer 3 signs as peer 0, whose key is already known.
	g := &Grant{Range: r.Owned(name(0))[0], Version: 5, From: Holder{Name: name(0)}, To: Holder{Name: name(3)}}
	g.sign(r.Genesis().ID(), signer(3))
	if _, err := r.Merge(appendRecord(newDelta(r.Genesis().ID()), g.raw)); !errors.Is(err, peer.ErrNameTaken) {
		t.Errorf("another key: %v", err)
	}
	g.sign(r.Genesis().ID(), signer(0))
	g.raw[len(g.raw)-64]++
	if _, err := r.Merge(appendRecord(newDelta(r.Genesis().ID()), g.raw)); !errors.Is(err, ErrSignature) {
		t.Errorf("broken signature: %v", err)
	}
	if !bytes.Equal(before, r.Digest()) {
		t.Error("a refused record changed the ring")
	}
}

// The good records of a delta are accepted although another one is bad.
func TestGoodRecordsOfAPartlyBadDeltaAreAccepted(t *testing.T) {
	r := started("10.0.0.0/24", 2)
	twin := started("10.0.0.0/24", 2)
	out := must(twin.Give(signer(0), name(0), name(3), addr.Of(twin.Owned(name(0))[0].Block(addr.N(4)))))
	lie := &Grant{Range: r.Owned(name(1))[0], Version: 9, From: Holder{Name: name(4)}, To: Holder{Name: name(4)}}
	lie.sign(r.Genesis().ID(), signer(4))
	got, err := r.Merge(appendRecord(bytes.Clone(out.News), lie.raw))
	if err != nil || !bytes.Equal(got.News, out.News) || len(got.Refused) != 1 {
		t.Errorf("news %x, refused %v, %v", got.News, got.Refused, err)
	}
}

func TestEqualVersionsConvergeAndTheLoserIsCounted(t *testing.T) {
	a, b := started("10.0.0.0/24", 1), started("10.0.0.0/24", 1)
	whole := addr.Of(pfx("10.0.0.0/24"))
	out1 := must(a.Give(signer(0), name(0), name(1), whole))
	out2 := must(b.Give(signer(0), name(0), name(2), whole)) // forgot out1
	later := must(a.Give(signer(1), name(1), name(3), rng4(0, 9)))
	must(a.Merge(out2.News))
	must(b.Merge(out1.News))
	must(b.Merge(later.News))
	if !bytes.Equal(a.Digest(), b.Digest()) || owners(a) != owners(b) {
		t.Fatal("the copies do not agree on the owner")
	}
	if a.Conflicts()+b.Conflicts() == 0 {
		t.Error("no conflict was counted")
	}
}

func TestLeaveGivesAllAndFreesTheName(t *testing.T) {
	r := started("10.0.0.0/24", 2)
	must(r.Give(signer(0), name(0), name(1), rng4(3, 3)))
	lost := r.Owners()[Holder{Name: name(0)}]
	must(r.Leave(signer(0), name(0), name(7)))
	if got := r.Owners()[Holder{Name: name(7)}]; got != lost {
		t.Errorf("the heir has %v of %v", got, lost)
	}
	// It comes back under its name, with another key, and is given space.
	must(r.Give(signer(7), name(7), name(0), rng4(8, 15)))
	if h := owner(t, r, "10.0.0.9"); h != (Holder{name(0), 1}) {
		t.Errorf("owner is %s", h)
	}
	must(r.Give(signer(99), name(0), name(1), rng4(8, 8)))
	if _, err := r.Give(signer(0), name(0), name(1), rng4(9, 9)); !errors.Is(err, peer.ErrNameTaken) {
		t.Errorf("the old key can still sign: %v", err)
	}
	// A copy that starts late learns everything.
	late := New(r.Range(), peer.Cheap{})
	must(late.Merge(deltaOf(r)))
	if !bytes.Equal(late.Digest(), r.Digest()) {
		t.Error("a late copy differs")
	}
}

func voteFor(r *Ring, rm *Removal, b paxos.Ballot, voters ...int) (out []Vote) {
	for _, v := range voters {
		out = append(out, r.Vote(signer(v), r.Holder(name(v)), b, rm))
	}
	return out
}

func TestRemovalNeedsAMajorityOfOwners(t *testing.T) {
	r := started("10.0.0.0/22", 5)
	must(r.Give(signer(1), name(1), name(5), addr.Of(r.Owned(name(1))[0].Block(addr.N(8)))))
	rm := must(r.Propose(name(0), Holder{Name: name(9)}, names(1), nil))
	b := paxos.Ballot{Round: 1, Proposer: name(9)}
	if e := must(r.Electorate(rm)); len(e) != 5 {
		t.Fatalf("electorate %v", e)
	}
	for why, votes := range map[string][]Vote{
		"2 of 5":      voteFor(r, rm, b, 1, 2),
		"no vote":     voteFor(r, rm, b, 1, 2, 8),
		"votes twice": voteFor(r, rm, b, 1, 2, 2),
		"the dead":    voteFor(r, rm, b, 0, 1, 2),
	} {
		if _, err := r.Remove(rm, b, votes); err == nil {
			t.Errorf("%s: accepted", why)
		}
	}
	if _, err := r.Remove(rm, paxos.Ballot{Round: 2}, voteFor(r, rm, b, 1, 2, 5)); !errors.Is(err, ErrSignature) {
		t.Errorf("votes for another ballot: %v", err)
	}
	out := must(r.Remove(rm, b, voteFor(r, rm, b, 1, 2, 5)))
	if h := owner(t, r, "10.0.0.0"); h.Name != name(9) {
		t.Errorf("owner is %s", h)
	}
	// A copy that does not know the basis cannot check the removal. Proof has the
	// basis.
	other := started("10.0.0.0/22", 5)
	if _, err := other.Merge(out.News); !errors.Is(err, ErrBasis) {
		t.Errorf("without the basis: %v", err)
	}
	must(other.Merge(deltaOf(r)))
	if !bytes.Equal(other.Digest(), r.Digest()) {
		t.Error("copies differ")
	}
	// No peer can choose its own voters.
	cheat := must(r.Propose(name(2), Holder{Name: name(9)}, []peer.Name{name(2), name(1), name(3), name(4), name(5)}, nil))
	cheat.Named = []peer.Name{name(2)}
	if _, err := r.Remove(cheat, b, voteFor(r, cheat, b, 9)); !errors.Is(err, ErrVotes) {
		t.Errorf("one vote of many: %v", err)
	}
}

func TestRemovalWhenNoOwnerIsLeft(t *testing.T) {
	r := started("10.0.0.0/24", 1)
	rm := must(r.Propose(name(0), Holder{Name: name(3)}, names(1), []peer.Name{name(3), name(1), name(2)}))
	b := paxos.Ballot{Round: 1, Proposer: name(3)}
	if _, err := r.Remove(rm, b, voteFor(r, rm, b, 3)); !errors.Is(err, ErrVotes) {
		t.Errorf("one of three: %v", err)
	}
	must(r.Remove(rm, b, voteFor(r, rm, b, 1, 3)))
	if h := owner(t, r, "10.0.0.0"); h.Name != name(3) {
		t.Errorf("owner is %s", h)
	}
}

// The votes of a mesh of a thousand owners fit one record, and the voters are
// the same everywhere.
func TestLargeElectorateIsSampled(t *testing.T) {
	const owners = 1000
	r := started("10.32.0.0/12", owners)
	for i := range 300 {
		must(r.Give(signer(i), name(i), name(owners-1-i), addr.Of(r.Owned(name(i))[0].Block(addr.N(8)))))
	}
	rm := must(r.Propose(name(0), Holder{Name: name(1)}, names(1), nil))
	electors := must(r.Electorate(rm))
	if len(electors) != maxElectorate || slices.Contains(electors, Holder{Name: name(0)}) {
		t.Fatalf("%d electors", len(electors))
	}
	b := paxos.Ballot{Round: 1, Proposer: name(1)}
	var votes []Vote
	for i := range owners {
		if h := r.Holder(name(i)); slices.Contains(electors, h) {
			votes = append(votes, r.Vote(signer(i), h, b, rm))
		}
	}
	out := must(r.Remove(rm, b, votes))
	if n := len(out.News); n > maxRecord {
		t.Errorf("the record has %d bytes", n)
	}
	late := New(r.Range(), peer.Cheap{})
	for range 3 {
		deltas, _, _ := r.Missing(late.Digest())
		for _, d := range deltas {
			_, _ = late.Merge(d)
		}
	}
	if !bytes.Equal(late.Digest(), r.Digest()) {
		t.Error("a late copy differs")
	}
}

func TestMutualRemovalHasOneOwner(t *testing.T) {
	a, b := started("10.0.0.0/24", 2), started("10.0.0.0/24", 2)
	ballot := paxos.Ballot{Round: 1}
	rmB := must(a.Propose(name(1), Holder{Name: name(0)}, []peer.Name{name(1)}, nil))
	must(a.Remove(rmB, ballot, voteFor(a, rmB, ballot, 0)))
	rmA := must(b.Propose(name(0), Holder{Name: name(1)}, []peer.Name{name(0)}, nil))
	must(b.Remove(rmA, ballot, voteFor(b, rmA, ballot, 1)))
	must(a.Merge(deltaOf(b)))
	must(b.Merge(deltaOf(a)))
	if len(a.Owners()) != 1 || owner(t, a, "10.0.0.0") != owner(t, b, "10.0.0.0") {
		t.Fatalf("owners %v and %v", a.Owners(), b.Owners())
	}
	h := owner(t, a, "10.0.0.0")
	if h != a.Holder(h.Name) {
		t.Fatalf("%s owns all and is not alive", h)
	}
	// The owner can give the space away.
	i := int(h.Name[5]) - 1
	must(a.Give(signer(i), h.Name, name(4), rng4(0, 63)))
}

func TestDivergentRingsAreNamedAndHealed(t *testing.T) {
	a := started("10.0.0.0/24", 2)
	b := New(pfx("10.0.0.0/24"), peer.Cheap{})
	must(b.Start(must(NewGenesis(pfx("10.0.0.0/24"), []peer.Name{name(3), name(4)}))))
	before := b.Digest()
	deltas, wants, err := a.Missing(b.Digest())
	var div *DivergentError
	if !errors.As(err, &div) || wants || len(deltas) != 1 {
		t.Fatalf("missing: %v", err)
	}
	if _, err := b.Merge(deltas[0]); !errors.As(err, &div) || !slices.Equal(div.TheirPeers, names(2)) || !bytes.Equal(before, b.Digest()) {
		t.Fatalf("merge of another ring: %v", err)
	}
	idA := a.Genesis().ID()
	out := must(b.Adopt(signer(3), name(3), idA))
	if b.Ready() {
		t.Fatal("has a ring before the adopted one arrived")
	}
	if _, err := b.Merge(deltaOf(started("10.0.0.0/24", 7))); !errors.As(err, &div) {
		t.Errorf("took a third ring: %v", err)
	}
	must(b.Merge(deltaOf(a)))
	// Another peer of b's ring follows. A peer that never held a part of the ring
	// cannot make it follow.
	c := New(pfx("10.0.0.0/24"), peer.Cheap{})
	must(c.Start(must(NewGenesis(pfx("10.0.0.0/24"), []peer.Name{name(3), name(4)}))))
	stranger := &Adoption{Old: c.Genesis().ID(), New: idA, By: Holder{Name: name(8)}}
	stranger.sign(signer(8))
	if _, err := c.Merge(appendRecord(newDelta(ID{}), stranger.raw)); !errors.Is(err, ErrAuthority) {
		t.Errorf("a stranger's adoption: %v", err)
	}
	must(c.Merge(out.News))
	must(c.Merge(deltaOf(b)))
	if !bytes.Equal(c.Digest(), b.Digest()) {
		t.Error("copies differ after the adoption")
	}
	// a learns of it only by digests.
	converge(t, a, b, c)
}

func TestCrossedAdoptionsResolve(t *testing.T) {
	a := started("10.0.0.0/24", 2)
	b := New(pfx("10.0.0.0/24"), peer.Cheap{})
	must(b.Start(must(NewGenesis(pfx("10.0.0.0/24"), []peer.Name{name(3), name(4)}))))
	idA, idB := a.Genesis().ID(), b.Genesis().ID()
	must(a.Adopt(signer(0), name(0), idB))
	must(b.Adopt(signer(3), name(3), idA))
	converge(t, a, b)
	if !a.Ready() || a.Genesis().ID() != b.Genesis().ID() {
		t.Fatal("no ring is left")
	}
}

// converge lets copies exchange digests until they are equal.
func converge(t *testing.T, rings ...*Ring) {
	t.Helper()
	for range 20 {
		same := true
		for _, a := range rings {
			for _, b := range rings {
				deltas, _, _ := a.Missing(b.Digest())
				for _, d := range deltas {
					_, _ = b.Merge(d)
				}
				same = same && bytes.Equal(a.Digest(), b.Digest())
			}
		}
		if same {
			return
		}
	}
	t.Fatal("copies do not converge")
}

func TestCompact(t *testing.T) {
	r := started("10.0.0.0/24", 1)
	for i := range 20 {
		must(r.Give(signer(0), name(0), name(0), rng4(i*10, i*10+3)))
	}
	n := len(r.Entries())
	must(r.Compact(signer(0), name(0), 8))
	if got := len(r.Entries()); got != 1 || n < 20 {
		t.Errorf("%d entries, then %d", n, got)
	}
}

func TestDumpAndRestore(t *testing.T) {
	rng := seed.Rand(t)
	for range 20 {
		_, raws := world(rng, 3, 30)
		r := started("10.0.0.0/26", 3)
		feed(rng, r, r.Genesis().ID(), raws)
		origin, id, recs := r.Dump()
		var back [][]byte
		for _, rec := range recs {
			back = append(back, rec.Bytes)
		}
		rng.Shuffle(len(back), func(i, j int) { back[i], back[j] = back[j], back[i] })
		got := New(r.Range(), peer.Cheap{})
		if errs := got.Restore(origin, id, back); len(errs) > 0 {
			t.Fatal(errs)
		}
		if !bytes.Equal(got.Digest(), r.Digest()) {
			t.Fatal("restored ring differs")
		}
	}
}
