package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/api"
)

// allocator gives out the addresses of one range. An *ipam.Allocator is one. Its
// methods may be called concurrently.
type allocator interface {
	// Range is the range that addresses come from.
	Range() netip.Prefix
	// DefaultSubnet is the subnet for requests that name none.
	DefaultSubnet() netip.Prefix
	// Allocate gives owner a free address of subnet, with its length, and returns
	// once that is on disk. If owner has an address of the subnet already, it
	// returns that. It waits for the ring and for space until ctx ends; the error
	// then says what it waited for.
	Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error)
	// Claim gives owner a certain address of the range. It waits as Allocate does,
	// and fails if another owner has the address. Claiming twice is harmless.
	Claim(ctx context.Context, owner string, addr netip.Prefix) error
	// Hold records, before anything else is asked of the allocator, that owner uses an
	// address, and returns the owner by the state file, "" for none.
	Hold(owner string, addr netip.Prefix) (before string)
	// Lookup returns the addresses of owner.
	Lookup(owner string) []netip.Prefix
	// Owners returns all owners on this host, each with its addresses.
	Owners() map[string][]netip.Prefix
	// Release takes an address from owner, which must have it; it does not wait.
	Release(owner string, addr netip.Addr) error
	// Prime returns when addresses can be given out.
	Prime(ctx context.Context) error
}

// addresses gives addresses to owners and takes them back, and chooses the
// allocator: there is at most one for IPv4 and one for IPv6. Addresses outside
// all ranges are managed by users: they are neither claimed nor released.
//
// It implements plugin.Addresses, for Docker's driver.
type addresses []allocator

// of returns the allocator whose range contains a, nil if there is none.
func (as addresses) of(a netip.Addr) allocator {
	for _, u := range as {
		if u.Range().Contains(a) {
			return u
		}
	}
	return nil
}

// subnet returns the allocator for a request, and the subnet to ask it for.
func (as addresses) subnet(a api.Address) (allocator, netip.Prefix, error) {
	if len(as) == 0 {
		return nil, netip.Prefix{}, unavailable("give an address for %s: this router was launched without a range of addresses; name one as ip:ADDRESS/LENGTH", a)
	}
	if a.Kind == api.FromDefault {
		return as[0], as[0].DefaultSubnet(), nil
	}
	for _, u := range as {
		if u.Range().Overlaps(a.Prefix) {
			return u, a.Prefix, nil
		}
	}
	return nil, netip.Prefix{}, usage("give an address for %s: the subnet is outside the range %s", a, as[0].Range())
}

// give gets one address for owner. Fresh reports that owner did not have it.
func (as addresses) give(ctx context.Context, owner string, a api.Address) (p netip.Prefix, fresh bool, err error) {
	if a.Kind == api.Exactly {
		u := as.of(a.Prefix.Addr())
		if u == nil {
			return a.Prefix, false, nil
		}
		fresh = !slices.Contains(u.Lookup(owner), a.Prefix)
		return a.Prefix, fresh, u.Claim(ctx, owner, a.Prefix)
	}
	u, subnet, err := as.subnet(a)
	if err != nil {
		return netip.Prefix{}, false, err
	}
	before := u.Lookup(owner)
	p, err = u.Allocate(ctx, owner, subnet)
	return p, err == nil && !slices.Contains(before, p), err
}

// giveAll gets all addresses for owner, or none. Fresh are those that owner
// did not have before.
func (as addresses) giveAll(ctx context.Context, owner string, want []api.Address) (got, fresh []netip.Prefix, err error) {
	for _, a := range want {
		p, isFresh, err := as.give(ctx, owner, a)
		if err != nil {
			return nil, nil, errors.Join(err, as.take(owner, fresh))
		}
		if isFresh {
			fresh = append(fresh, p)
		}
		if !slices.Contains(got, p) {
			got = append(got, p)
		}
	}
	return got, fresh, nil
}

// take releases addresses of owner.
func (as addresses) take(owner string, ps []netip.Prefix) error {
	var errs []error
	for _, p := range ps {
		errs = append(errs, as.Release(owner, p.Addr()))
	}
	return errors.Join(errs...)
}

