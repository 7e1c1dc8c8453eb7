package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/api"
)

// universes gives and takes addresses for owners, whichever allocator they
// belong to. Addresses outside every universe are the user's to manage: they
// are neither claimed nor released.
type ranges []Addresses

// of returns the allocator that a belongs to, nil if none.
func (us ranges) of(a netip.Addr) Addresses {
	for _, u := range us {
		if u.Range().Contains(a) {
			return u
		}
	}
	return nil
}

// subnet returns the allocator for a request, and the subnet to ask it for.
func (us ranges) subnet(a api.Address) (Addresses, netip.Prefix, error) {
	if len(us) == 0 {
		return nil, netip.Prefix{}, unavailable(fmt.Sprintf("give an address for %s: this router was launched without a range of addresses; name one as ip:ADDRESS/LENGTH", a))
	}
	if a.Kind == api.FromDefault {
		return us[0], us[0].DefaultSubnet(), nil
	}
	for _, u := range us {
		if u.Range().Overlaps(a.Prefix) {
			return u, a.Prefix, nil
		}
	}
	return nil, netip.Prefix{}, usage(fmt.Sprintf("give an address for %s: the subnet is outside the range %s", a, us[0].Range()))
}

// give gets one address for owner. Fresh tells that owner did not have it.
func (us ranges) give(ctx context.Context, owner string, a api.Address) (p netip.Prefix, fresh bool, err error) {
	if a.Kind == api.Exactly {
		u := us.of(a.Prefix.Addr())
		if u == nil {
			return a.Prefix, false, nil
		}
		fresh = !slices.Contains(u.Lookup(owner), a.Prefix)
		return a.Prefix, fresh, u.Claim(ctx, owner, a.Prefix)
	}
	u, subnet, err := us.subnet(a)
	if err != nil {
		return netip.Prefix{}, false, err
	}
	before := u.Lookup(owner)
	p, err = u.Allocate(ctx, owner, subnet)
	return p, err == nil && !slices.Contains(before, p), err
}

// giveAll gets all addresses for owner, or none. Fresh are those that owner
// did not have before.
func (us ranges) giveAll(ctx context.Context, owner string, as []api.Address) (got, fresh []netip.Prefix, err error) {
	for _, a := range as {
		p, isFresh, err := us.give(ctx, owner, a)
		if err != nil {
			return nil, nil, errors.Join(err, us.take(owner, fresh))
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
func (us ranges) take(owner string, ps []netip.Prefix) error {
	var errs []error
	for _, p := range ps {
		if u := us.of(p.Addr()); u != nil {
			errs = append(errs, u.Release(owner, p.Addr()))
		}
	}
	return errors.Join(errs...)
}

// owned returns what the allocators have given to owner.
func (us ranges) owned(owner string) []netip.Prefix {
	var ps []netip.Prefix
	for _, u := range us {
		ps = append(ps, u.Lookup(owner)...)
	}
	return ps
}

// settle makes the allocators agree with what owner really has: what it lacks
// there is claimed, what only they know of is released.
func (us ranges) settle(ctx context.Context, owner string, has []netip.Prefix) error {
	var errs []error
	owned := us.owned(owner)
	for _, p := range owned {
		if !slices.Contains(has, p) {
			errs = append(errs, us.take(owner, []netip.Prefix{p}))
		}
	}
	for _, p := range has {
		if u := us.of(p.Addr()); u != nil && !slices.Contains(owned, p) {
			errs = append(errs, u.Claim(ctx, owner, p))
		}
	}
	return errors.Join(errs...)
}

// matching returns those of has that the requests mean: all of them for no
// request, those in the subnet for FromSubnet and FromDefault.
func (us ranges) matching(has []netip.Prefix, as []api.Address) ([]netip.Prefix, error) {
	if len(as) == 0 {
		return slices.Clone(has), nil
	}
	var found []netip.Prefix
	for _, a := range as {
		subnet := a.Prefix
		if a.Kind == api.FromDefault {
			var err error
			if _, subnet, err = us.subnet(a); err != nil {
				return nil, err
			}
		}
		for _, p := range has {
			same := p == subnet
			if a.Kind != api.Exactly {
				same = p.Masked() == subnet
			}
			if same && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
	}
	return found, nil
}
