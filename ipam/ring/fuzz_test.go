package ring

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/mesh/peer"
)

func parse(s string) (netip.Addr, error) { return netip.ParseAddr(s) }

func seeds() (out [][]byte) {
	r := started("10.0.0.0/24", 2)
	must(r.Give(signer(0), name(0), name(1), rng4(4, 7)))
	must(r.Leave(signer(0), name(0), name(1)))
	rm := must(r.Propose(name(1), Holder{Name: name(2)}, []peer.Name{name(1)}, []peer.Name{name(2)}))
	b := paxos.Ballot{Round: 1, Proposer: name(2)}
	must(r.Remove(rm, b, voteFor(r, rm, b, 2)))
	out = append(out, deltaOf(r))
	six := started("fd00::/64", 3)
	must(six.Give(signer(0), name(0), name(1), six.Owned(name(0))[0]))
	out = append(out, deltaOf(six))
	must(r.Adopt(signer(2), name(2), six.Genesis().ID()))
	return append(out, r.adoptionDelta(), nil, []byte{deltaFormat})
}

// FuzzMerge merges arbitrary bytes: the ring stays whole, and an error changes
// nothing.
func FuzzMerge(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, delta []byte) {
		for _, r := range []*Ring{New(pfx("10.0.0.0/24"), peer.Cheap{}), started("10.0.0.0/24", 2), started("fd00::/64", 3)} {
			before := r.Digest()
			out, err := r.Merge(delta)
			if err != nil && !bytes.Equal(before, r.Digest()) {
				t.Fatalf("changed on error %v", err)
			}
			if r.Ready() {
				checkInvariants(t, r)
			}
			if out.News == nil {
				continue
			}
			if again, err := r.Merge(out.News); err == nil && again.News != nil {
				t.Fatal("the news are new a second time")
			}
		}
	})
}

// FuzzRecord parses arbitrary bytes: a valid record encodes to the same bytes.
func FuzzRecord(f *testing.F) {
	for _, s := range seeds() {
		if _, raws, err := splitDelta(s); err == nil {
			for _, raw := range raws {
				f.Add(raw)
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) == 0 {
			return
		}
		var again []byte
		switch raw[0] {
		case kindGrant:
			if g, err := parseGrant(raw); err == nil {
				again = append(g.appendUnsigned(nil), g.Sig[:]...)
			}
		case kindRemoval:
			if rm, err := parseRemoval(raw); err == nil {
				rm.seal()
				again = rm.raw
			}
			if rm, err := ParseProposal(raw); err == nil {
				again = rm.Proposal()
			}
		case kindGenesis:
			if g, err := parseGenesis(raw); err == nil {
				again = g.raw
			}
		case kindAdoption:
			if a, err := parseAdoption(raw); err == nil {
				again = append(a.raw[:0:0], a.raw...)
			}
		}
		if again != nil && !bytes.Equal(again, raw) {
			t.Fatalf("%x encodes to %x", raw, again)
		}
	})
}

// FuzzMissing answers arbitrary digests: with deltas within the limits or an error.
func FuzzMissing(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	tw, raws := world(rng, 3, 60)
	full := New(pfx("10.0.0.0/26"), peer.Cheap{})
	feed(rng, full, tw.genesis.id, raws)
	f.Add(full.Digest())
	f.Add(started("10.0.0.0/26", 3).Digest())
	f.Add(New(pfx("10.0.0.0/26"), peer.Cheap{}).Digest())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, digest []byte) {
		deltas, _, _ := full.Missing(digest)
		for _, d := range deltas {
			if len(d) > maxDelta {
				t.Fatalf("delta of %d bytes", len(d))
			}
		}
	})
}
