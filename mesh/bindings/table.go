package bindings

import (
	"fmt"
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

	updating sync.Mutex // held by Update; comes before mu

	mu    sync.RWMutex
	macs  index[MAC, Binding]
	addrs index[netip.Addr, MAC]
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

// index has what peers say of the addresses of one sort.
type index[K comparable, V value] struct {
	entries map[K]*entry[V]
	// changed are the keys of entries that Update has to decide. An entry without claims that
	// was believed stays until then, so there are never more than entries at one Update and
	// claims at the next one together.
	changed          map[K]bool
	claims, believed int
}

// entry is what peers say of one address, and which of them is believed.
type entry[V value] struct {
	claims   []claim[V]      // in no order
	places   map[claimID]int // in claims, nil if there are at most manyClaims
	believed claim[V]        // its owner is zero if nobody is
}

// manyClaims is how many claims of one address are searched one by one. Peers that a member makes up
// can make a hundred thousand.
const manyClaims = 32

// claimID tells the claims of one address apart.
type claimID struct {
	owner peer.Name
	mac   MAC
}

// claim is what one peer says.
type claim[V value] struct {
	owner peer.Name
	value V
}

// value is what a peer says of an address.
type value interface{ mac() MAC }

func (m MAC) mac() MAC { return m }

func (b Binding) mac() MAC { return b.MAC }

func (c claim[V]) id() claimID { return claimID{c.owner, c.value.mac()} }

func (c claim[V]) location() Location {
	if c.owner.IsZero() {
		return Location{}
	}
	return Location{c.value.mac(), c.owner}
}

func newTable(ownerOf func(netip.Addr) (peer.Name, bool)) *Table {
	return &Table{ownerOf: ownerOf, macs: newIndex[MAC, Binding](), addrs: newIndex[netip.Addr, MAC]()}
}

func newIndex[K comparable, V value]() index[K, V] {
	return index[K, V]{entries: make(map[K]*entry[V]), changed: make(map[K]bool)}
}

// ByMAC returns the binding of a MAC address and its peer. The caller must not change its addresses.
func (t *Table) ByMAC(m MAC) (b Binding, owner peer.Name, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.macs.entries[m]
	if e == nil || e.believed.owner.IsZero() {
		return Binding{}, peer.Name{}, false
	}
	return e.believed.value, e.believed.owner, true
}

// ByAddr returns where the MAC address of an IP address is.
func (t *Table) ByAddr(a netip.Addr) (l Location, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.addrs.entries[a]
	if e == nil || e.believed.owner.IsZero() {
		return Location{}, false
	}
	return e.believed.location(), true
}

// Resolve returns where an IP address is, if its MAC address is believed to be there too. So the owner
// of an IP address cannot have frames for it sent to the MAC address of another peer.
func (t *Table) Resolve(a netip.Addr) (l Location, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.addrs.entries[a]
	if e == nil || e.believed.owner.IsZero() {
		return Location{}, false
	}
	l = e.believed.location()
	m := t.macs.entries[l.MAC]
	if m == nil || m.believed.owner != l.Owner {
		return Location{}, false
	}
	return l, true
}

// Counts says how much a Table has.
type Counts struct {
	Bindings int // of all peers; two peers may bind one MAC address
	Refused  int // MAC and IP addresses that a peer binds and that are not believed to be there
}

// Counts returns the present counts.
func (t *Table) Counts() Counts {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return Counts{Bindings: t.macs.claims, Refused: max(0, t.macs.claims-t.macs.believed) + max(0, t.addrs.claims-t.addrs.believed)}
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
	t.macs.add(b.MAC, claim[Binding]{owner, b})
	for _, a := range b.Addrs {
		t.addrs.add(a, claim[MAC]{owner, b.MAC})
	}
}

func (t *Table) remove(owner peer.Name, b Binding) {
	t.macs.remove(b.MAC, owner, b.MAC)
	for _, a := range b.Addrs {
		t.addrs.remove(a, owner, b.MAC)
	}
}

func (x *index[K, V]) add(k K, c claim[V]) {
	e := x.entries[k]
	if e == nil {
		e = &entry[V]{}
		x.entries[k] = e
	}
	e.add(c)
	x.claims++
	x.changed[k] = true
}

// remove removes the claim of a peer that the address is at a MAC address, which must exist.
func (x *index[K, V]) remove(k K, owner peer.Name, mac MAC) {
	e := x.entries[k]
	e.remove(claimID{owner, mac})
	x.claims--
	x.changed[k] = true
	if len(e.claims) == 0 && e.believed.owner.IsZero() { // nobody hears of it
		delete(x.entries, k)
		delete(x.changed, k)
	}
}

func (e *entry[V]) add(c claim[V]) {
	e.claims = append(e.claims, c)
	switch {
	case e.places != nil:
		e.places[c.id()] = len(e.claims) - 1
	case len(e.claims) > manyClaims:
		e.places = make(map[claimID]int)
		for i, c := range e.claims {
			e.places[c.id()] = i
		}
	}
}

func (e *entry[V]) remove(id claimID) {
	i, known := e.places[id]
	if !known {
		i = slices.IndexFunc(e.claims, func(c claim[V]) bool { return c.id() == id })
	}
	last := len(e.claims) - 1
	e.claims[i] = e.claims[last]
	if e.places != nil {
		e.places[e.claims[i].id()] = i
		delete(e.places, id)
	}
	clear(e.claims[last:])
	if e.claims = e.claims[:last]; last <= manyClaims/2 {
		e.places = nil
	}
}

// keys returns the keys that Update has to decide, all of them if that is asked for. The caller
// owns the map.
func (x *index[K, V]) keys(all bool) map[K]bool {
	keys := x.changed
	x.changed = make(map[K]bool)
	if all {
		for k := range x.entries {
			keys[k] = true
		}
	}
	return keys
}

// Update decides again what is believed of the addresses that changed in the State, or of all
// addresses: the ring changes at any time. It returns the changes, in no order. The ring is asked
// while no lock is held that a lookup or the State needs.
func (t *Table) Update(all bool) (changes []Change) {
	t.updating.Lock()
	defer t.updating.Unlock()
	t.mu.Lock()
	macs, addrs := t.macs.keys(all), t.addrs.keys(all)
	t.mu.Unlock()
	for m := range macs {
		if old, now := decide(&t.mu, &t.macs, m, t.believedOfMAC); old != now {
			changes = append(changes, Change{MAC: m, Old: old, New: now})
		}
	}
	for a := range addrs {
		if old, now := decide(&t.mu, &t.addrs, a, t.believedOfAddr); old != now {
			changes = append(changes, Change{Addr: a, MAC: now.MAC, Old: old, New: now})
		}
	}
	return changes
}

// decide finds out which claim of an address is believed, and forgets an address without claims.
// It returns where the address was believed to be, and where it is now.
func decide[K comparable, V value](mu *sync.RWMutex, x *index[K, V], k K, believe func(K, []claim[V]) claim[V]) (old, now Location) {
	mu.RLock()
	e := x.entries[k]
	if e == nil {
		mu.RUnlock()
		return old, now
	}
	claims := slices.Clone(e.claims)
	mu.RUnlock()
	c := believe(k, claims)
	mu.Lock()
	defer mu.Unlock()
	if x.entries[k] != e || x.changed[k] {
		return old, old // it changed meanwhile, and the next Update decides
	}
	if !e.believed.owner.IsZero() {
		x.believed--
	}
	if !c.owner.IsZero() {
		x.believed++
	}
	old, now = e.believed.location(), c.location()
	e.believed = c
	if len(e.claims) == 0 {
		delete(x.entries, k)
	}
	return old, now
}

// AddrOf returns the IPv4 address of which weft makes a MAC address, and false for another MAC
// address: 02:42 and the bytes of the address.
func (m MAC) AddrOf() (a netip.Addr, ok bool) {
	if m[0] != 0x02 || m[1] != 0x42 {
		return a, false
	}
	return netip.AddrFrom4([4]byte(m[2:])), true
}

// believedOfMAC returns the claim that is believed of a MAC address. A MAC address that proves whose
// it is belongs to that peer only. Of others it is the claim of the only peer that binds them to an
// IP address that is its own in the ring, or else the only claim.
func (t *Table) believedOfMAC(m MAC, claims []claim[Binding]) (none claim[Binding]) {
	of := func(owner peer.Name) func(claim[Binding]) bool {
		return func(c claim[Binding]) bool { return c.owner == owner }
	}
	if i := slices.IndexFunc(claims, of(peer.Name(m))); i >= 0 {
		return claims[i]
	}
	if a, ok := m.AddrOf(); ok {
		if owner, inRange := t.ownerOf(a); inRange {
			if i := slices.IndexFunc(claims, of(owner)); i >= 0 {
				return claims[i]
			}
			return none
		}
	}
	if len(claims) == 1 {
		return claims[0]
	}
	var proved []claim[Binding]
	for _, c := range claims {
		if t.isProved(c) {
			if proved = append(proved, c); len(proved) > 1 {
				return none
			}
		}
	}
	return only(proved)
}

// isProved reports whether a peer binds a MAC address to an IP address that is its own in the ring.
func (t *Table) isProved(c claim[Binding]) bool {
	return slices.ContainsFunc(c.value.Addrs, func(a netip.Addr) bool {
		owner, inRange := t.ownerOf(a)
		return inRange && owner == c.owner
	})
}

// believedOfAddr returns the only claim of the peer that owns the address in the ring, or if no ring
// divides it, the only claim.
func (t *Table) believedOfAddr(a netip.Addr, claims []claim[MAC]) claim[MAC] {
	if owner, inRange := t.ownerOf(a); inRange {
		claims = slices.DeleteFunc(claims, func(c claim[MAC]) bool { return c.owner != owner })
	}
	return only(claims)
}

// only returns the claim if there is just one.
func only[V value](claims []claim[V]) (none claim[V]) {
	if len(claims) == 1 {
		return claims[0]
	}
	return none
}

// Listed is a binding of a peer.
type Listed struct {
	Binding
	Owner peer.Name
	// Refused says what of it is not believed, and why; "" if all is. Table.MarkRefused sets it.
	Refused string
}

// MarkRefused fills in what of the bindings is not believed, and why. It asks the ring.
func (t *Table) MarkRefused(list []Listed) {
	for i, l := range list {
		list[i].Refused = t.refusal(l)
	}
}

func (t *Table) refusal(l Listed) string {
	if _, owner, ok := t.ByMAC(l.MAC); !ok {
		return "the MAC address may be that of another peer too"
	} else if owner != l.Owner {
		return "the MAC address is that of another peer"
	}
	for _, a := range l.Addrs {
		if at, ok := t.ByAddr(a); ok && at == (Location{l.MAC, l.Owner}) {
			continue
		}
		owner, inRange := t.ownerOf(a)
		switch {
		case !inRange || owner == l.Owner:
			return fmt.Sprintf("%s has several MAC addresses", a)
		case owner.IsZero():
			return fmt.Sprintf("it is not known yet to whom %s belongs", a)
		}
		return fmt.Sprintf("%s belongs to another peer", a)
	}
	return ""
}