// owned returns what the allocators have given to owner.
func (as addresses) owned(owner string) []netip.Prefix {
	var ps []netip.Prefix
	for _, u := range as {
		ps = append(ps, u.Lookup(owner)...)
	}
	return ps
}

// settle makes the allocators agree with the addresses that owner really has:
// those that they lack are claimed, those that only they know of are released.
func (as addresses) settle(ctx context.Context, owner string, has []netip.Prefix) error {
	var errs []error
	owned := as.owned(owner)
	for _, p := range owned {
		if !slices.Contains(has, p) {
			errs = append(errs, as.Release(owner, p.Addr()))
		}
	}
	for _, p := range has {
		if u := as.of(p.Addr()); u != nil && !slices.Contains(owned, p) {
			errs = append(errs, u.Claim(ctx, owner, p))
		}
	}
	return errors.Join(errs...)
}

// matching returns the addresses of has that the requests name: all of them for no
// request, those in the subnet for FromSubnet and FromDefault. It returns an error if has
// lacks what a request names.
func (as addresses) matching(has []netip.Prefix, requests []api.Address) ([]netip.Prefix, error) {
	if len(requests) == 0 {
		return slices.Clone(has), nil
	}
	var found []netip.Prefix
	for _, a := range requests {
		subnet := a.Prefix
		if a.Kind == api.FromDefault {
			var err error
			if _, subnet, err = as.subnet(a); err != nil {
				return nil, err
			}
		}
		any := false
		for _, p := range has {
			same := p == subnet
			if a.Kind != api.Exactly {
				same = p.Masked() == subnet
			}
			any = any || same
			if same && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
		if !any {
			return nil, fmt.Errorf("%s is not among the addresses: %s", a, joinPrefixes(has))
		}
	}
	return found, nil
}

func joinPrefixes(ps []netip.Prefix) string {
	if len(ps) == 0 {
		return "there are none"
	}
	var words []string
	for _, p := range ps {
		words = append(words, p.String())
	}
	return strings.Join(words, ", ")
}

// prime returns when addresses of all ranges can be given out.
func (as addresses) prime(ctx context.Context) error {
	for _, u := range as {
		if err := u.Prime(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Default implements plugin.Addresses.
func (as addresses) Default(v6 bool) (netip.Prefix, bool) {
	for _, u := range as {
		if u.Range().Addr().Is6() == v6 {
			return u.DefaultSubnet(), true
		}
	}
	return netip.Prefix{}, false
}

// Check implements plugin.Addresses.
func (as addresses) Check(subnet netip.Prefix) error {
	ranges := ""
	for _, u := range as {
		if r := u.Range(); r.Contains(subnet.Addr()) && r.Bits() <= subnet.Bits() {
			return nil
		}
		ranges += " " + u.Range().String()
	}
	if ranges == "" {
		return fmt.Errorf("subnet %s: this router was launched without a range of addresses", subnet)
	}
	return fmt.Errorf("subnet %s is outside the ranges of this router:%s", subnet, ranges)
}

// Allocate implements plugin.Addresses.
func (as addresses) Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error) {
	p, _, err := as.give(ctx, owner, api.Address{Kind: api.FromSubnet, Prefix: subnet})
	return p, err
}

// Claim implements plugin.Addresses.
func (as addresses) Claim(ctx context.Context, owner string, p netip.Prefix) error {
	_, _, err := as.give(ctx, owner, api.Address{Kind: api.Exactly, Prefix: p})
	return err
}

// Release implements plugin.Addresses. An address that owner does not have is no
// error.
func (as addresses) Release(owner string, a netip.Addr) error {
	u := as.of(a)
	if u == nil || !slices.ContainsFunc(u.Lookup(owner), func(p netip.Prefix) bool { return p.Addr() == a }) {
		return nil
	}
	return u.Release(owner, a)
}

// Owners implements plugin.Addresses.
func (as addresses) Owners() map[string][]netip.Prefix {
	all := make(map[string][]netip.Prefix)
	for _, u := range as {
		for owner, ps := range u.Owners() {
			all[owner] = append(all[owner], ps...)
		}
	}
	return all
}
