package ring

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

// Genesis is the first division of the address range. A ring is named by it.
//
//	kind 1 | family 1 | address a | bits 1 | count 2, founders 22 each |
//	prev 16 | by 2 | count 2, ranges a+2 each | count 1, votes 97 each
//
// A founder is a name and the id of its key, ascending. The founders are the first
// owners. If there are no ranges, each has an equal part, and the founders are the voters
// of slot 1; if there are more than MaxVoters, the first ones by key are. A quorum of the
// voters signs the genesis, under slot and round zero. If the founders are seeds they have
// no keys, and there are no votes: the user of each peer wrote them down.
//
// A ring that lost its quorum is founded again by the operator of one host: prev is the
// ring that was lost, the ranges are the owners as that host knew them, each the first
// address and the index of a founder, and founder number by has the only vote. The
// operators of the other hosts decide to follow it.
type Genesis struct {
	Range    netip.Prefix
	Founders []Holder
	Votes    []Vote

	prev   ID
	by     int
	ranges []start
	id     ID
	raw    []byte
}

// start is the first address of a range with the index of its founder.
type start struct {
	first   netip.Addr
	founder int
}

const (
	kindGenesis   = 1
	domainGenesis = "weft ipam genesis"
)

// maxFounders bounds the founders so that a genesis fits a delta.
const maxFounders = 1 << 10

// NewGenesis makes the genesis that divides addrRange among founders, which may be in
// any order and repeated. Equal sets make equal geneses.
func NewGenesis(addrRange netip.Prefix, founders []Holder) (*Genesis, error) {
	g := &Genesis{Range: addrRange.Masked(), Founders: slices.Clone(founders)}
	slices.SortFunc(g.Founders, Holder.Compare)
	g.Founders = slices.Compact(g.Founders)
	bad := func(format string, args ...any) (*Genesis, error) {
		return nil, fmt.Errorf("make a ring over %s: %s", addrRange, fmt.Sprintf(format, args...))
	}
	switch n := len(g.Founders); {
	case n == 0:
		return bad("no peers to divide it among")
	case n > maxFounders:
		return bad("%d peers, at most %d", n, maxFounders)
	case !addrRange.IsValid() || addrRange.Addr().Is4In6():
		return bad("not a range of addresses")
	}
	for i, h := range g.Founders {
		switch {
		case !h.valid():
			return bad("founder %s: not a peer", h)
		case i > 0 && h.Name == g.Founders[i-1].Name:
			return bad("founder %s is named twice", h)
		case (h.Key == peer.KeyID{}) != g.seeded():
			return bad("founder %s: either all founders have keys or none has", h)
		}
	}
	g.seal()
	return g, nil
}

// seeded reports whether the founders are known by their names only.
func (g *Genesis) seeded() bool { return g.Founders[0].Key == peer.KeyID{} }

// body returns the encoding without the votes.
func (g *Genesis) body() []byte {
	b := []byte{kindGenesis, family(g.Range.Addr())}
	b = append(b, g.Range.Addr().AsSlice()...)
	b = append(b, byte(g.Range.Bits()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.Founders)))
	for _, h := range g.Founders {
		b = h.Append(b)
	}
	b = append(b, g.prev[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(g.by))
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.ranges)))
	for _, s := range g.ranges {
		b = append(b, s.first.AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, uint16(s.founder))
	}
	return b
}

func (g *Genesis) seal() {
	b := g.body()
	g.id = idOf(domainGenesis, b)
	g.raw = appendVotes(b, g.Votes)
}

// ID names the ring that grows from g.
func (g *Genesis) ID() ID { return g.id }

// Voters returns the voters of slot 1.
func (g *Genesis) Voters() []Holder {
	if !g.prev.IsZero() {
		return []Holder{g.Founders[g.by]}
	}
	voters := slices.Clone(g.Founders)
	if len(voters) <= MaxVoters {
		return voters
	}
	slices.SortFunc(voters, func(a, b Holder) int {
		if c := a.Key.Compare(b.Key); c != 0 {
			return c
		}
		return a.Compare(b)
	})
	voters = voters[:MaxVoters]
	slices.SortFunc(voters, Holder.Compare)
	return voters
}

// VoteMessage returns the bytes that the voters sign.
func (g *Genesis) VoteMessage() []byte { return VoteMessage(g.id, 0, 0, g.id) }

// Sign returns the vote of voter, which must be one of Voters.
func (g *Genesis) Sign(s peer.Signer, voter Holder) (Vote, bool) {
	i, ok := slices.BinarySearchFunc(g.Voters(), voter, Holder.Compare)
	if !ok {
		return Vote{}, false
	}
	return Vote{i, s.Key(), s.Sign(domainVote, g.VoteMessage())}, true
}

// WithVotes returns a copy of g with votes, which may be in any order.
func (g *Genesis) WithVotes(votes []Vote) *Genesis {
	c := *g
	c.Votes = slices.Clone(votes)
	slices.SortFunc(c.Votes, func(a, b Vote) int { return a.Voter - b.Voter })
	c.Votes = c.Votes[:min(len(c.Votes), Quorum(len(c.Voters())))]
	c.seal()
	return &c
}

