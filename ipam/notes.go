package ipam

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Notes of removals; see keep.go. An heir can go too: it leaves, or it is banned or removed. So each
// peer writes a note of each removal, with the slot of the decision, and the owner of a range obeys
// its own notes. The decision of a transfer ends the notes of its range: the owner gave the range
// back, or found it free and gave it to another peer. An offer ends no note, as the voters may not
// decide it.
//
// If the heir is removed, there are two notes of one range:
//
//	decision              note of each peer      the next heir
//	------------------------------------------------------------------------------
//	X is removed          range kept for X
//	its heir is removed   range kept for heir    obeys this one, as its slot is higher
//
// So the next heir gives the range to the first heir, also if X is back before. The first heir alone
// knows whether it has used the range, and goes on with its note for X. A peer also notes its own
// removal: that note keeps it from nothing, but shows that the range was given back to it, and did
// not come from an owner that found it free.
//
// What a peer gets by a transfer, the owner before has found free. What it gets in another way may
// be in use on a third host, which has claimed it from the owner before. So the new owner writes a
// note for nobody, and takes claims first:
//
//	the peer gets a range by               it takes claims
//	------------------------------------------------------------------------------
//	a leave or a ban                       at once
//	a ring that is founded again           after followTime: other hosts follow it meanwhile
//	another change of the ring             at once
//	a snapshot, as decisions are missing   at once; after Config.Keep if a peer left or was
//	                                       removed in the slot that gave it the range

// maxKept bounds the notes. An honest host has few ranges, but a member can make up any number of
// peers. So beyond the bound the underlay address with the most notes loses one. Peers whose underlay
// address is unknown here count as one address. Of the notes of that address, the peer with the most
// loses one: first one of a range that another peer inherited, then the smallest.
const maxKept = 1024

// followTime is how long nobody gets the addresses of the peers with which a ring lost its quorum.
// Containers of other hosts may use some of them. The operators of those hosts make them follow the new
// ring meanwhile.
const followTime = 5 * time.Minute

// kept is a note for one range. It has no effect while another peer owns the range.
type kept struct {
	rng   addr.Range
	from  ring.Holder // the peer that gets the range back; zero for nobody
	until time.Time
	slot  int64      // of the decision; negative for those of another ring
	heir  bool       // this peer got the range by the removal
	place netip.Addr // the underlay address that counts it; zero if this peer had no direct session with from
	// Not on disk: when the range was opened for claims, zero before until, and until when claims
	// have precedence.
	opened, free time.Time
}

// isOpen reports whether claims are taken, as the range is not kept for its owner before any more.
func (k *kept) isOpen() bool { return !k.free.IsZero() }

// forNobody reports whether the range is not given back to anybody.
func (k *kept) forNobody() bool { return k.from.IsZero() }

// obeys reports whether a note keeps this peer from using the range: it is not for this peer.
func (c *core) obeys(k *kept) bool { return k.from.Name != c.cfg.Self || !c.isMine(k.from) }

// keptAt returns the note that counts for an address, nil if there is none or another peer owns
// the address. A note that keeps the address for a peer counts more than an open one, and then
// that of the latest removal.
func (c *core) keptAt(a netip.Addr) (counts *kept) {
	if owner, ok := c.ring.Owner(a); !ok || !c.isMine(owner) {
		return nil
	}
	for i := range c.kept {
		k := &c.kept[i]
		if !k.rng.Contains(a) || !c.obeys(k) {
			continue
		}
		if counts == nil || counts.isOpen() && !k.isOpen() || counts.isOpen() == k.isOpen() && k.slot > counts.slot {
			counts = k
		}
	}
	return counts
}

// keptRanges returns the ranges that this peer does not use, whoever owns them, normalized by
// addr.Normal.
func (c *core) keptRanges() (out []addr.Range) {
	for i := range c.kept {
		if k := &c.kept[i]; c.obeys(k) {
			out = append(out, k.rng)
		}
	}
	return addr.Normal(out)
}

