package names

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/weft-net/weft/mesh/peer"
)

// Table is an index of the names that a State shows. It is safe for concurrent use.
//
// It answers the entries of a peer only if the address is that peer's to name:
//
//   - An address of the mesh's ranges must belong to the peer (Config.Owns).
//   - Another address must be marked as Entry.Outside. It is not answered while another peer
//     names an address of the mesh that belongs to it by the same name: anybody can mark
//     addresses, so a peer could otherwise lead the clients of a container out of the mesh.
//
// What belongs to whom changes at any time, and finding out may take long. So the answer of a
// name is found when the name is looked up first, and again by Refresh. No lock is held
// meanwhile, so other names are answered.
type Table struct {
	ranges []netip.Prefix
	owns   func(peer.Name, netip.Addr) bool

	mu      sync.RWMutex
	forward map[string]*nameEntries
	reverse map[netip.Addr]*multiset[namedBy]
	below   map[string]int // number of names below a name
	size    int            // entries
}

// claim is an address of a name as a peer announces it.
type claim struct {
	addr    netip.Addr
	owner   peer.Name
	outside bool
}

// namedBy is a name of an address as a peer announces it.
type namedBy struct {
	name    string
	owner   peer.Name
	outside bool
}

// nameEntries are the entries of one name.
type nameEntries struct {
	multiset[claim]
	version uint64                 // grows with each change
	answer  atomic.Pointer[answer] // nil after a change; stored while mu is held
}

// changed notes that the entries have changed. mu is held for writing.
func (m *nameEntries) changed() {
	m.version++
	m.answer.Store(nil)
}

// answer is what is answered for a name. Only used changes.
type answer struct {
	used  atomic.Bool  // since it was found
	addrs []netip.Addr // without duplicates
	// inside is a peer that names an address of its own in the mesh, zero if there is none.
	// several is set if there is more than one.
	inside  peer.Name
	several bool
}

// multiset is a multiset: several containers may have the same entry.
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

func newTable(cfg Config) *Table {
	t := &Table{
		ranges: cfg.Ranges, owns: cfg.Owns,
		forward: make(map[string]*nameEntries), reverse: make(map[netip.Addr]*multiset[namedBy]), below: make(map[string]int),
	}
	if t.owns == nil {
		t.owns = func(peer.Name, netip.Addr) bool { return true }
	}
	return t
}

// isInside reports whether an address is one of the mesh.
func isInside(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// find finds out what is answered for a name with some claims. mu is not held.
func (t *Table) find(claims []claim) *answer {
	a := new(answer)
	inside := make([]bool, len(claims))
	for i, c := range claims {
		if inside[i] = isInside(t.ranges, c.addr) && t.owns(c.owner, c.addr); !inside[i] {
			continue
		}
		a.several = a.several || !a.inside.IsZero() && a.inside != c.owner
		a.inside = c.owner
	}
	seen := make(map[netip.Addr]bool, len(claims))
	for i, c := range claims {
		if (inside[i] || t.leads(a, c.owner, c.addr, c.outside)) && !seen[c.addr] {
			seen[c.addr] = true
			a.addrs = append(a.addrs, c.addr)
		}
	}
	return a
}

// answerOf returns what is answered for a name that had no answer yet, and below as it is now.
func (t *Table) answerOf(name string) (a *answer, below int) {
	t.mu.RLock()
	m, below := t.forward[name], t.below[name]
	if m == nil {
		t.mu.RUnlock()
		return new(answer), below
	}
	if a := m.answer.Load(); a != nil {
		t.mu.RUnlock()
		return a, below
	}
	claims, version := slices.Clone(m.values), m.version
	t.mu.RUnlock()
	a = t.find(claims)
	a.used.Store(true)
	t.keep(m, version, a)
	return a, below
}

// keep keeps an answer unless the entries of the name have changed since version.
func (t *Table) keep(m *nameEntries, version uint64, a *answer) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if m.version == version {
		m.answer.Store(a)
	}
}

// Refresh asks again which addresses belong to whom, for the names that were looked up since
// the last call. Call it about once a second. Names are answered as before while it works.
func (t *Table) Refresh() {
	type work struct {
		m       *nameEntries
		version uint64
	}
	var list []work
	t.mu.RLock()
	for _, m := range t.forward {
		if a := m.answer.Load(); a == nil {
			continue
		} else if !a.used.Load() {
			m.answer.Store(nil)
		} else {
			list = append(list, work{m, m.version})
		}
	}
	t.mu.RUnlock()
	for _, w := range list {
		t.mu.RLock()
		claims := slices.Clone(w.m.values)
		changed := w.m.version != w.version
		t.mu.RUnlock()
		if !changed {
			t.keep(w.m, w.version, t.find(claims))
		}
	}
}

// leads reports whether a name may lead to an address outside the mesh.
func (t *Table) leads(a *answer, owner peer.Name, addr netip.Addr, outside bool) bool {
	return outside && !isInside(t.ranges, addr) && !a.several && (a.inside.IsZero() || a.inside == owner)
}

