package ipam

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Giving space to other peers. A peer that is asked signs a transfer and works for its
// decision. From that moment on it does not use the range, also after a restart: the
// voters may decide the transfer at any time.
//
// An ask costs a stranger with the password nothing, so what asks take is bounded. A peer
// that is alone at its underlay address gets half of what is free, as a host needs it, as
// long as it then owns no more than this peer. After that it gets little at a time, which
// a host with many containers uses up, and in the end single addresses: else a host that
// asks again and again would own everything in a second. What was given counts for the
// address, so that a host that comes back under another name has got it already.
// All others together get little, and a part stays for containers of this host.

// Bounds of what others are given.
const (
	promiseTTL = 5 * time.Second // how long a promised range is waited for
	// askBurst and askEvery bound the asks of one peer that are answered with a range.
	askBurst = 32
	askEvery = 2 * time.Second
	// othersBurst and othersEvery bound those of all peers that share an underlay address.
	othersBurst = 8
	othersEvery = 5 * time.Second
	// othersMost is the size limit of a range for such a peer.
	othersMost = 16
	// shareMost is the size limit of a range for a peer that owns as much as this one.
	shareMost = 64
	// shareTTL is how long what an underlay address got is remembered.
	shareTTL = time.Hour
	// othersReserve is the part of the own space that stays free: one in othersReserve.
	othersReserve = 4
	maxAskers     = 4096
	maxOffers     = 256
	// offerTTL is how long an offer may wait for its decision before it is revoked: voters
	// may have other views of the receiver than this peer, and not agree.
	offerTTL = 2 * time.Minute
)

// offer is a transfer that this peer has signed and that is not decided.
type offer struct {
	action *ring.Action
	id     uint64 // of the ask
	to     peer.Name
	at     time.Time    // when it was made, or read from disk
	away   time.Time    // since when the receiver is away; zero if it is there
	back   *ring.Action // what revokes it; nil before that
}

// asker is a token bucket.
type asker struct {
	tokens float64
	at     time.Time
}

func (a *asker) take(now time.Time, burst float64, every time.Duration) bool {
	if a.at.IsZero() {
		a.tokens = burst
	} else {
		a.tokens = min(burst, a.tokens+now.Sub(a.at).Seconds()/every.Seconds())
	}
	a.at = now
	if a.tokens < 1 {
		return false
	}
	a.tokens--
	return true
}

// mayGive reports whether an ask of a peer may be answered with a range now.
func (c *core) mayGive(h ring.Holder) bool {
	a := c.askers[h.Name]
	if a == nil {
		if len(c.askers) >= maxAskers {
			for n, old := range c.askers {
				if c.now.Sub(old.at) > time.Minute {
					delete(c.askers, n)
				}
			}
			if len(c.askers) >= maxAskers {
				c.counters.Asks++
				return false
			}
		}
		a = &asker{}
		c.askers[h.Name] = a
	}
	ok := len(c.offers) < maxOffers && a.take(c.now, askBurst, askEvery) &&
		(c.eligible(h) || c.givenTo.take(c.now, othersBurst, othersEvery))
	if !ok {
		c.counters.Asks++
	}
	return ok
}

// donation returns the range to give to a peer for a subnet.
func (c *core) donation(h ring.Holder, subnet netip.Prefix) (addr.Range, bool) {
	r, ok := c.space.Donation(subnet)
	if !ok {
		return r, false
	}
	free := addr.Total(c.space.Free(addr.Of(c.cfg.Range))).Float()
	owned := addr.Total(c.space.Owned()).Float()
	host := c.eligible(h)
	most := uint64(othersMost)
	switch {
	case host && c.gotAt(h)+r.Size().Float() <= owned-r.Size().Float():
		return r, true
	case free > owned/othersReserve:
		if host {
			most = shareMost
		}
	case !host:
		return addr.Range{}, false
	default:
		most = 1
	}
	return addr.Of(r.Block(addr.N(most))), true
}

// gotAt returns how much a host has: what it owns, or what peers at its underlay address
// got from this peer if that is more.
func (c *core) gotAt(h ring.Holder) float64 {
	owned := c.ring.Owners()[h].Float()
	if a, ok := c.view.Place(h.Name); ok {
		if g := c.given[placeOf(a)]; g != nil && c.now.Sub(g.at) < shareTTL {
			owned = max(owned, g.addresses)
		}
	}
	return owned
}

// given is what peers at one underlay address got.
type given struct {
	addresses float64
	at        time.Time // of the last one
}

// noteGiven records that a range was offered to a peer.
func (c *core) noteGiven(h ring.Holder, r addr.Range) {
	a, ok := c.view.Place(h.Name)
	if !ok {
		return // it counts with all others
	}
	for place, g := range c.given {
		if len(c.given) >= maxAskers || c.now.Sub(g.at) >= shareTTL {
			delete(c.given, place)
		}
	}
	g := c.given[placeOf(a)]
	if g == nil {
		g = &given{}
		c.given[placeOf(a)] = g
	}
	g.addresses, g.at = g.addresses+r.Size().Float(), c.now
}

