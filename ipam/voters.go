package ipam

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Who has a vote. Whoever knows the password can run a thousand peers, so a name alone
// gives no vote. The founders of the ring have the first votes. A quorum of the voters
// admits others:
//
//   - The voter that agrees has a direct session with the peer. A TCP handshake proves
//     that the peer receives packets at its address.
//   - No other voter has that address. For IPv6 the /64 counts, as a host usually has one.
//   - The peer owns addresses, so it follows this ring, and has been there for a while.
//
// So a host has one vote, however many peers it makes up. With more than MaxVoters peers
// some have no vote; they own addresses like the others.
//
// A voter that was absent for long is replaced or dropped, so that the quorum follows the
// hosts that are there. A ring with one voter does not become one of two: both would be
// needed for each decision.

const (
	// dropAfter is how many times Config.Absence a voter must be absent to lose its vote.
	dropAfter = 5
	// votersEvery is the least time between two looks at who should have a vote.
	votersEvery = time.Second
)

// placeOf returns the part of an underlay address that one host has: the IPv4 address
// itself, or the /64 of an IPv6 address.
func placeOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// places returns, for each underlay address with which this peer has a direct session, the
// peer there that may have a vote: a voter, or else the one with the lowest key.
func (c *core) places() map[netip.Addr]ring.Holder {
	if c.placesCache != nil && c.placesAt.Equal(c.now) {
		return c.placesCache
	}
	out := make(map[netip.Addr]ring.Holder)
	voters := c.ring.Voters()
	for _, n := range c.view.Peers() {
		a, ok := c.view.Place(n)
		k, known := c.view.Key(n)
		if !ok || !known {
			continue
		}
		h := c.asVoter(n, k, voters)
		place := placeOf(a)
		old, taken := out[place]
		if !taken {
			out[place] = h
			continue
		}
		a1, a2 := slices.Contains(voters, old), slices.Contains(voters, h)
		if a2 && !a1 || a1 == a2 && h.Key.Compare(old.Key) < 0 {
			out[place] = h
		}
	}
	c.placesCache, c.placesAt = out, c.now
	for place := range c.placeSince {
		if _, ok := out[place]; !ok {
			delete(c.placeSince, place)
		}
	}
	for place, h := range out {
		if s := c.placeSince[place]; s.holder != h {
			c.placeSince[place] = settled{h, c.now}
		}
	}
	return out
}

// settled is since when a holder is at a place.
type settled struct {
	holder ring.Holder
	since  time.Time
}

// asVoter returns a peer as a holder; a founder from seeds keeps its vote without a key.
func (c *core) asVoter(n peer.Name, k peer.Key, voters []ring.Holder) ring.Holder {
	if h, ok := c.ring.Founder(n); ok && slices.Contains(voters, h) && c.ring.SignedBy(h, k) == nil {
		return h
	}
	return ring.HolderOf(n, k)
}

// eligible reports whether this peer counts a vote of h for the first ring, or would
// admit it to the voters.
func (c *core) eligible(h ring.Holder) bool {
	if c.isMine(h) {
		return true
	}
	a, ok := c.view.Place(h.Name)
	return ok && c.places()[placeOf(a)] == h
}

// countsForFirstRing reports whether this peer counts the vote of h for the first ring.
// A peer that has direct sessions with all the peers that it was told to expect counts
// only those. One that has fewer sees part of the mesh through others and must believe
// them.
func (c *core) countsForFirstRing(h ring.Holder) bool {
	return c.eligible(h) || len(c.places()) < c.cfg.Init.Expect-1 && c.present(h)
}

// settledFor returns for how long h has been the only peer at its address.
func (c *core) settledFor(h ring.Holder) time.Duration {
	a, ok := c.view.Place(h.Name)
	if !ok || !c.eligible(h) {
		return 0
	}
	return c.now.Sub(c.placeSince[placeOf(a)].since)
}

