package plugin

import (
	"fmt"
	"net/netip"
	"strings"
)

// pool is a subnet from which addresses are requested. Its name contains all of it:
//
//	weft-SUBNET-RANGE      weft-10.40.0.0/16-10.40.1.0/24
type pool struct {
	subnet netip.Prefix
	within netip.Prefix // the part of subnet from which addresses come, or all of it
}

func (p pool) String() string { return "weft-" + p.subnet.String() + "-" + p.within.String() }

// parsePool reads the name of a pool.
func parsePool(id string) (pool, error) {
	rest, ours := strings.CutPrefix(id, "weft-")
	subnet, within, ok := strings.Cut(rest, "-")
	if !ours || !ok {
		return pool{}, fmt.Errorf("pool %.100q is not one of weft's", id)
	}
	p, err := newPool(subnet, within)
	if err != nil {
		return pool{}, fmt.Errorf("pool %.100q: %w", id, err)
	}
	return p, nil
}

// newPool makes a pool of a subnet and, unless it is empty, a range of it.
func newPool(subnet, within string) (p pool, err error) {
	if p.subnet, err = parseSubnet("subnet", subnet); err != nil {
		return pool{}, err
	}
	if within == "" {
		p.within = p.subnet
		return p, nil
	}
	if p.within, err = parseSubnet("ip-range", within); err != nil {
		return pool{}, err
	}
	if p.within.Bits() < p.subnet.Bits() || !p.subnet.Contains(p.within.Addr()) {
		return pool{}, fmt.Errorf("ip-range %s is not in the subnet %s", p.within, p.subnet)
	}
	return p, nil
}

// parseSubnet reads a subnet as users write it for Docker, which accepts 10.40.1.7/24
// for 10.40.1.0/24.
func parseSubnet(what, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s %.100q: want a network like 10.40.0.0/16", what, s)
	}
	return p.Masked(), nil
}

// full gives an address of the pool the length of its subnet.
func (p pool) full(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, p.subnet.Bits()) }
