package daemon

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/weft-net/weft/internal/store"
)

// fakeAddresses is an allocator of a mesh without other peers.
type fakeAddresses struct {
	addrRange netip.Prefix

	mu    sync.Mutex
	given map[netip.Addr]string // owners
	fail  error                 // of Allocate and Claim
}

func newFakeAddresses() *fakeAddresses {
	return &fakeAddresses{addrRange: netip.MustParsePrefix("10.32.0.0/16"), given: make(map[netip.Addr]string)}
}

func (f *fakeAddresses) Range() netip.Prefix { return f.addrRange }

func (f *fakeAddresses) DefaultSubnet() netip.Prefix { return f.addrRange }

func (f *fakeAddresses) Allocate(_ context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return netip.Prefix{}, f.fail
	}
	for a, o := range f.given {
		if o == owner && subnet.Contains(a) {
			return netip.PrefixFrom(a, subnet.Bits()), nil
		}
	}
	a := subnet.Addr().Next()
	for f.given[a] != "" {
		a = a.Next()
	}
	f.given[a] = owner
	return netip.PrefixFrom(a, subnet.Bits()), nil
}

func (f *fakeAddresses) Claim(_ context.Context, owner string, p netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if o := f.given[p.Addr()]; o != "" && o != owner {
		return errors.New("another owner has it")
	}
	f.given[p.Addr()] = owner
	return nil
}

func (f *fakeAddresses) Hold(owner string, p netip.Prefix) (before string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before = f.given[p.Addr()]
	f.given[p.Addr()] = owner
	return before
}

func (f *fakeAddresses) Lookup(owner string) []netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ps []netip.Prefix
	for a, o := range f.given {
		if o == owner {
			ps = append(ps, netip.PrefixFrom(a, f.addrRange.Bits()))
		}
	}
	slices.SortFunc(ps, netip.Prefix.Compare)
	return ps
}

func (f *fakeAddresses) Owners() map[string][]netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string][]netip.Prefix)
	for a, o := range f.given {
		all[o] = append(all[o], netip.PrefixFrom(a, f.addrRange.Bits()))
	}
	return all
}

func (f *fakeAddresses) Release(owner string, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.given[a] == owner {
		delete(f.given, a)
	}
	return nil
}

func (f *fakeAddresses) Prime(context.Context) error { return nil }

func (f *fakeAddresses) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.given)
}

// openStore opens a state file that is closed with the test.
func openStore(t *testing.T) *store.Store {
	t.Helper()
	st, _, err := store.Open(filepath.Join(t.TempDir(), "weft.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}
