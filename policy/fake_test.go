package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/policy/rules"
)

// fakeKernel keeps rules in memory and obeys the rules of nftables: a transaction takes effect as
// a whole or not at all; an element or a chain that does not exist cannot be deleted or jumped to;
// a chain that is in use cannot be deleted; each transaction, of any program, increments the
// generation.
type fakeKernel struct {
	mu       sync.Mutex
	sets     map[string]*rules.Set
	chains   map[string]*rules.Chain
	state    hooks
	gen      uint32
	logRules logRules
	noLog    bool    // log rules are rejected, as without nfnetlink_log
	fail     []error // the results of the next transactions; nil lets one succeed
	writes   int     // successful transactions
	closed   bool
	flushed  chan struct{} // of capacity 1
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{sets: map[string]*rules.Set{}, chains: map[string]*rules.Chain{}, flushed: make(chan struct{}, 1)}
}

// transact runs f on a copy of the rules, and keeps the copy if f succeeds.
func (k *fakeKernel) transact(f func(*fakeKernel) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.fail) > 0 {
		err := k.fail[0]
		k.fail = k.fail[1:]
		if err != nil {
			return err
		}
	}
	next := &fakeKernel{sets: map[string]*rules.Set{}, chains: maps.Clone(k.chains), state: k.state, logRules: k.logRules, noLog: k.noLog}
	for name, s := range k.sets {
		next.sets[name] = cloneSet(s)
	}
	if err := f(next); err != nil {
		return err
	}
	if err := next.check(); err != nil {
		return err
	}
	k.sets, k.chains, k.state = next.sets, next.chains, next.state
	k.gen++
	k.writes++
	return nil
}

func cloneSet(s *rules.Set) *rules.Set {
	c := *s
	c.Elements, c.Ranges = maps.Clone(s.Elements), slices.Clone(s.Ranges)
	if c.Elements == nil {
		c.Elements = map[rules.Element]string{}
	}
	return &c
}

// check finds references to chains and sets that do not exist.
func (k *fakeKernel) check() error {
	for _, ch := range k.chains {
		for _, r := range ch.Rules {
			if r.Action == rules.Log && k.logRules == written && k.noLog {
				return fmt.Errorf("chain %s logs: %w", ch.Name, unix.ENOENT)
			}
			if _, ok := k.chains[r.Chain]; r.Action == rules.Jump && !ok {
				return fmt.Errorf("chain %s jumps to %q: %w", ch.Name, r.Chain, unix.ENOENT)
			}
			for _, set := range []string{r.Peers, r.Ports, r.Named} {
				if _, ok := k.sets[set]; set != "" && !ok {
					return fmt.Errorf("chain %s looks up set %q: %w", ch.Name, set, unix.ENOENT)
				}
			}
		}
	}
	for _, s := range k.sets {
		for e, chain := range s.Elements {
			if _, ok := k.chains[chain]; chain != "" && !ok {
				return fmt.Errorf("element %v of %s refers to chain %q: %w", e, s.Name, chain, unix.EBUSY)
			}
		}
	}
	return nil
}

func (k *fakeKernel) apply(c rules.Change, from, to hooks) error {
	return k.transact(func(k *fakeKernel) error {
		if k.state != from {
			return fmt.Errorf("hooks are %v, not %v: %w", k.state, from, unix.ENOENT)
		}
		return k.change(c, to)
	})
}

func (k *fakeKernel) change(c rules.Change, to hooks) error {
	for _, ch := range c.Chains {
		k.chains[ch.Name] = &rules.Chain{Name: ch.Name, Rules: slices.Clone(ch.Rules)}
	}
	for _, s := range c.NewSets {
		if k.sets[s.Name] != nil {
			return fmt.Errorf("add set %s: %w", s.Name, unix.EEXIST)
		}
		k.sets[s.Name] = cloneSet(s)
	}
	for _, e := range c.Edits {
		s := k.sets[e.Set.Name]
		if s == nil {
			return fmt.Errorf("edit set %s: %w", e.Set.Name, unix.ENOENT)
		}
		for _, entry := range e.Drop {
			if _, ok := s.Elements[entry.Element]; !ok {
				return fmt.Errorf("delete %v from set %s: %w", entry.Element, s.Name, unix.ENOENT)
			}
			delete(s.Elements, entry.Element)
		}
		for _, entry := range e.Add {
			if chain, ok := s.Elements[entry.Element]; ok && chain != entry.Chain {
				return fmt.Errorf("add %v to set %s: %w", entry.Element, s.Name, unix.EEXIST)
			}
			s.Elements[entry.Element] = entry.Chain
		}
	}
	for _, name := range c.RemovedChains {
		if k.chains[name] == nil {
			return fmt.Errorf("delete chain %s: %w", name, unix.ENOENT)
		}
		delete(k.chains, name)
	}
	for _, s := range c.RemovedSets {
		if k.sets[s.Name] == nil {
			return fmt.Errorf("delete set %s: %w", s.Name, unix.ENOENT)
		}
		delete(k.sets, s.Name)
	}
	k.state = to
	return nil
}

func (k *fakeKernel) replace(r *rules.Rules, h hooks) error {
	return k.transact(func(k *fakeKernel) error {
		k.sets, k.chains = map[string]*rules.Set{}, map[string]*rules.Chain{}
		return k.change(rules.Change{NewSets: slices.Collect(maps.Values(r.Sets)), Chains: slices.Collect(maps.Values(r.Chains))}, h)
	})
}

// flush removes all rules, as another program may.
func (k *fakeKernel) flush() {
	_ = k.transact(func(k *fakeKernel) error {
		k.sets, k.chains, k.state = map[string]*rules.Set{}, map[string]*rules.Chain{}, unhooked
		return nil
	})
	k.flushed <- struct{}{}
}

func (k *fakeKernel) differs(r *rules.Rules, h hooks) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state != h {
		return "other hooks", nil
	}
	same := maps.EqualFunc(k.chains, r.Chains, func(a, b *rules.Chain) bool { return slices.Equal(a.Rules, b.Rules) })
	if !same {
		return "other chains", nil
	}
	same = maps.EqualFunc(k.sets, r.Sets, func(a, b *rules.Set) bool {
		return maps.Equal(a.Elements, b.Elements) && slices.Equal(a.Ranges, b.Ranges)
	})
	if !same {
		return "other sets", nil
	}
	return "", nil
}

func (k *fakeKernel) generation() (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gen, nil
}

func (k *fakeKernel) setLogRules(l logRules) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logRules = l
}

func (k *fakeKernel) watch(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.flushed:
			changed()
		}
	}
}

func (k *fakeKernel) showBridged() error                      { return nil }
func (k *fakeKernel) ports() (map[netip.Addr]uint32, error)   { return nil, nil }
func (k *fakeKernel) hostAddrs() (map[netip.Addr]bool, error) { return nil, nil }
func (k *fakeKernel) connections() (connections, error)       { return noConnections{}, nil }

func (k *fakeKernel) denials(ctx context.Context, _ func(denial)) error {
	<-ctx.Done()
	return nil
}

func (k *fakeKernel) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errors.New("closed twice")
	}
	k.closed = true
	return nil
}

// noConnections is a connection tracking table without connections.
type noConnections struct{}

func (noConnections) Dump(*conntrack.DumpOptions) ([]conntrack.Flow, error) { return nil, nil }
func (noConnections) Delete(conntrack.Flow) error                           { return unix.ENOENT }
func (noConnections) Close() error                                          { return nil }
