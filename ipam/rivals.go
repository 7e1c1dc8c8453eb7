package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Claims of addresses in use. A host can use an address that another peer owns: it was removed, its
// ring was left for another one, or it lost its state folder and has a new name, and an operator
// removed the old one. Then it asks the owner for the address. As long as it does, the owner gives
// the address to nobody else. It gives it to the peer, the address alone, once that is the only one:
//
//	peer with containers       owner of the address
//	claim ask, in use  ------> one peer uses the address: a transfer of it, as the rates allow
//	repeated until given       a container of the owner uses it too: a transfer once that has ended
//	                           two peers say so: neither gets it, and nobody else does
//
// An heir would give the addresses of a removed peer to others before it hears of those in use. So
// it gives nothing of such a range before it has taken claims for claimsFirst; see keep.go.
//
// The owner also writes claims to its disk, within flushEvery, so that no address in use becomes free
// when it restarts.
//
// Whether a container uses the address, the owner cannot know. A member that lies gets no more
// than by claims of free addresses, as the same rates hold for both; it cannot get an address
// that a host uses; and what it holds back from all is bounded.

const (
	// claimsFirst is how long an heir takes claims before it uses a range. A host with a full
	// bridge needs 8 s to claim the address of each container.
	claimsFirst = 15 * time.Second
	// rivalTTL is how long a claim holds that is not repeated: its host may be starting again.
	rivalTTL = 10 * time.Minute
	// rivalAfter is how long a claim is silent until another peer's can take its place: two that
	// only one host has made, under two names, must not keep its own out.
	rivalAfter = 4 * regainEvery
	// maxRivals bounds the addresses with claims, and maxRivalsBy those for which one underlay
	// address can claim as the first: a bridge has at most 1,023 ports. All peers without a direct
	// session count as one.
	maxRivals   = 8192
	maxRivalsBy = 1024
)

// rivals are the peers that say that they use an address. Two are enough to know that nobody can
// have it.
type rivals map[ring.Holder]rival

// silent returns the peer that has repeated its claim least recently, which must exist.
func (rs rivals) silent() ring.Holder {
	return slices.MinFunc(slices.Collect(maps.Keys(rs)), func(a, b ring.Holder) int {
		return cmp.Or(rs[a].at.Compare(rs[b].at), a.Compare(b))
	})
}

// rival is the claim of a peer.
type rival struct {
	at time.Time // when it was last repeated, or read from disk
	// from is the underlay address for which the claim counts, as a peer can change its name. It is
	// zero for all peers without a direct session.
	from netip.Addr
}

// noteRival records that a peer uses an address of this peer. It reports false if there is no place
// for an address of which nobody knows yet that it is in use.
func (c *core) noteRival(h ring.Holder, a netip.Addr) bool {
	rs := c.rivals[a]
	if r, repeated := rs[h]; repeated {
		r.at = c.now
		rs[h] = r
		return true
	}
	from, _ := c.view.Place(h.Name)
	from = placeOf(from) // a host can have all of an IPv6 /64; zero without a direct session
	if !c.placeForRival(a, from) {
		c.counters.Asks++
		return false
	}
	if len(rs) == 2 {
		if old := rs.silent(); c.now.Sub(rs[old].at) > rivalAfter {
			c.dropRival(a, old)
		}
	}
	if len(rs) == 2 {
		c.counters.Asks++
		return true
	}
	c.addRival(h, a, rival{c.now, from})
	key, value := writeRival(h, a, from)
	c.putLater(bucketClaims, key, value)
	c.setOwned()
	return true
}

// placeForRival reports whether there is a place for one more claim of an address by a peer at an
// underlay address. A second claim always has one.
func (c *core) placeForRival(a, from netip.Addr) bool {
	return c.rivals[a] != nil || c.rivalsFrom[from] < maxRivalsBy && len(c.rivals) < maxRivals
}

// mayHold reports whether a claim may hold an address back from all. Of the addresses that were free,
// one in othersReserve stays so: else a member that lies could stop a mesh with a small range.
func (c *core) mayHold(a netip.Addr) bool {
	if c.withheld(a) || c.space.Uses(a) || !c.space.Owns(a) {
		return true
	}
	var owned addr.Count
	for _, h := range c.mine() {
		owned = owned.Add(c.ring.Owners()[h])
	}
	return addr.Total(c.space.Free(addr.Of(c.cfg.Range))).Float() > owned.Float()/othersReserve
}

func (c *core) addRival(h ring.Holder, a netip.Addr, r rival) {
	if c.rivals[a] == nil {
		c.rivals[a] = make(rivals)
	}
	c.rivals[a][h] = r
	c.rivalsFrom[r.from]++
}