// write encodes k for the state file.
func (k *kept) write() (key, value []byte) {
	key = append(k.rng.First.AsSlice(), k.rng.Last.AsSlice()...)
	if !k.forNobody() {
		key = k.from.Append(key)
	}
	value = binary.BigEndian.AppendUint64(nil, uint64(k.until.Unix()))
	value = binary.BigEndian.AppendUint64(value, uint64(k.slot))
	heir := byte(0)
	if k.heir {
		heir = 1
	}
	return key, append(append(value, heir), k.place.AsSlice()...)
}

// parseKept parses what write returned.
func parseKept(key, value []byte) (k kept, err error) {
	const holderLen = peer.NameLen + len(peer.KeyID{})
	at := len(key)
	if at != 2*net.IPv4len && at != 2*net.IPv6len {
		at -= holderLen
	}
	const placeAt = 8 + 8 + 1
	if at < 0 || len(value) < placeAt || value[placeAt-1] > 1 {
		return kept{}, fmt.Errorf("range of %d bytes for %d bytes: %w", len(key), len(value), errMessage)
	}
	first, ok1 := netip.AddrFromSlice(key[:at/2])
	last, ok2 := netip.AddrFromSlice(key[at/2 : at])
	k.rng = addr.Range{First: first, Last: last}
	if !ok1 || !ok2 || first.BitLen() != last.BitLen() || !k.rng.IsValid() {
		return kept{}, fmt.Errorf("range of %d bytes: %w", at, errMessage)
	}
	if at < len(key) {
		holders, err := ring.ParseHolders(key[at:])
		if err != nil {
			return kept{}, err
		}
		k.from = holders[0]
	}
	k.until = time.Unix(int64(binary.BigEndian.Uint64(value)), 0)
	k.slot, k.heir = int64(binary.BigEndian.Uint64(value[8:])), value[placeAt-1] == 1
	if len(value) > placeAt {
		var ok bool
		if k.place, ok = netip.AddrFromSlice(value[placeAt:]); !ok {
			return kept{}, fmt.Errorf("underlay address of %d bytes: %w", len(value)-placeAt, errMessage)
		}
	}
	return k, nil
}

func (c *core) sortKept() {
	slices.SortFunc(c.kept, func(a, b kept) int { return a.rng.First.Compare(b.rng.First) })
}

// noteMoves notes what has another owner now, and ends the notes of ranges that were transferred.
func (c *core) noteMoves() {
	for _, m := range c.ring.TakeMoves() {
		k := kept{until: c.now, slot: int64(m.Slot)}
		switch m.Kind {
		case ring.Transfer:
			c.endNotes(m)
			if c.isMine(m.To) {
				c.promiseKept(m)
			}
			continue
		case ring.Remove:
			// A removal that the operator of this host asked for is no mistake.
			if _, asked := c.consents[consent{ring.Remove, m.From}]; !asked {
				k.until = c.now.Add(c.cfg.Keep)
			}
			k.from, k.heir, k.place = m.From, c.isMine(m.To), c.lastPlace[m.From]
		case ring.Adopt:
			if len(m.Ranges) == 0 { // slots begin at 1 again
				c.renumberNotes()
				for n := range c.startedPeers {
					c.forgetStart(n)
				}
			}
			if g := c.ring.Genesis(); g != nil && g.FoundedAgain() {
				k.until = c.now.Add(followTime)
			}
		}
		if m.Departed {
			k.until = c.now.Add(c.cfg.Keep)
		}
		if k.forNobody() && !m.Departed && !c.isMine(m.To) {
			continue
		}
		// The largest ranges first, in case there are more than maxKept.
		slices.SortStableFunc(m.Ranges, func(a, b addr.Range) int { return b.Size().Cmp(a.Size()) })
		var notes []kept
		for _, k.rng = range m.Ranges[:min(len(m.Ranges), maxKept)] {
			notes = append(notes, k)
		}
		c.keep(notes...)
	}
}

