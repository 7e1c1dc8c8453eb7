package bindings

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-net/weft/mesh/peer"
)

// Table is an index of the bindings that a State shows. It answers those that are believed, by MAC
// address and by IP address. It is safe for concurrent use.
//
// A change of the State, or of the ring, shows in the Table after the next Update.
type Table struct {
	ownerOf func(netip.Addr) (peer.Name, bool)

	mu    sync.RWMutex
	macs  map[MAC]*entry[Binding]
	addrs map[netip.Addr]*entry[MAC]
	// What Update decides: the keys of macs and addrs that changed since the last one.
	newMACs  map[MAC]bool
	newAddrs map[netip.Addr]bool
}

// entry is what peers say of one address, and which of them is believed.
type entry[V any] struct {
	claims   []claim[V] // in no order
	believed claim[V]   // its owner is zero if nobody is
}

// claim is what one peer says.
type claim[V any] struct {
	owner peer.Name
	value V
}

// Location is a MAC address and where it is.
type Location struct {
	MAC   MAC
	Owner peer.Name // the peer on whose host it is
}

// Change is a binding that began, moved or ended: of Addr, or if that is invalid, of the MAC address
// itself. A zero Location means that there is none.
type Change struct {
	MAC      MAC
	Addr     netip.Addr
	Old, New Location
}

func newTable(ownerOf func(netip.Addr) (peer.Name, bool)) *Table {
	return &Table{
		ownerOf: ownerOf,
		macs:    make(map[MAC]*entry[Binding]), addrs: make(map[netip.Addr]*entry[MAC]),
		newMACs: make(map[MAC]bool), newAddrs: make(map[netip.Addr]bool),
	}
}

// ByMAC returns the binding of a MAC address and its peer. The caller must not change its addresses.
func (t *Table) ByMAC(m MAC) (b Binding, owner peer.Name, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.macs[m]
	if e == nil || e.believed.owner == (peer.Name{}) {
		return Binding{}, peer.Name{}, false
	}
	return e.believed.value, e.believed.owner, true
}

// ByAddr returns where the MAC address of an IP address is.
func (t *Table) ByAddr(a netip.Addr) (l Location, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.addrs[a]
	if e == nil || e.believed.owner == (peer.Name{}) {
		return Location{}, false
	}
	return e.believed.location(), true
}

func (c claim[V]) location() Location {
	switch v := any(c.value).(type) {
	case MAC:
		return Location{v, c.owner}
	case Binding:
		return Location{v.MAC, c.owner}
	}
	return Location{}
}

// replace puts what a peer says of one bucket in the place of what it said before.
func (t *Table) replace(owner peer.Name, old, now []Binding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, j := 0, 0; i < len(old) || j < len(now); {
		switch {
		case j == len(now) || i < len(old) && old[i].MAC.compare(now[j].MAC) < 0:
			t.remove(owner, old[i])
			i++
		case i == len(old) || now[j].MAC.compare(old[i].MAC) < 0:
			t.add(owner, now[j])
			j++
		default:
			if !old[i].Equal(now[j]) {
				t.remove(owner, old[i])
				t.add(owner, now[j])
			}
			i, j = i+1, j+1
		}
	}
}

func (t *Table) add(owner peer.Name, b Binding) {
	put(t.macs, t.newMACs, b.MAC, claim[Binding]{owner, b})
	for _, a := range b.Addrs {
		put(t.addrs, t.newAddrs, a, claim[MAC]{owner, b.MAC})
	}
}

func (t *Table) remove(owner peer.Name, b Binding) {
	take(t.macs, t.newMACs, b.MAC, func(c claim[Binding]) bool { return c.owner == owner })
	for _, a := range b.Addrs {
		take(t.addrs, t.newAddrs, a, func(c claim[MAC]) bool { return c.owner == owner && c.value == b.MAC })
	}
}

func put[K comparable, V any](m map[K]*entry[V], changed map[K]bool, k K, c claim[V]) {
	e := m[k]
	if e == nil {
		e = &entry[V]{}
		m[k] = e
	}
	e.claims = append(e.claims, c)
	changed[k] = true
}

func take[K comparable, V any](m map[K]*entry[V], changed map[K]bool, k K, which func(claim[V]) bool) {
	e := m[k]
	i := slices.IndexFunc(e.claims, which)
	last := len(e.claims) - 1
	e.claims[i] = e.claims[last]
	clear(e.claims[last:])
	e.claims = e.claims[:last]
	changed[k] = true
}

// Update decides anew what is believed of the addresses that changed in the State, or of all
// addresses: the ring changes at any time. It returns the changes, in no order. The ring is asked
// while no lock is held, so lookups go on; calls of Update must not overlap with each other or with
// changes of the State.
func (t *Table) Update(all bool) (changes []Change) {
	macs, addrs := t.newMACs, t.newAddrs
	t.newMACs, t.newAddrs = make(map[MAC]bool), make(map[netip.Addr]bool)
	if all {
		for m := range t.macs {
			macs[m] = true
		}
		for a := range t.addrs {
			addrs[a] = true
		}
	}
	for m := range macs {
		if old, now, changed := decide(&t.mu, t.macs, m, t.believedOfMAC); changed {
			changes = append(changes, Change{MAC: m, Old: old.location(), New: now.location()})
		}
	}
	for a := range addrs {
		believe := func(claims []claim[MAC]) claim[MAC] { return t.believedOfAddr(a, claims) }
		if old, now, changed := decide(&t.mu, t.addrs, a, believe); changed {
			changes = append(changes, Change{Addr: a, MAC: now.value, Old: old.location(), New: now.location()})
		}
	}
	return changes
}

// decide finds out which claim of an address is believed, and forgets an address without claims.
func decide[K comparable, V any](mu *sync.RWMutex, m map[K]*entry[V], k K, believe func([]claim[V]) claim[V]) (old, now claim[V], changed bool) {
	e := m[k]
	if e == nil {
		return old, now, false
	}
	now = believe(e.claims)
	mu.Lock()
	defer mu.Unlock()
	old = e.believed
	e.believed = now
	if len(e.claims) == 0 {
		delete(m, k)
	}
	return old, now, old.location() != now.location()
}

// believedOfMAC returns the claim of the only peer that binds the address to an IP address that is
// its own in the ring, or else the only claim.
func (t *Table) believedOfMAC(claims []claim[Binding]) claim[Binding] {
	proved := slices.DeleteFunc(slices.Clone(claims), func(c claim[Binding]) bool {
		return !slices.ContainsFunc(c.value.Addrs, func(a netip.Addr) bool {
			owner, inRange := t.ownerOf(a)
			return inRange && owner == c.owner
		})
	})
	if len(proved) > 0 {
		return only(proved)
	}
	return only(claims)
}

// believedOfAddr returns the only claim of the peer that owns the address in the ring, or if no ring
// divides it, the only claim.
func (t *Table) believedOfAddr(a netip.Addr, claims []claim[MAC]) claim[MAC] {
	owner, inRange := t.ownerOf(a)
	if !inRange {
		return only(claims)
	}
	return only(slices.DeleteFunc(slices.Clone(claims), func(c claim[MAC]) bool { return c.owner != owner }))
}

// only returns the claim if there is just one.
func only[V any](claims []claim[V]) (none claim[V]) {
	if len(claims) == 1 {
		return claims[0]
	}
	return none
}
