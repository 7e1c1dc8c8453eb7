package topology

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// The entry of this peer. Times of its changes:
const (
	// What this peer gained is published gainDelay after the first gain, for each peer that it
	// knows, and after maxGainDelay at most. With less, the cost of a mesh that starts grows faster
	// than its sessions; with more, hosts that join are reached later. While it gains more and
	// more, as in a mesh that starts, each delay is twice the one before, up to maxGrowing times
	// the first, and maxGrowingDelay: each peer then publishes a few entries, however long the
	// start takes. Links to direct neighbours are used meanwhile. Delays are short again after none was needed for calm times
	// the last.
	gainDelay       = 10 * time.Millisecond
	maxGainDelay    = time.Second
	maxGrowing      = 32
	maxGrowingDelay = 10 * time.Second
	calm            = 4
	// The same for costs. They decide only between routes with equally many hops.
	costDelay    = time.Second
	maxCostDelay = 30 * time.Second
)

// publish signs e as this peer's entry and returns it as a delta.
func (s *State) publish(e *Entry) []byte {
	e.Name, e.Key, e.Instance, e.Nickname = s.cfg.Self, s.cfg.Signer.Key(), s.cfg.Instance, s.cfg.Nickname
	e.ShortID, e.hasShortID, e.Addrs = s.shortID, true, s.addrs
	e.sign(s.cfg.Signer)
	s.own = e
	s.put(e)
	return slices.Clone(e.raw)
}

// SetAddrs replaces the addresses at which this peer may be dialled. The next call of
// SetLinks publishes them.
func (s *State) SetAddrs(addrs []netip.AddrPort) {
	s.addrs = nil
	for _, a := range addrs[:min(len(addrs), MaxAddrs)] {
		s.addrs = append(s.addrs, netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()))
	}
}

// SetLinks replaces this peer's links and returns the delta to announce, with the entries
// that had waited for one of the links. It returns nil and changes nothing if no link or
// address came or went and no cost changed by a doubling.
func (s *State) SetLinks(links []Link) []byte {
	links = inOrder(links)
	version := s.own.Version + 1
	switch {
	case s.ahead():
		version = uint64(max(0, s.now.UnixMicro()))
	case !s.differs(links):
		return nil
	}
	return s.admitWaiting(s.own, s.publish(&Entry{Version: version, Links: links}))
}

// OfferLinks is SetLinks for links of which more will change soon: a host that joins makes sessions
// with all others within a second, round trips of a busy mesh change all the time, and each entry
// costs every peer a check. A lost link is published at once, what was gained after gainDelay for
// each peer, and a change of costs alone after costDelay for each peer. A non-zero time says when to
// call OfferLinks again at the latest.
func (s *State) OfferLinks(links []Link, now time.Time) (delta []byte, again time.Time) {
	if links := inOrder(links); !s.ahead() {
		wait := time.Duration(len(s.entries))
		gains := s.gains(links)
		switch {
		case s.loses(links):
			wait = 0
		case gains:
			wait = s.gainWait(now)
		case s.differs(links):
			wait = min(maxCostDelay, wait*costDelay)
		default:
			s.offerAt = time.Time{}
			return nil, time.Time{}
		}
		if at := now.Add(wait); s.offerAt.IsZero() || at.Before(s.offerAt) {
			s.offerAt = at
		}
		if now.Before(s.offerAt) {
			return nil, s.offerAt
		}
		if gains && wait > 0 {
			s.gainedAt, s.growing = now, min(2*s.growing, maxGrowing)
		}
	}
	s.offerAt = time.Time{}
	return s.SetLinks(links), time.Time{}
}

// gainWait returns how long to wait for more after this peer gained something.
func (s *State) gainWait(now time.Time) time.Duration {
	least := min(maxGainDelay, time.Duration(len(s.entries))*gainDelay)
	wait := min(maxGrowingDelay, time.Duration(s.growing)*least)
	if s.growing == 0 || s.gainedAt.Add(calm*wait).Before(now) {
		s.growing, wait = 1, least
	}
	return wait
}

// inOrder returns links as an entry may list them.
func inOrder(links []Link) []Link {
	links = slices.Clone(links)
	slices.SortFunc(links, func(a, b Link) int { return a.To.Compare(b.To) })
	links = slices.CompactFunc(links, func(a, b Link) bool { return a.To == b.To }) // others refuse an entry that lists a link twice
	return links[:min(len(links), MaxLinks)]
}

// ahead reports whether this peer's entry is from the future: the clock of this host was a day
// ahead when the router was launched. No other peer has accepted such a version.
func (s *State) ahead() bool { return s.own.Version > s.newest() }

// differs reports whether links, or the addresses, differ from this peer's entry.
func (s *State) differs(links []Link) bool {
	return !slices.Equal(s.addrs, s.own.Addrs) || !slices.EqualFunc(links, s.own.Links, func(a, b Link) bool {
		return a.To == b.To && a.Flags == b.Flags && max(a.Cost, b.Cost)-min(a.Cost, b.Cost) < costStepsPerX2
	})
}

// loses reports whether links lack a link of this peer's entry, or a way of one.
func (s *State) loses(links []Link) bool { return lacks(links, s.own.Links) }

// gains reports whether this peer's entry lacks a link, or a way of one, or has other addresses.
func (s *State) gains(links []Link) bool {
	return lacks(s.own.Links, links) || !slices.Equal(s.addrs, s.own.Addrs)
}

// lacks reports whether some links lack one of others, or a way of one.
func lacks(links, others []Link) bool {
	return slices.ContainsFunc(others, func(o Link) bool {
		l := linkTo(links, o.To)
		return l == nil || o.Flags&^l.Flags != 0
	})
}

// linkTo returns the link to a peer, nil if there is none. The links are in order.
func linkTo(links []Link, to peer.Name) *Link {
	i, ok := slices.BinarySearchFunc(links, to, func(l Link, n peer.Name) int { return l.To.Compare(n) })
	if !ok {
		return nil
	}
	return &links[i]
}
