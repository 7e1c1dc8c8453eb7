package ipam

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Addresses of removed peers. A removal may be wrong: the host was cut off for longer than
// the voters waited, and its containers still use their addresses. So an heir leaves what
// it got unused for Config.Keep, also after a restart. If the peer is back before that, the
// heir gives it everything back, except addresses that containers of the heir use.
//
// Only two things show that no container of the peer lives any more: the time Config.Keep, and
// the word of a person. So the operator of the heir, who knows that the peer is dead, ends that
// with another removal (ByOperator), or prevents it if it was the operator who asked for the
// removal. What a program has seen (ByProgram) shows nothing of the kind. The Node of a
// Kubernetes cluster, for example, can be deleted and created again while its pods run.
//
//	removal      asked for by       heir
//	------------------------------------------------------------------------------
//	decided      programs           keeps it for Config.Keep, then opens it
//	decided      its operator       opens it at once
//	later        its operator       opens what is left of it at once
//	later        programs           no change
//
// An open range is free after claimsFirst. Until then the heir takes claims of those who use an
// address, as a host may have come back under another name, or after its heir was removed too;
// see rivals.go.
//
//	removal --- kept for the peer ---> until --- open for claims ---> free
//	            claims are refused           those who use an address get it

// hold keeps an open range open for claimsFirst more, because a claim of an address of it has found
// no place. All together that takes rivalTTL at most, so that claims without end do not keep the
// range from all.
func (k *kept) hold(now time.Time) {
	until := now.Add(claimsFirst)
	if latest := k.opened.Add(rivalTTL); until.After(latest) {
		until = latest
	}
	if until.After(k.free) {
		k.free = until
	}
}

// stopKeeping ends the time for which the addresses of a peer are kept, as the operator of this
// host asks for its removal.
func (c *core) stopKeeping(n peer.Name) {
	for i := range c.kept {
		if k := &c.kept[i]; k.from.Name == n && !c.present(k.from) && k.until.After(c.now) {
			k.until = c.now
			key, value := k.write()
			c.put(bucketKept, key, value)
		}
	}
	c.pushKept()
}

// keptIn returns how many addresses of a subnet this peer owns, and neither uses nor gives.
func (c *core) keptIn(subnet netip.Prefix) (n addr.Count) {
	owned := addr.Within(c.ring.Owned(c.mine()...), addr.Of(subnet))
	for _, r := range c.space.Unused(c.keptRanges()) {
		n = n.Add(addr.Total(addr.Within(owned, r)))
	}
	return n
}

// keptByPeer returns what is kept, in order of the peers.
func (c *core) keptByPeer() (out []Kept) {
	owned := c.ring.Owned(c.mine()...)
	for _, k := range c.kept {
		size := addr.Total(addr.Within(owned, k.rng))
		if size.IsZero() || !c.obeys(&k) || k.forNobody() {
			continue
		}
		i := slices.IndexFunc(out, func(o Kept) bool { return o.Name == k.from.Name })
		if i < 0 {
			i = len(out)
			out = append(out, Kept{Name: k.from.Name, Nickname: c.view.Nickname(k.from.Name)})
		}
		out[i].Addresses = out[i].Addresses.Add(size)
		if k.until.After(out[i].Until) {
			out[i].Until = k.until
		}
		out[i].Open = out[i].Open || k.isOpen()
	}
	slices.SortFunc(out, func(a, b Kept) int { return a.Name.Compare(b.Name) })
	return out
}

// pushKept gives the addresses of peers that are back to them, and uses those of peers that
// did not come back in time.
func (c *core) pushKept() {
	if !c.ring.Ready() || c.left || c.leaving != nil {
		return
	}
	latest := c.now.Add(c.cfg.Keep) // the clock may have been set back
	for i := range c.kept {
		k := &c.kept[i]
		if k.until.After(latest) {
			k.until = latest
		}
		if !k.isOpen() && !c.now.Before(k.until) && c.caughtUp() {
			k.opened, k.free = c.now, c.now.Add(claimsFirst)
		}
	}
	offered := c.caughtUp() && c.giveBack()
	if expired := c.dropKept(func(k *kept) bool { return k.isOpen() && !c.now.Before(k.free) }); expired || offered {
		c.setOwned()
		c.findForeign()
		c.retryPending()
		c.pushDecide()
	}
	c.pushRivals()
}

// keepsSoon reports whether a range is about to become free.
func (c *core) keepsSoon() bool {
	return slices.ContainsFunc(c.kept, func(k kept) bool { return k.isOpen() || !c.now.Before(k.until) })
}

// giveBack offers peers that are back what this peer owns of their ranges, without what containers
// of this host use, and reports whether it offered anything.
func (c *core) giveBack() (offered bool) {
	back := make(map[ring.Holder]bool) // looked up once for each peer, as it may have many ranges
	var owned []addr.Range
	for i := range c.kept {
		k := &c.kept[i]
		isBack, known := back[k.from]
		if !known {
			isBack = !k.forNobody() && c.obeys(k) && c.present(k.from) && !c.ring.IsBanned(k.from)
			back[k.from] = isBack
		}
		if !isBack {
			continue
		}
		if owned == nil {
			owned = c.ring.Owned(c.mine()...)
		}
		if parts := c.space.Unused(addr.Within(owned, k.rng)); len(parts) > 0 && !c.isLater(k) {
			for _, part := range parts {
				offered = c.giveRuns(k.from, part) || offered
			}
		}
	}
	return offered
}

// giveRuns offers all of r, which this peer owns, and reports whether it offered anything. It can
// have several runs: the ring joins them only if they changed in one slot.
func (c *core) giveRuns(to ring.Holder, r addr.Range) (offered bool) {
	for len(c.offers) < maxOffers {
		run, ok := r.Intersect(c.ring.RunOf(r.First))
		if !ok {
			break
		}
		if !c.offered(to.Name, run) {
			offered = c.give(to, run, 0) || offered
		}
		if run.Last == r.Last {
			break
		}
		r.First = run.Last.Next()
	}
	return offered
}

// isLater reports whether a part of a range is kept for another peer that was removed later. One
// that is banned gets nothing back.
func (c *core) isLater(k *kept) bool {
	return slices.ContainsFunc(c.kept, func(o kept) bool {
		return o.slot > k.slot && o.from != k.from && o.rng.Overlaps(k.rng) && !o.isOpen() && c.obeys(&o) && !c.ring.IsBanned(o.from)
	})
}
