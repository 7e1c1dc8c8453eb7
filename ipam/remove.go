package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Requester is who asks for a removal. The zero value is the careful one.
type Requester int

const (
	// ByProgram is a program that has seen a sign of the death of a peer, such as a Node that was
	// deleted. Containers of the peer may live all the same: its host may be cut off, or be
	// about to register again. So the voters look for themselves, and the heir keeps the
	// addresses for Config.Keep.
	ByProgram Requester = iota
	// ByOperator is a person who knows that the peer is dead. That counts as the consent of
	// this peer, if it is a voter, and an heir uses the addresses at once.
	ByOperator
)

// RemovedPeer describes the removal of one peer.
type RemovedPeer struct {
	Name peer.Name
	// Heir owns its addresses now; zero if it owned none.
	Heir peer.Name
	// Addresses is how many addresses it owned, as far as this peer knew.
	Addresses addr.Count
	// Unknown reports that it owned nothing, had no vote, and neither left nor was removed
	// lately.
	Unknown bool
}

// removal is the state of one call of RemovePeers.
type removal struct {
	id    uint64
	peers []*peerRemoval
}

// peerRemoval is the removal of one holder.
type peerRemoval struct {
	gone   ring.Holder
	sample netip.Addr // an address that it owned
	result RemovedPeer
}

// remove begins the removal of peers.
func (c *core) remove(id uint64, names []peer.Name, by Requester) {
	if err := c.checkRemove(names); err != nil {
		c.fail(id, err)
		return
	}
	r := &removal{id: id}
	for _, n := range names {
		owners := c.ring.Named(n)
		if by == ByOperator {
			c.stopKeeping(n)
		}
		if len(owners) == 0 {
			r.peers = append(r.peers, &peerRemoval{result: RemovedPeer{Name: n, Unknown: !c.ring.Departed(n)}})
		}
		for _, h := range owners {
			if c.present(h) {
				continue // another key under the same name
			}
			p := &peerRemoval{gone: h, result: RemovedPeer{Name: n, Addresses: c.ring.Owners()[h]}}
			if owned := c.ring.Owned(h); len(owned) > 0 {
				p.sample = owned[0].First
			}
			r.peers = append(r.peers, p)
			if by == ByOperator {
				c.consents[consent{ring.Remove, h}] = c.now
			}
			c.wish(c.removalOf(h))
			c.wishes[wishKey{kind: ring.Remove, from: h}].at = c.now
		}
	}
	c.removals[id] = r
	c.pushRemovals()
	c.pushDecide()
}

// refound removes peers although the voters that are there are too few to decide it: this
// peer founds the ring again, and the operators of the other hosts follow with adopt.
func (c *core) refound(names []peer.Name) (out []RemovedPeer, err error) {
	if err := c.checkRemove(names); err != nil {
		return nil, err
	}
	if n, need := len(c.presentVoters()), ring.Quorum(len(c.ring.Voters())); n >= need {
		return nil, fmt.Errorf("%s can be reached and %d %s: go on without force",
			count.Of(n, "voter", "voters"), need, count.Form(need, "decides", "decide"))
	}
	var gone []ring.Holder
	for _, n := range names {
		r := RemovedPeer{Name: n, Unknown: len(c.ring.Named(n)) == 0 && !c.ring.Departed(n)}
		for _, h := range c.ring.Named(n) {
			if !c.present(h) {
				gone = append(gone, h)
				r.Addresses, r.Heir = r.Addresses.Add(c.ring.Owners()[h]), c.cfg.Self
			}
		}
		out = append(out, r)
	}
	c.machine = nil
	o, err := c.ring.Refound(c.cfg.Signer, c.self, gone)
	if err != nil {
		return nil, err
	}
	c.publish(o)
	return out, nil
}