// wantVoters returns the change of the voters that this voter wants, nil if none.
func (c *core) wantVoters() *ring.Action {
	if c.now.Before(c.nextVoters) {
		return nil
	}
	voters := c.ring.Voters()
	var next []ring.Holder
	for _, h := range voters {
		if c.absentFor(h) < dropAfter*c.cfg.Absence {
			next = append(next, h)
		}
	}
	var candidates []ring.Holder
	for _, h := range c.places() {
		if !slices.Contains(voters, h) && !c.ring.Owners()[h].IsZero() && !c.ring.IsBanned(h) && c.settledFor(h) >= c.cfg.Settle && c.present(h) {
			candidates = append(candidates, h)
		}
	}
	slices.SortFunc(candidates, func(a, b ring.Holder) int { return a.Key.Compare(b.Key) })
	next = append(next, candidates[:min(len(candidates), ring.MaxVoters-len(next))]...)
	slices.SortFunc(next, ring.Holder.Compare)
	if len(next) == 0 || slices.Equal(next, voters) || len(next) == 2 && len(voters) == 1 {
		c.nextVoters = c.now.Add(votersEvery)
		return nil
	}
	if was, is := c.margin(voters), c.margin(next); is < was || is == was && len(next) <= len(voters) {
		c.nextVoters = c.now.Add(votersEvery)
		return nil
	}
	return &ring.Action{Kind: ring.Voters, Voters: next}
}

// margin returns how many of the voters that are present can fail before there is no
// quorum.
func (c *core) margin(voters []ring.Holder) int {
	n := 0
	for _, h := range voters {
		if c.present(h) {
			n++
		}
	}
	return n - ring.Quorum(len(voters))
}

// agreeVoters returns an error if this voter does not agree to a change of the voters. It
// asks for half the times that a proposer waits, as their clocks and views differ.
func (c *core) agreeVoters(a *ring.Action) error {
	voters := c.ring.Voters()
	for _, h := range a.Voters {
		switch {
		case slices.Contains(voters, h):
		case c.isMine(h):
		case !c.eligible(h):
			return fmt.Errorf("%s has no direct session with %s at an address of its own", c.displayName(c.cfg.Self), c.displayName(h.Name))
		case c.settledFor(h) < c.cfg.Settle/2:
			return fmt.Errorf("%s has been there for %v only", c.displayName(h.Name), c.settledFor(h).Round(time.Second))
		}
	}
	for _, h := range voters {
		if !slices.Contains(a.Voters, h) && c.absentFor(h) < dropAfter*c.cfg.Absence/2 {
			return fmt.Errorf("voter %s is present or was recently", c.displayName(h.Name))
		}
	}
	return nil
}

// A voice is the wish of an operator that other operators must share: a ban, its end, or
// the adoption of another ring. Each voter tells the others what its own operator asked
// for, so that they propose it once a quorum agrees.
type voice struct {
	action *ring.Action
	from   map[ring.Holder]time.Time // by voter
}

const (
	// maxVoicesBy bounds the wishes of the operator of one voter, and so all of them: a voter
	// that lies keeps nobody from hearing the others.
	maxVoicesBy = 16
	voiceTTL    = 10 * time.Second // of one that is not repeated
)

func (c *core) voiceKey(a *ring.Action) wishKey {
	k := wishKey{kind: a.Kind, from: a.From}
	if a.Kind == ring.Adopt {
		k.id = a.Genesis.ID()
	}
	return k
}

// ask records that the operator of this host wants an action.
func (c *core) ask(a *ring.Action) {
	opposite := map[ring.Kind]ring.Kind{ring.Ban: ring.Unban, ring.Unban: ring.Ban}[a.Kind]
	delete(c.consents, consent{opposite, a.From}) // else one voter could bring it about again
	c.asked[c.voiceKey(a)] = &wish{action: a, own: true, at: c.now}
	delete(c.takenBack, c.voiceKey(a))
	c.consents[consent{a.Kind, a.From}] = c.now
	c.pushDecide()
}

// hearOperator records that the operator of another voter wants an action.
func (c *core) hearOperator(from peer.Name, a *ring.Action) {
	i := slices.IndexFunc(c.ring.Voters(), func(h ring.Holder) bool { return h.Name == from && c.present(h) })
	if i < 0 {
		return
	}
	voter := c.ring.Voters()[i]
	if a.Kind != ring.Adopt { // the opposite takes back what it asked for before
		back := wishKey{kind: banKind(a.Kind == ring.Ban), from: a.From}
		if v := c.voices[back]; v != nil {
			delete(v.from, voter)
		}
	}
	if c.ring.Check(a) != nil {
		return
	}
	k := c.voiceKey(a)
	v := c.voices[k]
	if v == nil {
		v = &voice{a, make(map[ring.Holder]time.Time)}
	}
	if v.from[voter].IsZero() && c.voicesOf(voter) >= maxVoicesBy {
		c.counters.Wishes++
		return
	}
	c.voices[k] = v
	v.from[voter] = c.now
	c.pushDecide()
}

