package groups

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
)

// use is the name of groups among the uses of mesh/records.
const use = "groups"

const (
	// groupCost is the memory that a group takes besides its encoding: the parsed form and its place in
	// Members.
	groupCost = 120
	// Bounds of the records, in bytes of memory. A host has place for over 1,024 groups, and all others
	// together for 100,000.
	maxOwner, maxTotal = 256 << 10, 16 << 20
	// MaxGroups is how many groups a host may announce.
	MaxGroups = 1024

	bucketCount = 16
	wantsAll    = 1
)

// Wants is what one host wants.
type Wants struct {
	// All says that the host wants the frames of all groups, and the reports of others.
	All    bool
	Groups []netip.Addr // ascending
}

// bucket is the value of a record.
type bucket struct {
	known, all bool // of bucket 0
	groups     []netip.Addr
}

// Config configures a State.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	Start    time.Time // of this router
}

// State is one peer's copy of the groups of all hosts. Make one with New. Of its methods SetOwners, SetTime,
// Tick, Refused, Stats and those of gossip.Channel are those of a records.Map.
type State struct {
	*records.Map[bucket]
	self    peer.Name
	changed bool
}

// New returns a State in which nobody wants anything.
func New(cfg Config) *State {
	s := &State{self: cfg.Self}
	s.Map = records.New(records.Config[bucket]{
		Use: use, Self: cfg.Self, Signer: cfg.Signer, Verifier: cfg.Verifier, Start: cfg.Start,
		Decode:  decode,
		Cost:    func(b bucket) int { return groupCost * len(b.groups) },
		Limits:  records.Limits{Owner: maxOwner, Total: maxTotal},
		Changed: func(peer.Name, uint8, bucket, bucket) { s.changed = true },
	})
	return s
}

// Announce replaces what this host wants and returns the deltas to announce, none if nothing changed. On
// error nothing is changed.
func (s *State) Announce(w Wants) (deltas [][]byte, err error) {
	if len(w.Groups) > MaxGroups {
		return nil, fmt.Errorf("announce %d multicast groups: want at most %d", len(w.Groups), MaxGroups)
	}
	payloads := map[uint8][]byte{0: {0}}
	if w.All {
		payloads[0] = []byte{wantsAll}
	}
	for i := range uint8(bucketCount) {
		payloads[1+i] = nil
	}
	for _, g := range slices.Compact(slices.SortedFunc(slices.Values(w.Groups), netip.Addr.Compare)) {
		if err := check(g); err != nil {
			return nil, err
		}
		k := bucketOf(g)
		payloads[k] = append(append(payloads[k], byte(g.BitLen()/8)), g.AsSlice()...)
	}
	if deltas, err = s.Set(payloads); err != nil {
		return nil, fmt.Errorf("multicast groups: %w", err)
	}
	return deltas, nil
}

// TakeChanged reports whether Members may return something else than when TakeChanged was called last.
func (s *State) TakeChanged() bool {
	was := s.changed
	s.changed = false
	return was
}

// Members is where the frames of groups go. It is immutable.
type Members struct {
	// Known are the peers that said what they want. Any other one gets all frames.
	Known map[peer.Name]bool
	// All are the peers that want all groups, and reports. Of has those of each group that somebody wants by
	// name. Both are ascending.
	All []peer.Name
	Of  map[netip.Addr][]peer.Name
}

// Members returns where frames of this host go, to peers other than itself.
func (s *State) Members() *Members {
	m := &Members{Known: make(map[peer.Name]bool), Of: make(map[netip.Addr][]peer.Name)}
	all := make(map[peer.Name]bool)
	for owner, b := range s.All() {
		if owner != s.self && b.known {
			m.Known[owner] = true
			if b.all {
				all[owner] = true
			}
		}
	}
	m.All = slices.SortedFunc(maps.Keys(all), peer.Name.Compare)
	for owner, b := range s.All() {
		if owner == s.self || all[owner] || !m.Known[owner] {
			continue
		}
		for _, g := range b.groups {
			m.Of[g] = append(m.Of[g], owner)
		}
	}
	for _, names := range m.Of {
		slices.SortFunc(names, peer.Name.Compare)
	}
	return m
}

// Listed is a group with the host that wants it. The group is invalid for a host that wants all.
type Listed struct {
	Group netip.Addr
	Owner peer.Name
}

// List returns the groups that hosts want, in order, this one's too, up to a limit, and how many it leaves out.
func (s *State) List(limit int) (list []Listed, omitted int) {
	for owner, b := range s.All() {
		if b.all {
			list = append(list, Listed{Owner: owner})
		}
		for _, g := range b.groups {
			list = append(list, Listed{g, owner})
		}
	}
	slices.SortFunc(list, func(a, b Listed) int {
		if c := a.Group.Compare(b.Group); c != 0 {
			return c
		}
		return a.Owner.Compare(b.Owner)
	})
	if limit = max(limit, 0); len(list) > limit {
		list, omitted = list[:limit:limit], len(list)-limit
	}
	return list, omitted
}

// check returns an error if others refuse a group.
func check(g netip.Addr) error {
	if !g.IsMulticast() || g.Is4In6() || g.Zone() != "" {
		return fmt.Errorf("multicast group %s: want a multicast address without a zone", g)
	}
	return nil
}

// bucketOf returns the bucket of a group. All peers must compute the same one.
func bucketOf(g netip.Addr) uint8 {
	b := g.As16()
	return 1 + (b[13]^b[14]^b[15]^b[15]>>4)%bucketCount
}

var errShort = errors.New("truncated")

// decode parses the payload of a bucket.
func decode(number uint8, b []byte) (v bucket, err error) {
	if number == 0 {
		if len(b) < 1 {
			return v, fmt.Errorf("parse multicast groups: %w", errShort)
		}
		return bucket{known: true, all: b[0]&wantsAll != 0}, nil
	}
	fail := func(err error) (bucket, error) {
		return bucket{}, fmt.Errorf("parse multicast groups: number %d: %w", len(v.groups), err)
	}
	for len(b) > 0 {
		if len(b) < 1+int(b[0]) {
			return fail(errShort)
		}
		g, ok := netip.AddrFromSlice(b[1 : 1+int(b[0])])
		if !ok {
			return fail(fmt.Errorf("address of %d bytes, want 4 or 16", b[0]))
		}
		b = b[1+int(b[0]):]
		if err := check(g); err != nil {
			return fail(err)
		}
		if bucketOf(g) != number {
			return fail(fmt.Errorf("%s belongs to bucket %d, not to %d", g, bucketOf(g), number))
		}
		if n := len(v.groups); n > 0 && v.groups[n-1].Compare(g) >= 0 {
			return fail(fmt.Errorf("%s is out of order", g))
		}
		v.groups = append(v.groups, g)
	}
	return v, nil
}
