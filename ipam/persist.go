package ipam

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// The buckets of the state file, with their keys and values:
//
//	meta       self, universe: text
//	ring       key -> record, as ring.Stored has them
//	addresses  address, 4 or 16 bytes -> prefix length 1, owner to the end
//	election   entry, value: as package paxos draws them
//	votes      slot: the votes of this peer, as package consensus draws them
//	offers     transfer, as package ring draws it -> id of the ask 8, receiver 6
//	kept       first and last address, the peer that gets them back 22, none or to the end ->
//	           Unix seconds 8, slot of the decision 8, this peer is the heir 1, underlay address of the other peer,
//	           none or to the end
//	claims     address of this peer, the other peer that uses it 22 -> bits of the underlay address of that
//	           peer 1, underlay address
//	places     owner or voter 22 -> the underlay address of the last direct session with it
//	starts     name of an owner or voter 6 -> the slot of this peer when that one started last 8
const (
	bucketMeta      = "meta"
	bucketRing      = "ring"
	bucketAddresses = "addresses"
	bucketElection  = "election"
	bucketVotes     = "votes"
	bucketOffers    = "offers"
	bucketKept      = "kept"
	bucketClaims    = "claims"
	bucketPlaces    = "places"
	bucketStarts    = "starts"
)

// The keys of bucketMeta. They are on disk: metaRange keeps the text that
// released versions write.
const (
	metaSelf  = "self"
	metaRange = "universe"
)

// Disk is the part of *store.Store that an Allocator uses.
type Disk interface {
	Load(bucket string, f func(key, value []byte)) error
	Apply(writes []store.Write) error
}

// OpenDisk opens or creates the state file of one address range at path. A file
// that is damaged, or belongs to another peer or address range, is renamed and
// never deleted; notes then tell the user what happened.
func OpenDisk(path string, self peer.Name, addrRange netip.Prefix) (s *store.Store, notes []string, err error) {
	s, aside, err := store.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if aside != "" {
		notes = append(notes, fmt.Sprintf("the address file %s was damaged and was renamed to %s; the ring comes back from the peers, "+
			"the addresses of running containers when they are claimed", path, aside))
	}
	check := func(key, what, want string) error {
		got, err := s.Get(bucketMeta, []byte(key))
		if err == nil && got != nil && string(got) != want {
			return fmt.Errorf("%s %s, not %s", what, got, want)
		}
		return err
	}
	foreign := errors.Join(check(metaSelf, "peer", self.String()), check(metaRange, "address range", addrRange.Masked().String()))
	if foreign != nil {
		if err := s.Close(); err != nil {
			return nil, notes, err
		}
		aside, err := store.SetAside(path, "foreign")
		if err != nil {
			return nil, notes, err
		}
		notes = append(notes, fmt.Sprintf("the address file %s is for %s; it was renamed to %s, and a new one was begun", path, foreign, aside))
		if s, _, err = store.Open(path); err != nil {
			return nil, notes, err
		}
	}
	err = s.Apply([]store.Write{
		{Bucket: bucketMeta, Key: []byte(metaSelf), Value: []byte(self.String())},
		{Bucket: bucketMeta, Key: []byte(metaRange), Value: []byte(addrRange.Masked().String())},
	})
	if err != nil {
		return nil, notes, errors.Join(err, s.Close())
	}
	return s, notes, nil
}

// load restores the core from disk. It leaves out everything that it cannot read
// and reports it in notes. Lost records of the ring come back from other peers.
func (c *core) load(disk Disk) (notes []error) {
	l := &loader{core: c, disk: disk}
	l.loadElection() // first, as the ring may come from it
	l.loadRing()
	l.loadAddresses()
	l.loadVotes()
	l.loadOffers()
	l.loadKept()
	l.loadClaims()
	l.loadPlaces()
	l.loadStarts()
	l.diskSlot = noSlot
	if l.ring.Ready() {
		l.diskSlot = l.ring.Slot()
	}
	_, waits := l.ring.Awaits()
	l.cfg.Lost = l.cfg.Lost || len(l.notes) > 0
	if l.ring.Ready() || waits || l.cfg.Lost {
		l.startCatchUp()
	}
	return l.notes
}

// loader is the state of one call of load.
type loader struct {
	*core
	disk  Disk
	notes []error
}

func (l *loader) each(bucket string, f func(key, value []byte)) {
	if err := l.disk.Load(bucket, f); err != nil {
		l.notes = append(l.notes, err)
	}
}

func (l *loader) loadRing() {
	records := make(ring.Stored)
	l.each(bucketRing, func(k, v []byte) {
		l.onDisk[string(k)] = storedRecord(string(k), v)
		records[string(k)] = bytes.Clone(v)
	})
	l.notes = append(l.notes, l.ring.Restore(records)...)
}

func (l *loader) loadAddresses() {
	l.each(bucketAddresses, func(k, v []byte) {
		a, ok := netip.AddrFromSlice(k)
		if !ok || len(v) < 2 || int(v[0]) > a.BitLen() {
			l.notes = append(l.notes, fmt.Errorf("address %x in the state file: %w", k, errMessage))
			return
		}
		owner := string(v[1:])
		if l.ringDivides(a) {
			l.space.Take(a)
		}
		l.allocations[a] = allocation{owner, int(v[0])}
		l.byOwner[owner] = append(l.byOwner[owner], a)
	})
}

