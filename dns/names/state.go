package names

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

const (
	// ForgetAfter is how long the names of an unreachable peer are kept. A peer that returns
	// sooner need not send them again.
	ForgetAfter = 10 * time.Minute
	// maxOwner limits the bytes of one owner's records, so that no peer can fill the memory of
	// others. It is enough for about fifty thousand names.
	maxOwner = 4 << 20
	// maxWaiting limits the bytes of records that wait for their owner to be reported, and
	// waitingTimeout the time for which each waits.
	maxWaiting     = 1 << 20
	waitingTimeout = time.Minute
	// reclaimEvery is the minimum interval between new incarnations that this peer begins because
	// another uses its name. It prevents two clones from keeping the mesh busy.
	reclaimEvery = 10 * time.Second
)

// Config configures a State.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	// Incarnation is the number of this incarnation: the time of launch in microseconds.
	Incarnation uint64
}

// State is one peer's copy of all names. Make one with New. It is not safe for concurrent use.
type State struct {
	cfg          Config
	table        *Table
	own          *owner
	owners       map[peer.Name]*owner
	peers        map[peer.Name]peer.Key // the peers that the mesh reaches, without this one
	waiting      map[header]waitingRecord
	waitingBytes int // bytes of records in waiting
	now          time.Time

	rivalIncarnation uint64    // the highest incarnation that another peer used in this peer's name
	lastReclaim      time.Time // when this peer last began a new incarnation for that reason
	refused          gossip.Refusals
	digest           []byte // cached; nil after a change
}

// owner is the records of one peer.
type owner struct {
	name             peer.Name
	key              peer.Key
	incarnation      uint64
	records          map[uint8]*record
	newest           uint64 // highest version
	sum              uint64
	size             int // bytes
	shown            bool
	unreachableSince time.Time // zero while shown
}

// waitingRecord is a record that waits for its owner. It is not verified yet.
type waitingRecord struct {
	raw   []byte
	since time.Time
}

// Causes of a gossip.Refusal.
var (
	ErrForged = errors.New("the record is not signed by its owner")
	ErrFlood  = fmt.Errorf("the owner has more than %d bytes of names", maxOwner)
	ErrRival  = errors.New("another live peer uses this peer's identity (was the state directory copied?)")
)

// ErrFull is the cause when a peer has too many names.
var ErrFull = errors.New("this host has too many names")

var _ gossip.Channel = (*State)(nil)

// New returns a State without names. Its Table has the names that it shows.
func New(cfg Config) *State {
	s := &State{
		cfg: cfg, table: NewTable(), owners: make(map[peer.Name]*owner), waiting: make(map[header]waitingRecord),
		own: &owner{name: cfg.Self, key: cfg.Signer.Key(), records: make(map[uint8]*record), shown: true},
	}
	s.owners[cfg.Self] = s.own
	s.beginIncarnation(cfg.Incarnation)
	return s
}

// Table returns the table of the names that the State shows.
func (s *State) Table() *Table { return s.table }

// beginIncarnation begins an incarnation of this peer with its current names, and returns its
// records. There is at least one record, which announces the incarnation.
func (s *State) beginIncarnation(incarnation uint64) []*record {
	old := s.own.records
	if len(old) == 0 {
		old = map[uint8]*record{0: {}}
	}
	s.own.records, s.own.incarnation, s.own.newest, s.own.sum, s.own.size = make(map[uint8]*record), incarnation, 0, 0, 0
	var records []*record
	for _, b := range slices.Sorted(maps.Keys(old)) {
		if entries := old[b].entries; len(entries) > 0 || len(records) == 0 {
			records = append(records, s.publish(b, entries))
		}
	}
	return records
}

// publish makes the next version of a bucket of this peer. The table must already have the
// entries.
func (s *State) publish(bucket uint8, entries []Entry) *record {
	r := newRecord(header{owner: s.cfg.Self, incarnation: s.own.incarnation, version: s.own.newest + 1, bucket: bucket}, entries, s.cfg.Signer)
	s.put(s.own, r)
	return r
}

func (s *State) put(o *owner, r *record) {
	if old := o.records[r.bucket]; old != nil {
		o.sum -= old.sum()
		o.size -= len(old.raw)
	}
	o.records[r.bucket] = r
	o.newest = max(o.newest, r.version)
	o.sum += r.sum()
	o.size += len(r.raw)
	s.digest = nil
}

// Own returns the entries of this peer for which match returns true, in no particular order.
func (s *State) Own(match func(Entry) bool) []Entry {
	var list []Entry
	for _, r := range s.own.records {
		for _, e := range r.entries {
			if match(e) {
				list = append(list, e)
			}
		}
	}
	return list
}