// onSpaceAsk offers a range.
func (c *core) onSpaceAsk(from peer.Name, m message) {
	answer := message{kind: msgSpaceAnswer, id: m.id, status: statusNo}
	if to, ok := c.canGive(from); ok && m.prefix.Addr().BitLen() == c.cfg.Range.Addr().BitLen() {
		if c.offered(from, addr.Of(m.prefix)) {
			answer.status = statusYes // it asks again before the decision
		} else if r, ok := c.donation(to, m.prefix); ok && c.mayGive(to) && c.give(to, r, m.id) {
			answer.status = statusYes
		}
		if hosts, err := addr.Hosts(m.prefix); err == nil {
			answer.free = addr.Total(c.space.Free(hosts))
		}
	}
	c.send(from, answer)
}

// onClaimAsk offers a single address, if it is free or the peer alone says that it uses it.
func (c *core) onClaimAsk(from peer.Name, m message) {
	answer := message{kind: msgClaimAnswer, id: m.id, status: statusOther}
	to, ok := c.canGive(from)
	owner, _ := c.ring.Owner(m.addr)
	switch {
	case !ok || !c.isMine(owner):
	case c.offered(from, addr.Single(m.addr)):
		answer.status = statusYes
	case m.inUse || c.withheld(m.addr):
		answer = c.onClaimInUse(to, m)
	case !c.space.Owns(m.addr):
	case c.space.Uses(m.addr):
		answer.status = statusNo
	case c.mayGive(to) && c.give(to, addr.Single(m.addr), m.id):
		answer.status = statusYes
	default:
		answer.status = statusLater
	}
	c.send(from, answer)
}

// canGive returns a peer as an owner, if this peer gives anything to it.
func (c *core) canGive(n peer.Name) (ring.Holder, bool) {
	h, ok := c.holderOf(n)
	return h, ok && c.ring.Ready() && c.caughtUp() && !c.left && c.leaving == nil && c.view.Reachable(n) && !c.ring.IsBanned(h)
}

// offered reports whether a part of r was offered to a peer and is not decided.
func (c *core) offered(to peer.Name, r addr.Range) bool {
	for _, o := range c.offers {
		if o.to == to && o.action.Range.Overlaps(r) {
			return true
		}
	}
	return false
}

// give offers r to another peer. Pieces of r that this peer owns under its other name, as
// a founder, are left out. It gives nothing that a container of this host uses.
func (c *core) give(to ring.Holder, r addr.Range, id uint64) bool {
	from, ok := c.ring.Owner(r.First)
	if !ok || !c.isMine(from) {
		return false
	}
	if r, ok = r.Intersect(c.ring.RunOf(r.First)); !ok {
		return false
	}
	if whole := []addr.Range{r}; !slices.Equal(c.space.Unused(whole), whole) {
		return false
	}
	a, err := c.ring.Give(c.cfg.Signer, from, to, r)
	if err != nil {
		c.warn("cannot give a range", "peer", to, "range", r, "err", err)
		return false
	}
	if err := c.agreeCut(a); err != nil {
		return false // the voters would not agree either
	}
	c.addOffer(&offer{action: a, id: id, to: to.Name, at: c.now})
	c.noteGiven(to, r)
	c.setOwned()
	c.wish(a)
	c.pushDecide()
	return true
}

// addOffer adds an offer and writes it to disk. The caller then calls setOwned.
func (c *core) addOffer(o *offer) {
	key := o.action.Encode()
	c.offers[string(key)] = o
	c.put(bucketOffers, key, append(binary.BigEndian.AppendUint64(nil, o.id), o.to[:]...))
}

// dropOffers drops the offers that were decided or that the ring has overtaken. A range
// that changed owner in another way is not signed again: its receiver asks again.
func (c *core) dropOffers() {
	for k, o := range c.offers {
		if c.ring.CheckEffect(o.action) != nil {
			delete(c.offers, k)
			c.put(bucketOffers, []byte(k), nil)
		}
	}
}

// pushOffers works for the decision of the offers, also after a restart. It revokes those
// to peers that went away, and those that are not decided in time.
func (c *core) pushOffers() {
	if !c.ring.Ready() {
		return
	}
	for _, o := range c.offers {
		a := o.action
		if o.at.IsZero() {
			o.at = c.now
		}
		if c.present(a.To) {
			o.away = time.Time{}
		} else if o.away.IsZero() {
			o.away = c.now
		}
		if c.now.Sub(o.at) < offerTTL && (o.away.IsZero() || c.now.Sub(o.away) < c.cfg.Absence) {
			c.wish(a)
			continue
		}
		delete(c.wishes, keyOf(a))
		// The range goes to its owner once more, so that the offer is void.
		if o.back == nil || c.ring.CheckEffect(o.back) != nil {
			var err error
			if o.back, err = c.ring.Give(c.cfg.Signer, a.From, a.From, a.Range); err != nil {
				continue
			}
		}
		c.wish(o.back)
	}
}
