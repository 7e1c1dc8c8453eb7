package peer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// ErrNameTaken is the cause if a name comes with a key that may not use it.
var ErrNameTaken = errors.New("the name belongs to another key")

// maxBound bounds how many overridden names a Book remembers after their peers are gone.
const maxBound = 4096

// Book says which key a name has. A derived name needs no entry: it accepts only its own
// key. An overridden name is bound to the first key that shows it. The binding outlives
// the peer, so that a squatter cannot take the name of a host that is away. It ends when
// the mesh removes the name, or when the book is full and the name is the one that has
// been absent longest.
//
// The zero Book is empty. It is not safe for concurrent use.
type Book struct {
	bound  map[Name]*binding
	clock  uint64 // counts the calls that change the order of use
	change uint64
}

type binding struct {
	key  Key
	used uint64 // clock of the last Bind
	held int    // uses that keep it from being dropped
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

// Bind binds name to key. It returns the error that Check returns.
func (b *Book) Bind(name Name, key Key) error {
	if err := b.Check(name, key); err != nil || name.Derived() {
		return err
	}
	b.clock++
	if old := b.bound[name]; old != nil {
		old.used = b.clock
		return nil
	}
	if b.bound == nil {
		b.bound = make(map[Name]*binding)
	}
	if len(b.bound) >= maxBound && !b.dropOldest() {
		return fmt.Errorf("peer %s: %d overridden names are in use already, which is the limit", name, maxBound)
	}
	b.bound[name] = &binding{key: key, used: b.clock}
	b.change++
	return nil
}

// dropOldest drops the binding that nobody holds and that was used longest ago, and
// reports whether there was one.
func (b *Book) dropOldest() bool {
	var oldest Name
	for n, e := range b.bound {
		if e.held == 0 && (oldest.IsZero() || e.used < b.bound[oldest].used) {
			oldest = n
		}
	}
	if oldest.IsZero() {
		return false
	}
	delete(b.bound, oldest)
	b.change++
	return true
}

// Hold keeps the binding of a name until Release is called as often. Names of peers that
// are in the topology, and of owners of addresses, are held.
func (b *Book) Hold(name Name) {
	if e := b.bound[name]; e != nil {
		e.held++
	}
}

// Release undoes one call of Hold.
func (b *Book) Release(name Name) {
	if e := b.bound[name]; e != nil && e.held > 0 {
		e.held--
	}
}

// Forget ends the binding of a name that the mesh has removed.
func (b *Book) Forget(name Name) {
	if _, ok := b.bound[name]; ok {
		delete(b.bound, name)
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
}

// Bindings returns all bindings, those unused longest first. The caller owns the slice.
func (b *Book) Bindings() []Binding {
	names := slices.SortedFunc(maps.Keys(b.bound), func(m, n Name) int {
		return int(int64(b.bound[m].used) - int64(b.bound[n].used))
	})
	out := make([]Binding, len(names))
	for i, n := range names {
		out[i] = Binding{n, b.bound[n].key}
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
