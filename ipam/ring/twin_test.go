package ring

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

func name(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i + 1)} }
func signer(i int) peer.Cheap {
	return peer.Cheap{ID: peer.Key{0: byte(i + 1), 1: byte(i >> 8), 31: 7}}
}
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func rng4(a, b int) addr.Range  { return addr.Range{First: ip4(a), Last: ip4(b)} }
func ip4(i int) netip.Addr      { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func names(n int) (out []peer.Name) {
	for i := range n {
		out = append(out, name(i))
	}
	return out
}

// started returns a copy of a ring that the first n peers made.
func started(addrRange string, n int) *Ring {
	r := New(pfx(addrRange), peer.Cheap{})
	must(r.Start(must(NewGenesis(pfx(addrRange), names(n)))))
	return r
}

const twinSize = 64

// twin is the slow, obvious ring over 10.0.0.0/26: a set of records that is evaluated
// for each address.
type twin struct {
	genesis  *Genesis
	grants   map[ID]*Grant
	removals map[ID]*Removal
}

// compute returns the accepted records and the owner of each address.
func (tw *twin) compute() (accepted map[ID]bool, owners [twinSize]Holder) {
	e := &evaluation{twin: tw, accepted: make(map[ID]bool)}
	for i, r := range addr.Split(tw.genesis.Range, len(tw.genesis.Peers)) {
		for a := range twinSize {
			if r.Contains(ip4(a)) {
				e.given[a] = append(e.given[a], gift{to: Holder{Name: tw.genesis.Peers[i]}})
			}
		}
	}
	for e.acceptMore() {
	}
	for a := range owners {
		owners[a] = e.owner(a)
	}
	return e.accepted, owners
}

// evaluation is the state of one call of compute.
type evaluation struct {
	*twin
	accepted map[ID]bool
	given    [twinSize][]gift // for each address
}

// gift is an accepted record that gave an address to somebody.
type gift struct {
	to      Holder
	version uint64
	id      ID
}

// acceptMore accepts the records that can be accepted now, and reports whether there were
// any.
func (e *evaluation) acceptMore() (changed bool) {
	for id, rm := range e.removals {
		if !e.accepted[id] && e.known(rm.Gone) && e.known(rm.Heir) {
			e.accepted[id], changed = true, true
		}
	}
	for id, g := range e.grants {
		ok := !e.accepted[id] && e.known(g.To) && e.known(g.From)
		for a := range twinSize {
			if ok && g.Range.Contains(ip4(a)) {
				ok = slices.ContainsFunc(e.given[a], func(x gift) bool { return x.version < g.Version && e.speaksFor(g.From, x.to) })
			}
		}
		if !ok {
			continue
		}
		e.accepted[id], changed = true, true
		for a := range twinSize {
			if g.Range.Contains(ip4(a)) {
				e.given[a] = append(e.given[a], gift{g.To, g.Version, g.id})
			}
		}
	}
	return changed
}

// ended returns how many incarnations of a name have ended.
func (e *evaluation) ended(n peer.Name) (count uint32) {
	for id, rm := range e.removals {
		if e.accepted[id] && rm.Gone.Name == n {
			count = max(count, rm.Gone.Incarnation+1)
		}
	}
	return count
}

func (e *evaluation) known(h Holder) bool { return h.Incarnation <= e.ended(h.Name) }

// maxDepth is more removals than any chain of a test has.
const maxDepth = 6

// leads reports whether at most depth removals lead from one holder to another.
func (e *evaluation) leads(from, to Holder, depth int) bool {
	if depth == 0 {
		return false
	}
	for id, rm := range e.removals {
		if e.accepted[id] && rm.Gone == from && (rm.Heir == to || e.leads(rm.Heir, to, depth-1)) {
			return true
		}
	}
	return false
}

// speaksFor reports whether who may give the space of of.
func (e *evaluation) speaksFor(who, of Holder) bool {
	if who == of || e.leads(of, who, maxDepth) {
		return true
	}
	for incarnation := range who.Incarnation {
		h := Holder{who.Name, incarnation}
		if e.leads(h, h, maxDepth) && (h == of || e.leads(of, h, maxDepth)) {
			return true
		}
	}
	return false
}

// owner follows the removals from the holder that was given address a last.
func (e *evaluation) owner(a int) Holder {
	last := slices.MaxFunc(e.given[a], func(x, y gift) int {
		if x.version != y.version {
			return int(x.version) - int(y.version)
		}
		return bytes.Compare(x.id[:], y.id[:])
	})
	h, path := last.to, []Holder(nil)
	for {
		var next *Removal
		for id, rm := range e.removals {
			if e.accepted[id] && rm.Gone == h && (next == nil || next.id.less(id)) {
				next = rm
			}
		}
		if next == nil {
			return h
		}
		if at := slices.Index(path, h); at >= 0 {
			lowest := slices.MinFunc(path[at:], Holder.Compare)
			return Holder{lowest.Name, e.ended(lowest.Name)}
		}
		path = append(path, h)
		h = next.Heir
	}
}

// world makes records. Most follow the rules; some are made by malicious peers and by
// peers that lost their disk.
func world(rng *rand.Rand, peers, steps int) (*twin, [][]byte) {
	r := started("10.0.0.0/26", peers)
	g := r.Genesis()
	tw := &twin{g, map[ID]*Grant{}, map[ID]*Removal{}}
	raws := [][]byte{g.raw}
	holder := func() Holder {
		h := r.Holder(name(rng.IntN(peers + 1)))
		if h.Incarnation > 0 && rng.IntN(3) == 0 {
			h.Incarnation--
		}
		return h
	}
	sign := func(n peer.Name) peer.Cheap { return signer(int(n[5]) - 1) }
	for range steps {
		lo := rng.IntN(twinSize)
		hi := min(twinSize-1, lo+rng.IntN(16))
		if rng.IntN(8) == 0 {
			rm := &Removal{Gone: holder(), Heir: holder(), Key: peer.Key{}}
			if rm.Gone == rm.Heir {
				continue
			}
			rm.Key = sign(rm.Gone.Name).Key()
			msg := append(bytes.Clone(g.id[:]), rm.proposal()...)
			rm.Sig = sign(rm.Gone.Name).Sign(domainRemoval, append(msg, rm.Key[:]...))
			rm.seal()
			tw.removals[rm.id] = rm
			raws = append(raws, rm.raw)
			_, _ = r.Merge(appendRecord(newDelta(g.id), rm.raw))
			continue
		}
		gr := &Grant{Range: rng4(lo, hi), Version: 1 + rng.Uint64N(5), From: holder(), To: holder()}
		if rng.IntN(4) > 0 { // honest
			e := r.Entries()[rng.IntN(len(r.Entries()))]
			gr.Range, gr.From, gr.Version = e.Range, e.Owner, e.Version+1
			if part, ok := rng4(lo, hi).Intersect(e.Range); ok {
				gr.Range = part
			}
		}
		gr.sign(g.id, sign(gr.From.Name))
		tw.grants[gr.id] = gr
		raws = append(raws, gr.raw)
		_, _ = r.Merge(appendRecord(newDelta(g.id), gr.raw))
	}
	return tw, raws
}

func owners(r *Ring) (out [twinSize]Holder) {
	for a := range twinSize {
		out[a], _ = r.Owner(ip4(a))
	}
	return out
}

// feed merges raws in random batches until nothing is new. Records that were refused
// because an earlier record was missing come again, as they do after a digest.
func feed(rng *rand.Rand, r *Ring, genesis ID, raws [][]byte) {
	raws = slices.Clone(raws)
	for news := true; news; {
		news = false
		rng.Shuffle(len(raws), func(i, j int) { raws[i], raws[j] = raws[j], raws[i] })
		for i := 0; i < len(raws); {
			d := newDelta(genesis)
			for n := 1 + rng.IntN(5); n > 0 && i < len(raws); n-- {
				d = appendRecord(d, raws[i])
				i++
			}
			before := r.Digest()
			out, err := r.Merge(d)
			if err != nil && !bytes.Equal(before, r.Digest()) {
				panic("a merge that failed changed the ring")
			}
			news = news || out.News != nil
		}
	}
}

func deltaOf(r *Ring) []byte {
	_, id, recs := r.Dump()
	d := newDelta(id)
	for _, rec := range recs {
		d = appendRecord(d, rec.Bytes)
	}
	return d
}

func TestMergeAgainstSlowTwin(t *testing.T) {
	rng := seed.Rand(t)
	for range 150 {
		tw, raws := world(rng, 1+rng.IntN(4), 40)
		accepted, want := tw.compute()
		var first []byte
		for range 3 {
			r := New(pfx("10.0.0.0/26"), peer.Cheap{})
			feed(rng, r, tw.genesis.id, raws)
			if got := owners(r); got != want {
				t.Fatalf("owners differ from the twin's:\n%v\n%v", got, want)
			}
			if n := len(r.st.grants) + len(r.st.removals); n != len(accepted) {
				t.Fatalf("%d records accepted, the twin has %d", n, len(accepted))
			}
			checkInvariants(t, r)
			if first == nil {
				first = r.Digest()
			} else if !bytes.Equal(first, r.Digest()) {
				t.Fatal("digests differ with the order of arrival")
			}
		}
	}
}

func TestMergeIsAJoin(t *testing.T) {
	rng := seed.Rand(t)
	for range 100 {
		tw, raws := world(rng, 1+rng.IntN(4), 30)
		part := func() *Ring {
			r := New(pfx("10.0.0.0/26"), peer.Cheap{})
			some := [][]byte{tw.genesis.raw}
			for _, raw := range raws {
				if rng.IntN(2) == 0 {
					some = append(some, raw)
				}
			}
			feed(rng, r, tw.genesis.id, some)
			return r
		}
		join := func(rs ...*Ring) *Ring {
			out := New(pfx("10.0.0.0/26"), peer.Cheap{})
			for _, r := range rs {
				must(out.Merge(deltaOf(r)))
			}
			return out
		}
		same := func(law string, a, b *Ring) {
			t.Helper()
			if !bytes.Equal(a.Digest(), b.Digest()) || owners(a) != owners(b) {
				t.Fatalf("not %s", law)
			}
		}
		a, b, c := part(), part(), part()
		same("idempotent", join(a, a), a)
		same("commutative", join(a, b), join(b, a))
		same("associative", join(join(a, b), c), join(a, join(b, c)))
		if out := must(join(a, b).Merge(deltaOf(a))); out.News != nil {
			t.Fatal("known records are reported as news")
		}
	}
}

func checkInvariants(t *testing.T, r *Ring) {
	t.Helper()
	if r.st.pieces[0].first != r.st.whole.First {
		t.Fatalf("the ring begins at %v", r.st.pieces[0].first)
	}
	total := addr.Count{}
	for i, p := range r.st.pieces {
		if i > 0 && !r.st.pieces[i-1].first.Less(p.first) {
			t.Fatalf("pieces out of order at %v", p.first)
		}
		if !p.grant.Range.Covers(addr.Range{First: p.first, Last: r.st.last(i)}) {
			t.Fatalf("the piece at %v is bigger than its grant", p.first)
		}
	}
	for h, n := range r.Owners() {
		total = total.Add(n)
		if got := addr.Total(r.Owned(h.Name)); h == r.Holder(h.Name) && got != n {
			t.Fatalf("%s owns %v addresses and %v", h, n, got)
		}
	}
	if total != r.st.whole.Size() {
		t.Fatalf("owners have %v of %v addresses", total, r.st.whole.Size())
	}
}