func (l *loader) loadElection() {
	var own, value []byte
	l.each(bucketElection, func(k, v []byte) {
		switch string(k) {
		case "entry":
			own = bytes.Clone(v)
		case "value":
			value = bytes.Clone(v)
		}
	})
	var err error
	if l.election, err = l.newElection(own, value); err != nil {
		// Without its promises this peer must not vote. It may still start elections.
		l.notes = append(l.notes, err)
		l.cfg.Init.Mode = Observer
		l.election, _ = l.newElection(nil, nil)
	}
}

func (l *loader) loadVotes() {
	l.each(bucketVotes, func(_, v []byte) { l.savedVotes = bytes.Clone(v) })
}

func (l *loader) loadOffers() {
	l.each(bucketOffers, func(k, v []byte) {
		a, err := ring.ParseAction(k)
		if err != nil || len(v) != 8+peer.NameLen {
			l.notes = append(l.notes, fmt.Errorf("offer in the state file: %w", cmp.Or(err, errMessage)))
			return
		}
		l.offers[string(k)] = &offer{action: a, id: binary.BigEndian.Uint64(v), to: peer.NameFromBytes(v[8:])}
	})
}

func (l *loader) loadKept() {
	l.each(bucketKept, func(key, v []byte) {
		k, err := parseKept(key, v)
		if err != nil {
			l.notes = append(l.notes, fmt.Errorf("addresses kept for a removed peer: %w", err))
			return
		}
		if !addr.Of(l.cfg.Range).Covers(k.rng) {
			l.notes = append(l.notes, fmt.Errorf("addresses kept for a removed peer: %s: %w %s", k.rng, ring.ErrRange, l.cfg.Range))
			return
		}
		if l.kept = append(l.kept, k); len(l.kept) >= 2*maxKept {
			l.boundKept()
		}
	})
	l.sortKept()
	l.boundKept()
}

func (l *loader) loadClaims() {
	l.each(bucketClaims, func(key, v []byte) {
		h, a, from, err := parseRival(key, v)
		if err != nil {
			l.notes = append(l.notes, fmt.Errorf("claims of addresses in use: %w", err))
			return
		}
		if !l.placeForRival(a, from) || len(l.rivals[a]) == 2 {
			l.put(bucketClaims, bytes.Clone(key), nil)
			return
		}
		l.addRival(h, a, rival{from: from})
	})
}

// loadPlaces reads where other peers were last. The next look at who is absent drops what the ring does
// not name.
func (l *loader) loadPlaces() {
	l.each(bucketPlaces, func(key, v []byte) {
		holders, err := ring.ParseHolders(key)
		place, ok := netip.AddrFromSlice(v)
		if err != nil || !ok || len(holders) != 1 {
			l.notes = append(l.notes, fmt.Errorf("underlay address of a peer: %d and %d bytes: %w", len(key), len(v), errMessage))
			return
		}
		l.lastPlace[holders[0]] = place
	})
}

// loadStarts reads when other peers started. The next look drops those that the ring does not name.
func (l *loader) loadStarts() {
	l.each(bucketStarts, func(key, v []byte) {
		if len(key) != peer.NameLen || len(v) != 8 {
			l.notes = append(l.notes, fmt.Errorf("start of a peer: %d and %d bytes: %w", len(key), len(v), errMessage))
			return
		}
		l.startedPeers[peer.NameFromBytes(key)] = &started{slot: binary.BigEndian.Uint64(v)}
	})
}

func allocationWrite(owner string, a netip.Addr, bits int) store.Write {
	return store.Write{Bucket: bucketAddresses, Key: a.AsSlice(), Value: append([]byte{byte(bits)}, owner...)}
}

func releaseWrite(a netip.Addr) store.Write {
	return store.Write{Bucket: bucketAddresses, Key: a.AsSlice()}
}

// stored is a record of the ring on disk. A record under the key of a slot never changes;
// of the others, which are few, the value is kept.
type stored struct{ value string }

func storedRecord(k string, v []byte) stored {
	if len(k) >= 10 {
		return stored{}
	}
	return stored{string(v)}
}

func (s stored) is(k string, v []byte) bool { return len(k) >= 10 || s.value == string(v) }

// saveRing writes what changed in the ring. It goes to disk with the next own write, or
// within flushEvery: what is lost comes back from other peers. A change to another ring is
// written at once, as the operator may have decided it.
func (c *core) saveRing() {
	put := func(k string, v []byte) { c.putLater(bucketRing, []byte(k), v) }
	now := c.ring.Dump()
	for k, v := range now {
		if old, ok := c.onDisk[k]; !ok || !old.is(k, v) {
			put(k, v)
			c.onDisk[k] = storedRecord(k, v)
		}
	}
	for k := range c.onDisk {
		if now[k] == nil {
			put(k, nil)
			delete(c.onDisk, k)
		}
	}
	var id ring.ID
	if g := c.ring.Genesis(); g != nil {
		id = g.ID()
	}
	if id != c.savedRing {
		c.savedRing = id
		c.flush()
	}
}
