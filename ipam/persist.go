package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// The buckets of the state file, with their keys and values:
//
//	meta       self, universe: text; origin, genesis: ids, 16 bytes; round 4
//	ring       id -> record, as package ring draws it
//	addresses  address, 4 or 16 bytes -> prefix length 1, owner to the end
//	election   entry, value: as package paxos draws them
//	votes      gone 10 -> promised 10, accepted 10, proposal 2+n
const (
	bucketMeta      = "meta"
	bucketRing      = "ring"
	bucketAddresses = "addresses"
	bucketElection  = "election"
	bucketVotes     = "votes"
)

// The keys of bucketMeta. They are on disk: metaRange keeps the text that
// released versions write.
const (
	metaSelf    = "self"
	metaRange   = "universe"
	metaOrigin  = "origin"
	metaGenesis = "genesis"
	metaRound   = "round"
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
	l.loadRing()
	l.loadAddresses()
	l.loadElection()
	l.loadVotes()
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
	var origin, genesis ring.ID
	l.each(bucketMeta, func(k, v []byte) {
		switch string(k) {
		case metaOrigin:
			copy(origin[:], v)
		case metaGenesis:
			copy(genesis[:], v)
		case metaRound:
			if len(v) == 4 {
				l.round = binary.BigEndian.Uint32(v)
			}
		}
	})
	var records [][]byte
	l.each(bucketRing, func(k, v []byte) {
		var id ring.ID
		copy(id[:], k)
		l.onDisk[id] = true
		records = append(records, bytes.Clone(v))
	})
	l.notes = append(l.notes, l.ring.Restore(origin, genesis, records)...)
	l.genesis = genesis
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
	l.each(bucketVotes, func(k, v []byte) {
		f, g := fields{b: k}, fields{b: v}
		a := &paxos.Acceptor[string]{}
		gone := f.holder()
		a.Promised, a.Accepted = g.ballot(), g.ballot()
		a.Value = string(g.bytes())
		if f.bad || g.bad {
			l.notes = append(l.notes, fmt.Errorf("vote %x in the state file: %w", k, errMessage))
			return
		}
		l.votes[gone] = a
	})
}

func allocationWrite(owner string, a netip.Addr, bits int) store.Write {
	return store.Write{Bucket: bucketAddresses, Key: a.AsSlice(), Value: append([]byte{byte(bits)}, owner...)}
}

func releaseWrite(a netip.Addr) store.Write {
	return store.Write{Bucket: bucketAddresses, Key: a.AsSlice()}
}

// ringWrites returns the writes of records that a merge accepted.
func (c *core) ringWrites(out ring.Outcome) (writes []store.Write) {
	for _, r := range out.Records {
		c.onDisk[r.ID] = true
		writes = append(writes, store.Write{Bucket: bucketRing, Key: bytes.Clone(r.ID[:]), Value: r.Bytes})
	}
	return writes
}

// saveRingIdentity writes the identity of the ring, if it has changed, and replaces
// the records on disk by those of the new ring.
func (c *core) saveRingIdentity() {
	var now ring.ID
	if g := c.ring.Genesis(); g != nil {
		now = g.ID()
	}
	if now == c.genesis {
		return
	}
	origin, genesis, records := c.ring.Dump()
	c.genesis = genesis
	c.flush()
	c.put(bucketMeta, []byte(metaOrigin), bytes.Clone(origin[:]))
	c.put(bucketMeta, []byte(metaGenesis), bytes.Clone(genesis[:]))
	old := c.onDisk
	c.onDisk = make(map[ring.ID]bool)
	c.writes = append(c.writes, c.ringWrites(ring.Outcome{Records: records})...)
	for id := range old {
		if !c.onDisk[id] {
			c.put(bucketRing, bytes.Clone(id[:]), nil)
		}
	}
}

// putVote encodes an acceptor as a value of bucketVotes.
func putVote(a *paxos.Acceptor[string]) []byte {
	b := a.Promised.Append(nil)
	b = a.Accepted.Append(b)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Value)))
	return append(b, a.Value...)
}
