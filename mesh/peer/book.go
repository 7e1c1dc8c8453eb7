package peer

import (
	"container/list"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// ErrNameTaken is the cause if a name comes with a key that may not use it.
var ErrNameTaken = errors.New("the name belongs to another key")

// maxBound bounds how many overridden names a Book remembers. It is more than there can be
// peers in the topology, so those never fill it.
const maxBound = 12 << 10

// Via is from where a name came. Names that came from one place share its part of a Book.
type Via struct {
	// Addr is the underlay address of the neighbour that brought the name, without the low
	// half if it is an IPv6 address. Without a known address, Neighbour is its name. A name
	// from disk or of this host has neither.
	Addr      netip.Addr
	Neighbour Name
	// Own is set if the neighbour is the peer itself.
	Own bool
}

// place is all names that came from one place.
type place struct {
	names int
	// absent are the names that nobody holds, those unused longest first: those that others
	// brought, and those of peers that came themselves.
	absent [2]list.List // of *binding
}

// Book says which key a name has. A derived name needs no entry: it accepts only its own
// key. An overridden name is bound to the first key that shows it. The binding outlives
// the peer, so that a squatter cannot take the name of a host that is away. It ends when
// the mesh removes the name, or when the book is full and the name has to give way: the
// place that brought most names loses the one that has been absent longest, first among
// those that did not come in a session of their own. So a neighbour that makes up names
// only pushes out those.
//
// The zero Book is empty. It is not safe for concurrent use.
type Book struct {
	bound  map[Name]*binding
	places map[Via]*place
	clock  uint64 // counts the calls that change the order of use
	change uint64
}

type binding struct {
	name Name
	key  Key
	via  Via
	from *place
	used uint64        // clock of the last Bind
	held int           // uses that keep it from being dropped
	row  *list.Element // in from.absent, nil while it is held
}

// Check returns an error if key may not use name.
func (b *Book) Check(name Name, key Key) error {
	if name.Derived() {
		return name.Matches(IDOf(key))
	}
	if old, ok := b.bound[name]; ok && old.key != key {
		return fmt.Errorf("peer %s shows key %s, first seen with %s: %w", name, IDOf(key), IDOf(old.key), ErrNameTaken)
	}
	return nil
}

// Bind binds name to key. It returns the error that Check returns. A name that is bound
// already stays with the place that brought it, unless the peer itself has come now.
func (b *Book) Bind(name Name, key Key, via Via) error {
	if err := b.Check(name, key); err != nil || name.Derived() {
		return err
	}
	b.clock++
	if old := b.bound[name]; old != nil {
		old.used = b.clock
		if via.Own && old.via != via {
			b.leave(old)
			b.enter(old, via)
			b.change++
		} else if old.row != nil {
			old.absent().MoveToBack(old.row)
		}
		return nil
	}
	if len(b.bound) >= maxBound && !b.dropOne(via) {
		return fmt.Errorf("peer %s: %d overridden names are known already, which is the limit, and most came from the same neighbour", name, maxBound)
	}
	if b.bound == nil {
		b.bound, b.places = make(map[Name]*binding), make(map[Via]*place)
	}
	e := &binding{name: name, key: key, used: b.clock}
	b.bound[name] = e
	b.enter(e, via)
	b.change++
	return nil
}

// absent returns the list of its place that a binding is in while nobody holds it.
func (e *binding) absent() *list.List {
	if e.via.Own {
		return &e.from.absent[1]
	}
	return &e.from.absent[0]
}

// enter adds a binding to the place from which it came.
func (b *Book) enter(e *binding, via Via) {
	key := Via{Addr: via.Addr, Neighbour: via.Neighbour}
	if b.places[key] == nil {
		b.places[key] = new(place)
	}
	e.via, e.from = via, b.places[key]
	e.from.names++
	if e.held == 0 {
		e.row = e.absent().PushBack(e)
	}
}

// leave undoes enter.
func (b *Book) leave(e *binding) {
	if e.row != nil {
		e.absent().Remove(e.row)
		e.row = nil
	}
	if e.from.names--; e.from.names == 0 {
		delete(b.places, Via{Addr: e.via.Addr, Neighbour: e.via.Neighbour})
	}
}

// dropOne drops a binding that nobody holds for one more from a place, and reports whether
// it could. Places with fewer names than that one lose none.
func (b *Book) dropOne(via Via) bool {
	own := 0
	if p := b.places[Via{Addr: via.Addr, Neighbour: via.Neighbour}]; p != nil {
		own = p.names
	}
	var loser *binding
	most := 0
	for _, p := range b.places {
		first := p.absent[0].Front()
		if first == nil {
			first = p.absent[1].Front()
		}
		if first == nil || p.names < own {
			continue
		}
		if e := first.Value.(*binding); loser == nil || p.names > most || p.names == most && e.used < loser.used {
			loser, most = e, p.names
		}
	}
	if loser == nil {
		return false
	}
	b.Forget(loser.name)
	return true
}

// Hold keeps the binding of a name until Release is called as often. Names of peers that
// are in the topology, and of owners of addresses, are held.
func (b *Book) Hold(name Name) {
	e := b.bound[name]
	if e == nil {
		return
	}
	if e.held++; e.row != nil {
		e.absent().Remove(e.row)
		e.row = nil
	}
}

// Release undoes one call of Hold.
func (b *Book) Release(name Name) {
	e := b.bound[name]
	if e == nil || e.held == 0 {
		return
	}
	if e.held--; e.held == 0 {
		e.row = e.absent().PushBack(e)
	}
}

// Forget ends the binding of a name that the mesh has removed.
func (b *Book) Forget(name Name) {
	if e := b.bound[name]; e != nil {
		delete(b.bound, name)
		b.leave(e)
		b.change++
	}
}

// Lookup returns the key to which an overridden name is bound.
func (b *Book) Lookup(name Name) (Key, bool) {
	if e := b.bound[name]; e != nil {
		return e.key, true
	}
	return Key{}, false
}

// Generation grows with each binding that is made or dropped, so that the caller knows
// when to write the book to disk.
func (b *Book) Generation() uint64 { return b.change }

// Binding is an overridden name with its key.
type Binding struct {
	Name Name
	Key  Key
	Via  Via
}

// Bindings returns all bindings, those unused longest first. The caller owns the slice.
func (b *Book) Bindings() []Binding {
	names := slices.SortedFunc(maps.Keys(b.bound), func(m, n Name) int {
		return int(int64(b.bound[m].used) - int64(b.bound[n].used))
	})
	out := make([]Binding, len(names))
	for i, n := range names {
		out[i] = Binding{n, b.bound[n].key, b.bound[n].via}
	}
	return out
}

// idCache remembers the KeyIDs of keys, because each costs keyIDRounds hashes.
type idCache struct {
	mu  sync.Mutex
	ids map[Key]KeyID
}

// maxKnownIDs bounds the cache: 48 bytes each. It is emptied when it is full.
const maxKnownIDs = 1 << 14

var knownIDs idCache

func (c *idCache) get(k Key) (KeyID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.ids[k]
	return id, ok
}

func (c *idCache) put(k Key, id KeyID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids == nil || len(c.ids) >= maxKnownIDs {
		c.ids = make(map[Key]KeyID)
	}
	c.ids[k] = id
}