// voicesOf returns how many wishes the operator of a voter has.
func (c *core) voicesOf(voter ring.Holder) (n int) {
	for _, v := range c.voices {
		if !v.from[voter].IsZero() {
			n++
		}
	}
	return n
}

// dropVoices drops what came true or was not repeated.
func (c *core) dropVoices() {
	for k, v := range c.voices {
		for h, at := range v.from {
			if c.now.Sub(at) > voiceTTL {
				delete(v.from, h)
			}
		}
		if len(v.from) == 0 || c.ring.CheckEffect(v.action) != nil {
			delete(c.voices, k)
		}
	}
	maps.DeleteFunc(c.takenBack, func(_ wishKey, w *wish) bool { return c.now.Sub(w.at) > voiceTTL })
	for k, w := range c.asked {
		if c.now.Sub(w.at) > consentTTL || c.ring.CheckEffect(w.action) != nil {
			delete(c.asked, k)
		}
	}
}

// sendVoices tells the other voters what the operator of this host wants.
func (c *core) sendVoices() {
	for _, list := range []map[wishKey]*wish{c.takenBack, c.asked} {
		for _, w := range list {
			if c.now.Sub(w.sent) >= resendEvery {
				w.sent = c.now
				c.sendVoters(message{kind: msgWish, id: c.ring.Slot(), body: w.action.Encode()})
			}
		}
	}
}

// agreed returns which voters want an action, this peer too.
func (c *core) agreed(a *ring.Action) (out []ring.Holder) {
	k := c.voiceKey(a)
	for _, h := range c.ring.Voters() {
		heard := c.isMine(h) && c.agree(a) == nil
		if v := c.voices[k]; v != nil && !heard {
			_, heard = v.from[h]
		}
		if heard {
			out = append(out, h)
		}
	}
	return out
}

// heardEnough returns the actions that the operators of a quorum want.
func (c *core) heardEnough() (out []*ring.Action) {
	consider := func(a *ring.Action) {
		if a.Kind == ring.Ban {
			a = &ring.Action{Kind: ring.Ban, From: a.From, To: c.heirFor(a.From)}
		}
		if c.agree(a) == nil && (len(c.agreed(a)) >= ring.Quorum(len(c.ring.Voters())) || a.Kind == ring.Adopt) {
			out = append(out, a)
		}
	}
	for _, w := range c.asked {
		consider(w.action)
	}
	for k, v := range c.voices {
		if c.asked[k] == nil {
			consider(v.action)
		}
	}
	slices.SortFunc(out, func(a, b *ring.Action) int { return bytes.Compare(a.Encode(), b.Encode()) })
	return out
}

// agreeAdoption returns an error if this voter does not agree to leave its ring for
// another one. It agrees if its operator asked for it, or if as many real hosts signed the
// genesis of the other ring as are a quorum of this one. A host that has a vote or addresses in
// this ring does not count: it has left the ring that it signed. So a member that shows the
// genesis of a ring of the past brings nobody back to it.
func (c *core) agreeAdoption(a *ring.Action) error {
	if c.asked[c.voiceKey(a)] != nil {
		return nil
	}
	if c.ring.Left(a.Genesis.ID()) {
		return fmt.Errorf("%s has left ring %s, and agrees only if its operator adopts the ring too", c.displayName(c.cfg.Self), a.Genesis.ID())
	}
	n := 0
	for _, h := range a.Genesis.Signers() {
		if c.eligible(h) && c.present(h) && !c.inRing(h) {
			n++
		}
	}
	if need := ring.Quorum(len(c.ring.Voters())); n < need {
		return fmt.Errorf("%s of ring %s %s with a direct session with %s and not in its ring, %d needed; or its operator adopts the ring too",
			count.Of(n, "founder", "founders"), a.Genesis.ID(), count.Form(n, "is a host", "are hosts"), c.displayName(c.cfg.Self), need)
	}
	return nil
}