// startRivals gives the claims that were read from disk the time of the start.
func (c *core) startRivals() {
	for _, rs := range c.rivals {
		for h, r := range rs {
			r.at = c.now
			rs[h] = r
		}
	}
}

// writeRival encodes a claim for the state file.
func writeRival(h ring.Holder, a, from netip.Addr) (key, value []byte) {
	return h.Append(a.AsSlice()), append([]byte{byte(from.BitLen())}, from.AsSlice()...)
}

// parseRival parses what writeRival returned.
func parseRival(key, value []byte) (h ring.Holder, a, from netip.Addr, err error) {
	at := max(0, len(key)-peer.NameLen-len(peer.KeyID{}))
	a, ok := netip.AddrFromSlice(key[:at])
	if ok = ok && len(value) > 0; ok && len(value) > 1 {
		from, ok = netip.AddrFromSlice(value[1:])
	}
	if !ok || int(value[0]) != from.BitLen() {
		return h, a, from, fmt.Errorf("claim of %d and %d bytes: %w", len(key), len(value), errMessage)
	}
	holders, err := ring.ParseHolders(key[at:])
	if err != nil {
		return h, a, from, err
	}
	return holders[0], a, from, nil
}

// dropRival forgets a claim.
func (c *core) dropRival(a netip.Addr, h ring.Holder) {
	from := c.rivals[a][h].from
	delete(c.rivals[a], h)
	key, _ := writeRival(h, a, from)
	c.putLater(bucketClaims, key, nil)
	if c.rivalsFrom[from]--; c.rivalsFrom[from] <= 0 {
		delete(c.rivalsFrom, from)
	}
}

// dropRivals forgets all claims of an address.
func (c *core) dropRivals(a netip.Addr) {
	for h := range c.rivals[a] {
		c.dropRival(a, h)
	}
	delete(c.rivals, a)
}

// pushRivals gives addresses of ranges that are no longer kept to the peers that use them.
func (c *core) pushRivals() {
	changed, free, mine := false, c.caughtUp(), c.mine()
	kept := c.keptRanges()              // once, as there can be many claims
	later := make(map[ring.Holder]bool) // those that get no more now
	for _, a := range slices.SortedFunc(maps.Keys(c.rivals), netip.Addr.Compare) {
		rs := c.rivals[a]
		for h, r := range rs {
			if c.now.Sub(r.at) > rivalTTL {
				c.dropRival(a, h)
			}
		}
		owner, _ := c.ring.Owner(a)
		if len(rs) == 0 || !slices.Contains(mine, owner) {
			c.dropRivals(a)
			changed = true
			continue
		}
		if !free || len(rs) > 1 || c.space.Uses(a) || len(addr.Within(kept, addr.Single(a))) > 0 {
			continue
		}
		for h := range rs {
			if len(c.offers) >= maxOffers || later[h] || !c.present(h) || c.ring.IsBanned(h) || c.offered(h.Name, addr.Single(a)) {
				continue
			}
			if later[h] = !c.mayGive(h); !later[h] {
				c.give(h, addr.Single(a), 0) // the claim ends with the decision
			}
		}
	}
	if changed {
		c.setOwned()
		c.retryPending()
	}
}

// onClaimInUse answers a claim of an address that is in use, or that is kept or held for a peer that
// uses it.
func (c *core) onClaimInUse(h ring.Holder, m message) message {
	answer := message{kind: msgClaimAnswer, id: m.id, status: statusYes} // it asks again
	k, usedHere := c.keptAt(m.addr), c.space.Uses(m.addr)
	switch {
	case usedHere:
		answer.status = statusNo
	case k != nil && !k.isOpen():
		answer.status, answer.until, answer.name = statusKept, k.until, k.from.Name
		return answer
	case !c.withheld(m.addr) && c.space.Owns(m.addr) && c.mayGive(h) && c.give(h, addr.Single(m.addr), m.id):
		return answer
	}
	if m.inUse && !(c.mayHold(m.addr) && c.noteRival(h, m.addr)) && k != nil {
		k.hold(c.now)
	}
	return answer
}

// isKept is the reason why an address is given to nobody yet.
func (c *core) isKept(a netip.Addr, from, heir peer.Name, until time.Time) error {
	if from.IsZero() {
		return because(ErrKept, "%s is kept until %s, as a peer that was removed may use it; host %s, which owns it, does not know which one",
			a, until.Format(time.DateTime), c.displayName(heir))
	}
	return because(ErrKept, "%s is kept until %s for %s, which was removed, in case that it returns; "+
		"to free the addresses of %s at once run on host %s: weft rmpeer %s",
		a, until.Format(time.DateTime), c.displayName(from), from, c.displayName(heir), from)
}
