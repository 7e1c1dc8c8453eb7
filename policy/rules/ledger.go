package rules

import (
	"maps"
	"slices"
	"strings"
)

// ledger is the rules together with a record of the changes since the last Change.
type ledger struct {
	Rules
	newSets   map[string]bool                // sets added since the last Change
	edited    map[string]map[Element]*string // the chain of each touched element before the change; nil if the element did not exist
	setChains map[string]bool                // chains that are new or have new rules
	inKernel  map[string]bool                // chains that existed at the last Change
	removed   Change                         // sets and chains removed since the last Change
}

func newLedger() ledger {
	return ledger{
		Rules:     Rules{Sets: make(map[string]*Set), Chains: make(map[string]*Chain)},
		newSets:   make(map[string]bool),
		edited:    make(map[string]map[Element]*string),
		setChains: make(map[string]bool),
		inKernel:  make(map[string]bool),
	}
}

// addSet adds a set whose name is new, and was not removed since the last Change either.
func (l *ledger) addSet(s *Set) {
	if s.Elements == nil {
		s.Elements = make(map[Element]string)
	}
	l.Sets[s.Name] = s
	l.newSets[s.Name] = true
}

func (l *ledger) removeSet(name string) {
	if !l.newSets[name] {
		l.removed.RemovedSets = append(l.removed.RemovedSets, l.Sets[name])
	}
	delete(l.newSets, name)
	delete(l.edited, name)
	delete(l.Sets, name)
}

// put adds an element to a set, or changes its chain.
func (l *ledger) put(set string, e Element, chain string) {
	s := l.Sets[set]
	if had, ok := s.Elements[e]; ok && had == chain {
		return
	}
	l.touch(s, e)
	s.Elements[e] = chain
}

func (l *ledger) drop(set string, e Element) {
	s := l.Sets[set]
	if _, ok := s.Elements[e]; !ok {
		return
	}
	l.touch(s, e)
	delete(s.Elements, e)
}

// touch records the state of an element before its first change.
func (l *ledger) touch(s *Set, e Element) {
	if l.newSets[s.Name] {
		return
	}
	if l.edited[s.Name] == nil {
		l.edited[s.Name] = make(map[Element]*string)
	}
	if _, ok := l.edited[s.Name][e]; ok {
		return
	}
	var had *string
	if chain, ok := s.Elements[e]; ok {
		had = &chain
	}
	l.edited[s.Name][e] = had
}

func (l *ledger) setChain(name string, rules []Rule) {
	if have := l.Chains[name]; have != nil && slices.Equal(have.Rules, rules) {
		return
	}
	l.Chains[name] = &Chain{name, rules}
	l.setChains[name] = true
}

func (l *ledger) removeChain(name string) {
	delete(l.Chains, name)
	delete(l.setChains, name)
	if l.inKernel[name] {
		l.removed.RemovedChains = append(l.removed.RemovedChains, name)
		delete(l.inKernel, name)
	}
}

// change returns the recorded changes in a deterministic order, and starts a new record.
func (l *ledger) change() Change {
	c := l.removed
	slices.Sort(c.RemovedChains)
	slices.SortFunc(c.RemovedSets, func(a, b *Set) int { return strings.Compare(a.Name, b.Name) })
	for _, name := range slices.Sorted(maps.Keys(l.newSets)) {
		c.NewSets = append(c.NewSets, l.Sets[name])
	}
	for _, name := range slices.Sorted(maps.Keys(l.setChains)) {
		c.Chains = append(c.Chains, l.Chains[name])
		l.inKernel[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(l.edited)) {
		if e := editOf(l.Sets[name], l.edited[name]); len(e.Add)+len(e.Drop) > 0 {
			c.Edits = append(c.Edits, e)
		}
	}
	l.removed = Change{}
	clear(l.newSets)
	clear(l.setChains)
	clear(l.edited)
	return c
}

func editOf(s *Set, touched map[Element]*string) Edit {
	edit := Edit{Set: s}
	for e, had := range touched {
		chain, has := s.Elements[e]
		if had != nil && has && *had == chain {
			continue
		}
		if had != nil {
			edit.Drop = append(edit.Drop, Entry{e, *had})
		}
		if has {
			edit.Add = append(edit.Add, Entry{e, chain})
		}
	}
	slices.SortFunc(edit.Drop, compareEntries)
	slices.SortFunc(edit.Add, compareEntries)
	return edit
}