// Signers returns the founders that signed g; their votes were checked when g was merged
// or decided.
func (g *Genesis) Signers() (out []Holder) {
	voters := g.Voters()
	for _, v := range g.Votes {
		if v.Voter < len(voters) {
			out = append(out, voters[v.Voter])
		}
	}
	return out
}

// check returns an error unless a quorum of the voters signed g.
func (g *Genesis) check(v peer.Verifier, keys Keys) error {
	if g.seeded() {
		return nil
	}
	return checkVotes(g.Voters(), g.Votes, g.VoteMessage(), v, keys)
}

// ParseGenesis parses an encoded genesis. It does not check the votes.
func ParseGenesis(raw []byte) (*Genesis, error) {
	if len(raw) == 0 || raw[0] != kindGenesis {
		return nil, malformed("genesis", raw)
	}
	r := reader{b: raw[1:]}
	f := r.family()
	addrRange := netip.PrefixFrom(r.address(f), r.uint8())
	var founders []Holder
	for range r.counted(holderLen) {
		founders = append(founders, r.holder())
	}
	prev, by := r.id(), r.uint16()
	var ranges []start
	for range r.counted(len(addrRange.Addr().AsSlice()) + 2) {
		ranges = append(ranges, start{r.address(f), r.uint16()})
	}
	votes := r.votes()
	if !r.end() || !addrRange.IsValid() || addrRange.Masked() != addrRange || !ascending(founders, Holder.Compare) {
		return nil, malformed("genesis", raw)
	}
	g, err := NewGenesis(addrRange, founders)
	if err != nil {
		return nil, err
	}
	if g.seeded() && len(votes) > 0 {
		return nil, malformed("genesis from seeds with votes", raw)
	}
	g.prev, g.by, g.ranges, g.Votes = prev, by, ranges, votes
	if err := g.checkRanges(); err != nil {
		return nil, err
	}
	g.seal()
	return g, nil
}

// FoundedAgain reports whether the ring continues one that lost its quorum.
func (g *Genesis) FoundedAgain() bool { return !g.prev.IsZero() }

// checkRanges checks what only a ring that was founded again has.
func (g *Genesis) checkRanges() error {
	if g.prev.IsZero() != (len(g.ranges) == 0) || g.prev.IsZero() && g.by != 0 || g.by >= len(g.Founders) || g.seeded() && !g.prev.IsZero() {
		return fmt.Errorf("genesis with %d ranges after ring %s: %w", len(g.ranges), g.prev, ErrFormat)
	}
	whole := addr.Of(g.Range)
	for i, s := range g.ranges {
		if s.founder >= len(g.Founders) || !whole.Contains(s.first) || i == 0 && s.first != whole.First ||
			i > 0 && !g.ranges[i-1].first.Less(s.first) {
			return fmt.Errorf("genesis with range %s: %w", s.first, ErrFormat)
		}
	}
	return nil
}

// Refound makes a ring that continues that of this copy after it lost its quorum: the
// owners are the same, but what gone owned belongs to self, which has the only vote until
// it admits others. It follows it at once.
func (r *Ring) Refound(s peer.Signer, self Holder, gone []Holder) (Outcome, error) {
	st := r.st
	if st == nil {
		return Outcome{}, fmt.Errorf("found the ring again: there is no ring: %w", ErrState)
	}
	pieces := slices.Clone(st.pieces)
	founders := []Holder{self}
	for i, p := range pieces {
		h := p.holder
		switch {
		case slices.Contains(gone, h) || h.Key == (peer.KeyID{}) && h.Name == self.Name:
			h = self
		case h.Key == peer.KeyID{}: // a seed: the new ring names its key
			k, ok := r.keys(h.Name)
			if !ok {
				return Outcome{}, fmt.Errorf("found the ring again: the key of %s, a seed, is unknown here: remove it too, or wait until it is there", h)
			}
			h = HolderOf(h.Name, k)
		}
		pieces[i].holder = h
		if !slices.Contains(founders, h) {
			founders = append(founders, h)
		}
	}
	g, err := NewGenesis(st.genesis.Range, founders)
	if err != nil {
		return Outcome{}, err
	}
	index := func(h Holder) int {
		i, _ := slices.BinarySearchFunc(g.Founders, h, Holder.Compare)
		return i
	}
	g.prev, g.by = st.genesis.id, index(self)
	for i, p := range pieces {
		if i == 0 || pieces[i-1].holder != p.holder {
			g.ranges = append(g.ranges, start{p.first, index(p.holder)})
		}
	}
	g.seal()
	g.Votes = []Vote{{0, s.Key(), s.Sign(domainVote, g.VoteMessage())}}
	g.seal()
	if len(g.raw) > maxRecord {
		return Outcome{}, fmt.Errorf("found the ring again: %d ranges of %d owners are too many", len(g.ranges), len(g.Founders))
	}
	if err := r.Follow(g.id); err != nil {
		return Outcome{}, err
	}
	return r.Start(g)
}

// pieces returns the genesis as a table.
func (g *Genesis) pieces() (out []piece) {
	for _, s := range g.ranges {
		out = append(out, piece{s.first, g.Founders[s.founder], 0})
	}
	if out != nil {
		return out
	}
	for i, r := range addr.Split(g.Range, len(g.Founders)) {
		if r.IsValid() {
			out = append(out, piece{r.First, g.Founders[i], 0})
		}
	}
	return out
}