// Lookup appends the addresses of a canonical name to dst, in no particular order. known
// reports whether the name exists, which is also true if other names end with it.
func (t *Table) Lookup(dst []netip.Addr, name string) (addrs []netip.Addr, known bool) {
	t.mu.RLock()
	dst, known, ok := answered(dst, t.forward[name], t.below[name])
	t.mu.RUnlock()
	if ok {
		return dst, known
	}
	return t.lookupFirst(dst, name)
}

// LookupBytes is Lookup for a name that the caller may reuse after the call.
func (t *Table) LookupBytes(dst []netip.Addr, name []byte) (addrs []netip.Addr, known bool) {
	t.mu.RLock()
	dst, known, ok := answered(dst, t.forward[string(name)], t.below[string(name)])
	t.mu.RUnlock()
	if ok {
		return dst, known
	}
	return t.lookupFirst(dst, string(name))
}

// answered returns ok false if it is not known yet what is answered.
func answered(dst []netip.Addr, m *nameEntries, below int) (addrs []netip.Addr, known, ok bool) {
	if m == nil {
		return dst, below > 0, true
	}
	a := m.answer.Load()
	if a == nil {
		return dst, false, false
	}
	if !a.used.Load() {
		a.used.Store(true)
	}
	return append(dst, a.addrs...), len(a.addrs) > 0 || below > 0, true
}

func (t *Table) lookupFirst(dst []netip.Addr, name string) (addrs []netip.Addr, known bool) {
	a, below := t.answerOf(name)
	return append(dst, a.addrs...), len(a.addrs) > 0 || below > 0
}

// Reverse returns the names of an address. The caller owns the slice.
func (t *Table) Reverse(a netip.Addr) (names []string) {
	t.mu.RLock()
	var claims []namedBy
	if m := t.reverse[a]; m != nil {
		claims = slices.Clone(m.values)
	}
	t.mu.RUnlock()
	inside := isInside(t.ranges, a)
	owns := make(map[peer.Name]bool)
	for _, c := range claims {
		ok := false
		if inside {
			owned, asked := owns[c.owner]
			if !asked {
				owned = t.owns(c.owner, a)
				owns[c.owner] = owned
			}
			ok = owned
		} else {
			answer, _ := t.answerOf(c.name)
			ok = t.leads(answer, c.owner, a, c.outside)
		}
		if ok {
			names = append(names, c.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// MarkRefused fills in which entries are not answered, and why.
func (t *Table) MarkRefused(list []Listed) {
	for i, l := range list {
		list[i].Refused = t.refusal(l.Owner, l.Entry)
	}
}

// CountRefused counts the entries that are not answered. It ends early once stop
// returns true.
func (t *Table) CountRefused(stop func() bool) (n int) {
	t.mu.RLock()
	all := make([]string, 0, len(t.forward))
	for name := range t.forward {
		all = append(all, name)
	}
	t.mu.RUnlock()
	var claims []claim
	var counts []int
	for _, name := range all {
		if stop() {
			return n
		}
		claims, counts = claims[:0], counts[:0]
		t.mu.RLock()
		if m := t.forward[name]; m != nil {
			claims, counts = append(claims, m.values...), append(counts, m.counts...)
		}
		t.mu.RUnlock()
		for i, c := range claims {
			if t.refusal(c.owner, Entry{Name: name, Addr: c.addr, Outside: c.outside}) != "" {
				n += counts[i]
			}
		}
	}
	return n
}

// refusal says why an entry is not answered, "" if it is.
func (t *Table) refusal(owner peer.Name, e Entry) string {
	switch {
	case isInside(t.ranges, e.Addr):
		if !t.owns(owner, e.Addr) {
			return "the address belongs to another peer"
		}
	case !e.Outside:
		return "the address is outside the ranges of this mesh"
	default:
		if answer, _ := t.answerOf(e.Name); !t.leads(answer, owner, e.Addr, e.Outside) {
			return "another peer has addresses of the mesh with this name"
		}
	}
	return ""
}

// Len returns the number of entries.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.size
}

// replace removes the entries out of a peer and adds the entries in.
func (t *Table) replace(owner peer.Name, out, in []Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range out {
		t.remove(owner, e)
	}
	for _, e := range in {
		t.add(owner, e)
	}
}

func (t *Table) add(owner peer.Name, e Entry) {
	t.size++
	m := t.forward[e.Name]
	if m == nil {
		m = new(nameEntries)
		t.forward[e.Name] = m
		eachParent(e.Name, func(p string) { t.below[p]++ })
	}
	m.add(claim{e.Addr, owner, e.Outside})
	m.changed()
	r := t.reverse[e.Addr]
	if r == nil {
		r = new(multiset[namedBy])
		t.reverse[e.Addr] = r
	}
	r.add(namedBy{e.Name, owner, e.Outside})
}

func (t *Table) remove(owner peer.Name, e Entry) {
	t.size--
	m := t.forward[e.Name]
	m.changed()
	if m.remove(claim{e.Addr, owner, e.Outside}); len(m.values) == 0 {
		delete(t.forward, e.Name)
		eachParent(e.Name, func(p string) {
			if t.below[p]--; t.below[p] == 0 {
				delete(t.below, p)
			}
		})
	}
	r := t.reverse[e.Addr]
	if r.remove(namedBy{e.Name, owner, e.Outside}); len(r.values) == 0 {
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