func (c *core) checkRemove(names []peer.Name) error {
	switch {
	case c.left:
		return ErrLeft
	case !c.ring.Ready():
		return fmt.Errorf("there is no ring: %w", c.noRing())
	case slices.Contains(names, c.cfg.Self):
		return fmt.Errorf("%s is this peer; reset it instead", c.displayName(c.cfg.Self))
	}
	for _, n := range names {
		owners := c.ring.Named(n)
		if c.view.Reachable(n) && (len(owners) == 0 || slices.ContainsFunc(owners, c.present)) {
			return fmt.Errorf("%s can be reached; reset it there instead", c.displayName(n))
		}
	}
	return nil
}

// pushRemovals replies to the removals that are decided, and to those of peers that are
// back.
func (c *core) pushRemovals() {
	for _, id := range slices.Sorted(maps.Keys(c.removals)) {
		r := c.removals[id]
		back := slices.IndexFunc(r.peers, func(p *peerRemoval) bool { return !c.removed(p) && c.present(p.gone) })
		if back >= 0 {
			delete(c.removals, id)
			c.fail(id, fmt.Errorf("%s is back", c.displayName(r.peers[back].gone.Name)))
			continue
		}
		if slices.ContainsFunc(r.peers, func(p *peerRemoval) bool { return !c.removed(p) }) {
			continue
		}
		delete(c.removals, id)
		var results []RemovedPeer
		for _, p := range r.peers {
			if p.sample.IsValid() {
				heir, _ := c.ring.Owner(p.sample)
				p.result.Heir = heir.Name
			}
			results = append(results, p.result)
		}
		c.reply(id, answer{removed: results})
	}
}

func (c *core) removed(p *peerRemoval) bool { return !c.inRing(p.gone) }

// inRing reports whether h owns addresses or has a vote.
func (c *core) inRing(h ring.Holder) bool {
	return !c.ring.Owners()[h].IsZero() || slices.Contains(c.ring.Voters(), h)
}

// notRemoved returns the reason why a removal waits, with the names of the peers.
func (c *core) notRemoved(r *removal) error {
	var names []string
	for _, p := range r.peers {
		if !c.removed(p) {
			names = append(names, c.displayName(p.gone.Name))
		}
	}
	return because(ErrNoQuorum, "%s: %s", joinNames(names), c.undecided())
}

// present reports whether the peer that h names is in the mesh, with the key of h.
func (c *core) present(h ring.Holder) bool {
	if c.isMine(h) {
		return true
	}
	if !c.view.Reachable(h.Name) {
		return false
	}
	k, ok := c.view.Key(h.Name)
	return ok && (h.Key == peer.KeyID{} || peer.IDOf(k) == h.Key)
}

// watchAbsence records since when each owner and voter is absent, and where it was last.
func (c *core) watchAbsence() {
	seen := make(map[ring.Holder]bool)
	watch := func(h ring.Holder) {
		seen[h] = true
		if a, direct := c.view.Place(h.Name); direct && !c.isMine(h) && c.present(h) && c.lastPlace[h] != placeOf(a) {
			c.lastPlace[h] = placeOf(a)
			c.putLater(bucketPlaces, h.Append(nil), placeOf(a).AsSlice())
		}
		if _, known := c.absentSince[h]; c.present(h) {
			delete(c.absentSince, h)
		} else if !known {
			c.absentSince[h] = c.now
		}
	}
	for h := range c.ring.Owners() {
		watch(h)
	}
	for _, h := range c.ring.Voters() {
		watch(h)
	}
	for h := range c.absentSince {
		if !seen[h] {
			delete(c.absentSince, h)
		}
	}
	for h := range c.lastPlace {
		if !seen[h] {
			delete(c.lastPlace, h)
			c.putLater(bucketPlaces, h.Append(nil), nil)
		}
	}
}

// absentFor returns how long h has been absent, 0 if it is present.
func (c *core) absentFor(h ring.Holder) time.Duration {
	since, ok := c.absentSince[h]
	if !ok || c.present(h) {
		return 0
	}
	return c.now.Sub(since)
}
