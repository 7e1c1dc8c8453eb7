package bindings

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
)

// use is the name of bindings among the uses of mesh/records.
const use = "bindings"

const (
	// bindingCost is the memory that a binding takes besides its encoding, and addrCost that of
	// each of its addresses: the parsed form and the places in the Table. They are measured.
	bindingCost, addrCost = 236, 200
	// Bounds of the records, in bytes of memory. A host has place for 8,000 bindings with an
	// address, and all others together for 100,000.
	maxOwner, maxTotal = 4 << 20, 48 << 20
)

// Config configures a State.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	Start    time.Time // of this router
	// OwnerOf returns the peer that owns an address in the ring. inRange is false for addresses
	// that no ring divides. The owner is zero if there is no ring yet.
	OwnerOf func(a netip.Addr) (owner peer.Name, inRange bool)
}

// State is one peer's copy of all bindings. Make one with New. It is not safe for concurrent use. Of
// its methods SetOwners, SetTime, Tick, Refused, Stats and those of gossip.Channel are those of a
// records.Map. After each of them Table.Update shows what they changed.
type State struct {
	*records.Map[[]Binding]
	table *Table
}

// ErrFull is the cause when a host has too many bindings.
var ErrFull = records.ErrFull

// New returns a State without bindings.
func New(cfg Config) *State {
	t := newTable(cfg.OwnerOf)
	return &State{
		table: t,
		Map: records.New(records.Config[[]Binding]{
			Use: use, Self: cfg.Self, Signer: cfg.Signer, Verifier: cfg.Verifier, Start: cfg.Start,
			Decode:  decode,
			Cost:    cost,
			Limits:  records.Limits{Owner: maxOwner, Total: maxTotal},
			Changed: func(owner peer.Name, _ uint8, old, now []Binding) { t.replace(owner, old, now) },
		}),
	}
}

// cost returns the memory that the bindings of a bucket take.
func cost(list []Binding) (n int) {
	for _, b := range list {
		n += bindingCost + addrCost*len(b.Addrs)
	}
	return n
}

// Table returns the table of the bindings that the State shows.
func (s *State) Table() *Table { return s.table }

// Announce replaces all bindings of this peer and returns the deltas to announce, none if nothing
// changed. Two bindings of one MAC address are an error. On error nothing is changed.
func (s *State) Announce(list []Binding) (deltas [][]byte, err error) {
	list = sorted(list)
	buckets := make(map[uint8][]Binding)
	for i, b := range list {
		if err := b.check(); err != nil {
			return nil, err
		}
		if i > 0 && list[i-1].MAC == b.MAC {
			return nil, fmt.Errorf("binding of %s: it is there twice", b.MAC)
		}
		buckets[bucketOf(b.MAC)] = append(buckets[bucketOf(b.MAC)], b)
	}
	payloads := make(map[uint8][]byte, bucketCount)
	for b := range uint8(bucketCount) {
		payloads[b] = encode(buckets[b])
	}
	if deltas, err = s.Set(payloads); err != nil {
		return nil, fmt.Errorf("bindings: %w", err)
	}
	return deltas, nil
}

// List returns the bindings of all reachable peers in order of peer, and how many it leaves out; see
// records.List. The caller owns the list, and must not change the addresses in it.
func (s *State) List(limit int) (list []Listed, omitted int) {
	found, omitted := records.List(s.Map, limit)
	for _, b := range found {
		list = append(list, Listed{Binding: b.Value, Owner: b.Owner})
	}
	return list, omitted
}