// Change removes the entries out of this peer and then adds the entries in. It returns the deltas
// to announce. Removing a missing entry or adding an existing one has no effect. On error nothing
// is changed.
func (s *State) Change(out, in []Entry) (deltas [][]byte, err error) {
	touched := make(map[uint8][]Entry)
	of := func(e Entry) uint8 {
		b := bucketOf(e.Name)
		if _, ok := touched[b]; !ok {
			touched[b] = nil
			if r := s.own.records[b]; r != nil {
				touched[b] = slices.Clone(r.entries)
			}
		}
		return b
	}
	for _, e := range out {
		b := of(e)
		if i, found := slices.BinarySearchFunc(touched[b], e, Entry.compare); found {
			touched[b] = slices.Delete(touched[b], i, i+1)
		}
	}
	for _, e := range in {
		if err := e.Check(); err != nil {
			return nil, err
		}
		b := of(e)
		if i, found := slices.BinarySearchFunc(touched[b], e, Entry.compare); !found {
			touched[b] = slices.Insert(touched[b], i, e)
		}
	}
	size := s.own.size
	for b, entries := range touched {
		old := s.own.records[b]
		if old != nil && slices.Equal(old.entries, entries) || old == nil && len(entries) == 0 {
			delete(touched, b)
			continue
		}
		length := minRecord
		for _, e := range entries {
			length += e.encodedLen()
		}
		if old != nil {
			size -= len(old.raw)
		}
		if size += length; length > maxRecord || size > maxOwner {
			return nil, ErrFull
		}
	}
	var records []*record
	for _, b := range slices.Sorted(maps.Keys(touched)) {
		var before []Entry
		if old := s.own.records[b]; old != nil {
			before = old.entries
		}
		s.table.replace(before, touched[b])
		records = append(records, s.publish(b, touched[b]))
	}
	return pack(records), nil
}

// SetPeers reports the peers that the mesh reaches, with their keys, and returns the deltas to
// announce. From now on only the names of these peers are shown. The State keeps the map.
func (s *State) SetPeers(peers map[peer.Name]peer.Key) (deltas [][]byte) {
	s.peers = peers
	for name, o := range s.owners {
		if o == s.own {
			continue
		}
		key, reached := peers[name]
		if reached && key != o.key { // the peer lost its disk and has a new key
			s.drop(o)
			continue
		}
		s.show(o, reached)
	}
	var news []*record
	for h, w := range s.waiting {
		if !s.reaches(h.owner, h.key) {
			continue
		}
		s.removeWaiting(h)
		if r, err := s.mergeRecord(h, w.raw); err != nil {
			s.refused.Add(peer.Name{}, h.owner, err)
		} else if r != nil {
			news = append(news, r)
		}
	}
	return pack(news)
}

// reaches reports whether the mesh reaches a peer with a name and a key.
func (s *State) reaches(name peer.Name, key peer.Key) bool {
	k, ok := s.peers[name]
	return ok && k == key
}

func (s *State) removeWaiting(h header) {
	s.waitingBytes -= len(s.waiting[h].raw)
	delete(s.waiting, h)
}

// show adds the names of an owner to the table, or removes them.
func (s *State) show(o *owner, shown bool) {
	if o.shown == shown {
		return
	}
	o.shown, o.unreachableSince = shown, time.Time{}
	if !shown {
		o.unreachableSince = s.now
	}
	for _, r := range o.records {
		if shown {
			s.table.replace(nil, r.entries)
		} else {
			s.table.replace(r.entries, nil)
		}
	}
}

// drop deletes all records of an owner.
func (s *State) drop(o *owner) {
	s.show(o, false)
	delete(s.owners, o.name)
	s.digest = nil
}

// Tick expires records and reclaims this peer's name. It returns the deltas to announce. Call it
// about once a second; now must not go back.
func (s *State) Tick(now time.Time) (deltas [][]byte) {
	s.now = now
	for _, o := range s.owners {
		switch {
		case o.shown:
		case o.unreachableSince.IsZero():
			o.unreachableSince = now
		case now.Sub(o.unreachableSince) >= ForgetAfter:
			s.drop(o)
		}
	}
	for h, w := range s.waiting {
		switch {
		case w.since.IsZero():
			w.since = now
			s.waiting[h] = w
		case now.Sub(w.since) >= waitingTimeout:
			s.removeWaiting(h)
		}
	}
	if s.rivalIncarnation >= s.own.incarnation && (s.lastReclaim.IsZero() || now.Sub(s.lastReclaim) >= reclaimEvery) {
		if !s.lastReclaim.IsZero() { // the first time it is only a clock that went back
			s.refused.Add(peer.Name{}, s.cfg.Self, ErrRival)
		}
		s.lastReclaim = now
		deltas = pack(s.beginIncarnation(s.rivalIncarnation + 1))
	}
	return deltas
}

// Refused returns the refusals since the last call.
func (s *State) Refused() []gossip.Refusal { return s.refused.Take() }

// Listed is an entry with its owner.
type Listed struct {
	Entry
	Owner peer.Name
}

// List returns all entries that are shown, sorted by name.
func (s *State) List() []Listed {
	list := make([]Listed, 0, s.table.Len())
	for _, o := range s.owners {
		if !o.shown {
			continue
		}
		for _, r := range o.records {
			for _, e := range r.entries {
				list = append(list, Listed{e, o.name})
			}
		}
	}
	slices.SortFunc(list, func(a, b Listed) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr), a.Owner.Compare(b.Owner), cmp.Compare(a.Container, b.Container))
	})
	return list
}
