package names

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
)

// Config configures a State.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	Start    time.Time // of this router
	// Ranges are the address ranges of the mesh.
	Ranges []netip.Prefix
	// Owns reports whether a peer owns an address of Ranges. The Table calls it concurrently
	// and without locks. If it is nil, every peer owns every address.
	Owns func(n peer.Name, a netip.Addr) bool
}

// State is one peer's copy of all names. Make one with New. It is not safe for concurrent
// use. Of its methods SetOwners, SetTime, Tick, Refused, Stats and those of gossip.Channel
// are those of a records.Map.
type State struct {
	*records.Map[[]Entry]
	table *Table
}

// ErrFull is the cause when a peer has too many names.
var ErrFull = records.ErrFull

// New returns a State without names. Its Table has the names that it shows.
func New(cfg Config) *State {
	t := newTable(cfg)
	return &State{
		table: t,
		Map: records.New(records.Config[[]Entry]{
			Use: use, Self: cfg.Self, Signer: cfg.Signer, Verifier: cfg.Verifier, Start: cfg.Start,
			Decode: decode,
			Cost:   func(entries []Entry) int { return entryCost * len(entries) },
			Changed: func(owner peer.Name, _ uint8, old, now []Entry) {
				t.replace(owner, old, now)
			},
		}),
	}
}

// Table returns the table of the names that the State shows.
func (s *State) Table() *Table { return s.table }

// Own returns the entries of this peer for which match returns true, in no particular order.
func (s *State) Own(match func(Entry) bool) []Entry {
	var list []Entry
	for _, entries := range s.Map.Own() {
		for _, e := range entries {
			if match(e) {
				list = append(list, e)
			}
		}
	}
	return list
}

// Change removes the entries out of this peer and then adds the entries in. It returns the
// deltas to announce. Removing a missing entry or adding an existing one has no effect. On
// error nothing is changed.
func (s *State) Change(out, in []Entry) (deltas [][]byte, err error) {
	touched := make(map[uint8][]Entry)
	of := func(e Entry) uint8 {
		b := bucketOf(e.Name)
		if _, ok := touched[b]; !ok {
			touched[b] = slices.Clone(s.Get(b))
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
	payloads := make(map[uint8][]byte, len(touched))
	for b, entries := range touched {
		payloads[b] = encode(entries)
	}
	if deltas, err = s.Set(payloads); err != nil {
		return nil, fmt.Errorf("host names: %w", err)
	}
	return deltas, nil
}

// Listed is an entry with its owner.
type Listed struct {
	Entry
	Owner peer.Name
	// Refused says why the entry is not answered, "" if it is. Table.MarkRefused sets it.
	Refused string
}

// List returns entries of reachable peers in no particular order, and how many it leaves out; see
// records.List. The caller owns the list.
func (s *State) List(limit int) (list []Listed, omitted int) {
	entries, omitted := records.List(s.Map, limit)
	for _, e := range entries {
		list = append(list, Listed{Entry: e.Value, Owner: e.Owner})
	}
	return list, omitted
}

// Sort sorts entries by name.
func Sort(list []Listed) {
	slices.SortFunc(list, func(a, b Listed) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr), a.Owner.Compare(b.Owner), cmp.Compare(a.Container, b.Container))
	})
}