// renumberNotes makes all removals of another ring earlier than those of this one, in their order.
func (c *core) renumberNotes() {
	var last int64
	for _, k := range c.kept {
		last = max(last, k.slot+1)
	}
	notes := slices.Clone(c.kept)
	for i := range notes {
		notes[i].slot -= last
	}
	c.keep(notes...)
}

// endNotes ends notes of a range that its owner gave to another peer. If that peer was removed, the
// owner has only given the range back. The notes of earlier removals stay then, as the peer may have
// inherited the range by them. If it was not removed, the owner has found the range free. Only an
// heir goes on with its notes, as later owners may not know whether the range is free.
func (c *core) endNotes(m ring.Move) {
	back, slot := false, int64(math.MinInt64) // the removal of the peer that gets it
	for _, k := range c.kept {
		if k.from == m.To && k.rng.Overlaps(m.Ranges[0]) {
			back, slot = true, max(slot, k.slot)
		}
	}
	var rest []kept
	c.dropKept(func(k *kept) bool {
		ends := k.from == m.To || back && k.slot > slot || !back && !k.heir
		if !ends || !k.rng.Overlaps(m.Ranges[0]) {
			return false
		}
		for _, r := range addr.Subtract([]addr.Range{k.rng}, m.Ranges) {
			part := *k
			part.rng = r
			rest = append(rest, part)
		}
		return true
	})
	c.keep(rest...)
}

// keptKey tells notes apart.
type keptKey struct {
	rng  addr.Range
	from ring.Holder
}

func (k *kept) key() keptKey { return keptKey{k.rng, k.from} }

// keep adds notes, in place of older ones for the same ranges and peers. What was kept for nobody is
// kept at least as long as before.
func (c *core) keep(notes ...kept) {
	again := make(map[keptKey]int)
	for i, k := range notes {
		again[k.key()] = i
	}
	c.dropKept(func(old *kept) bool {
		i, found := again[old.key()]
		if found && old.forNobody() && old.until.After(notes[i].until) {
			notes[i].until = old.until
		}
		return found
	})
	for _, k := range notes {
		key, value := k.write()
		c.put(bucketKept, key, value)
	}
	c.kept = append(c.kept, notes...)
	c.boundKept()
	c.sortKept()
}

// boundKept drops notes beyond maxKept.
func (c *core) boundKept() {
	if len(c.kept) <= maxKept {
		return
	}
	type counted struct {
		*kept
		at, of *int // how many there are of the underlay address, and of the peer
		others int  // 1 if this peer is not the heir
		size   addr.Count
	}
	at, of := make(map[netip.Addr]*int), make(map[ring.Holder]*int)
	var notes []counted
	for i := range c.kept {
		k := &c.kept[i]
		if at[k.place] == nil {
			at[k.place] = new(int)
		}
		if of[k.from] == nil {
			of[k.from] = new(int)
		}
		n := counted{kept: k, at: at[k.place], of: of[k.from], size: k.rng.Size()}
		if *n.at, *n.of = *n.at+1, *n.of+1; !k.heir {
			n.others = 1
		}
		notes = append(notes, n)
	}
	drop := make(map[keptKey]bool)
	for len(notes) > maxKept {
		worst := 0
		for i := range notes {
			n, w := &notes[i], &notes[worst]
			if cmp.Or(*n.at-*w.at, *n.of-*w.of, n.others-w.others, w.size.Cmp(n.size)) > 0 {
				worst = i
			}
		}
		w := notes[worst]
		*w.at, *w.of = *w.at-1, *w.of-1
		drop[w.key()] = true
		notes[worst] = notes[len(notes)-1]
		notes = notes[:len(notes)-1]
	}
	c.dropKept(func(k *kept) bool { return drop[k.key()] })
}

// dropKept ends the keeping of the ranges for which drop is true, and reports whether there
// were any.
func (c *core) dropKept(drop func(*kept) bool) bool {
	before := len(c.kept)
	c.kept = slices.DeleteFunc(c.kept, func(k kept) bool {
		if !drop(&k) {
			return false
		}
		key, _ := k.write()
		c.put(bucketKept, key, nil)
		return true
	})
	return len(c.kept) < before
}
