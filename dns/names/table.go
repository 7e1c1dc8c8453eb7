package names

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Table is an index of the names that a State shows. Make one with NewTable. It is safe for
// concurrent use.
type Table struct {
	mu      sync.RWMutex
	forward map[string]*multiset[netip.Addr]
	reverse map[netip.Addr]*multiset[string]
	below   map[string]int // number of names below a name
	size    int            // entries
}

// multiset is a multiset: several owners and containers may have the same entry.
type multiset[T comparable] struct {
	values    []T // without duplicates
	counts    []int
	positions map[T]int // index of each value in values; nil while there are few values
}

// maxUnindexed is the number of values up to which a linear search is used.
const maxUnindexed = 16

func (m *multiset[T]) indexOf(v T) int {
	if m.positions == nil {
		return slices.Index(m.values, v)
	}
	if i, ok := m.positions[v]; ok {
		return i
	}
	return -1
}

func (m *multiset[T]) add(v T) {
	if i := m.indexOf(v); i >= 0 {
		m.counts[i]++
		return
	}
	m.values, m.counts = append(m.values, v), append(m.counts, 1)
	if m.positions == nil && len(m.values) > maxUnindexed {
		m.positions = make(map[T]int)
		for i, v := range m.values {
			m.positions[v] = i
		}
	} else if m.positions != nil {
		m.positions[v] = len(m.values) - 1
	}
}

// remove removes one occurrence of v, which must exist.
func (m *multiset[T]) remove(v T) {
	i, last := m.indexOf(v), len(m.values)-1
	if m.counts[i]--; m.counts[i] > 0 {
		return
	}
	m.values[i], m.counts[i] = m.values[last], m.counts[last]
	if m.positions != nil {
		m.positions[m.values[i]] = i
		delete(m.positions, v)
	}
	clear(m.values[last:])
	m.values, m.counts = m.values[:last], m.counts[:last]
}

// NewTable returns a Table without names.
func NewTable() *Table {
	return &Table{forward: make(map[string]*multiset[netip.Addr]), reverse: make(map[netip.Addr]*multiset[string]), below: make(map[string]int)}
}

// Lookup appends the addresses of a canonical name to dst, in no particular order. known reports whether
// the name exists, which is also true if other names end with it.
func (t *Table) Lookup(dst []netip.Addr, name string) (addrs []netip.Addr, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if m := t.forward[name]; m != nil {
		return append(dst, m.values...), true
	}
	return dst, t.below[name] > 0
}

// LookupBytes is Lookup for a name that the caller may reuse after the call.
func (t *Table) LookupBytes(dst []netip.Addr, name []byte) (addrs []netip.Addr, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if m := t.forward[string(name)]; m != nil {
		return append(dst, m.values...), true
	}
	return dst, t.below[string(name)] > 0
}

// Reverse returns the names of an address. The caller owns the slice.
func (t *Table) Reverse(a netip.Addr) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if m := t.reverse[a]; m != nil {
		return slices.Clone(m.values)
	}
	return nil
}

// Len returns the number of entries.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.size
}

// replace removes the entries out and adds the entries in.
func (t *Table) replace(out, in []Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range out {
		t.remove(e)
	}
	for _, e := range in {
		t.add(e)
	}
}

func (t *Table) add(e Entry) {
	t.size++
	m := t.forward[e.Name]
	if m == nil {
		m = new(multiset[netip.Addr])
		t.forward[e.Name] = m
		eachParent(e.Name, func(p string) { t.below[p]++ })
	}
	m.add(e.Addr)
	r := t.reverse[e.Addr]
	if r == nil {
		r = new(multiset[string])
		t.reverse[e.Addr] = r
	}
	r.add(e.Name)
}

func (t *Table) remove(e Entry) {
	t.size--
	m := t.forward[e.Name]
	if m.remove(e.Addr); len(m.values) == 0 {
		delete(t.forward, e.Name)
		eachParent(e.Name, func(p string) {
			if t.below[p]--; t.below[p] == 0 {
				delete(t.below, p)
			}
		})
	}
	r := t.reverse[e.Addr]
	if r.remove(e.Name); len(r.values) == 0 {
		delete(t.reverse, e.Addr)
	}
}

// eachParent calls f for each parent domain of name.
func eachParent(name string, f func(string)) {
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return
		}
		f(parent)
		name = parent
	}
}
