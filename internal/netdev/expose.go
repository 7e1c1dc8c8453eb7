package netdev

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Exposure is an address of the bridge, with which the host takes part in the overlay.
type Exposure struct {
	Addr netip.Prefix
	// Masquerade translates source addresses in both directions: packets from
	// containers leave the host with the host's address, and packets into the overlay
	// through the host have the source Addr.
	Masquerade bool
	// KeepClients, with Masquerade, keeps the address of a client outside the host if
	// the host has translated the packet's destination, so that the container sees the
	// client. The answer must return through this host, so the container must be here.
	KeepClients bool
}

// Expose adds the address to the bridge and writes the rules of all exposures: e and
// all earlier ones. It reports whether it added the address. On error it has removed
// the address again.
func Expose(bridge string, e Exposure, all []Exposure) (added bool, err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("expose %s on %s: %s: %w", e.Addr, bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return false, wrap("connect", err)
	}
	defer h.Close()
	l, err := h.requireLink(bridge)
	if err != nil {
		return false, wrap("look up bridge", err)
	}
	fresh, err := addAddrs(h, l, []netip.Prefix{e.Addr})
	if err != nil {
		return false, wrap("configure", err)
	}
	if !slices.Contains(all, e) {
		all = append(slices.Clone(all), e)
	}
	if _, err := Reconcile(bridge, all); err != nil {
		for _, p := range fresh {
			_ = h.AddrDel(l, addrOf(p))
		}
		return false, wrap("write rules", err)
	}
	if len(fresh) > 0 {
		if err := announce(currentNS, l.Attrs().Index, l.Attrs().HardwareAddr, fresh); err != nil {
			return true, wrap("announce", err)
		}
	}
	return len(fresh) > 0, nil
}

// Hide removes an address from the bridge and writes the rules of rest, the remaining
// exposures. It reports whether the bridge had the address.
func Hide(bridge string, addr netip.Prefix, rest []Exposure) (removed bool, err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("hide %s on %s: %s: %w", addr, bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return false, wrap("connect", err)
	}
	defer h.Close()
	l, ok, err := h.link(bridge)
	if err != nil {
		return false, wrap("look up bridge", err)
	}
	if ok {
		err := h.AddrDel(l, addrOf(addr))
		removed = err == nil
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return false, wrap("remove address", err)
		}
	}
	rest = slices.DeleteFunc(slices.Clone(rest), func(e Exposure) bool { return e.Addr == addr })
	if _, err := Reconcile(bridge, rest); err != nil {
		return removed, wrap("write rules", err)
	}
	return removed, nil
}

// exposeChains are the chains of exposures.
var exposeChains = []chain{
	{natChain, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource},
	{forwardChain, nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter},
}

const (
	natChain     = "expose-nat"
	forwardChain = "expose-forward"
)

// Reconcile brings weft's nftables rules in line with the given exposures, in one
// transaction. It reports whether it had to change them, since another program may
// have flushed them.
//
//	table inet weft {
//	  chain expose-nat {     type nat hook postrouting priority srcnat
//	    ip saddr S ip daddr != S ip daddr != 224.0.0.0/4 oifname != weft masquerade
//	    ip saddr != S ip daddr S oifname weft masquerade
//	    or with KeepClients:    ... ct status & dnat == 0 masquerade
//	                            ... fib saddr type local masquerade
//	  }
//	  chain expose-forward { type filter hook forward priority filter
//	    iifname weft accept
//	    oifname weft accept
//	  }
//	}
//
// The accept rules hold for weft's own table only. If the forward chain of another table
// drops the packet, it is dropped; ForwardBlockers returns such chains.
func Reconcile(bridge string, all []Exposure) (rebuilt bool, err error) {
	return reconcile(exposeChains, exposeRules(bridge, all))
}

// ForwardBlockers returns the forward chains of other tables, as nft names them, whose
// policy is drop. A drop in any table is final, so on such a host the user must add a
// rule there to expose an address.
func ForwardBlockers() ([]string, error) {
	chains, err := forwardBlockers()
	return names(chains), err
}

func forwardBlockers() ([]*nftables.Chain, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	return slices.DeleteFunc(chains, func(ch *nftables.Chain) bool {
		return ch.Table.Name == TableName || ch.Type != nftables.ChainTypeFilter ||
			ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward ||
			ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop
	}), nil
}

// names returns chains as nft names them.
func names(chains []*nftables.Chain) (words []string) {
	for _, ch := range chains {
		words = append(words, fmt.Sprintf("chain %s of table %s %s", ch.Name, familyName(ch.Table.Family), ch.Table.Name))
	}
	return words
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprint(f)
}
