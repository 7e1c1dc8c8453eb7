package netdev

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
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

// BridgeAddress is an address that a bridge must have.
type BridgeAddress struct {
	Bridge string
	Addr   netip.Prefix
}

// Faults returns in words that the bridge lacks the address. The bridge must be in v.
func (a BridgeAddress) Faults(v *View) []string {
	if l := v.Links[a.Bridge]; l == nil || !slices.Contains(v.Addrs(l), a.Addr) {
		return []string{"bridge " + a.Bridge + " does not have it"}
	}
	return nil
}

// RouteFaults returns in words that the host has no route to the other addresses of the
// subnet over the bridge. The kernel makes the route with the address, and other software
// may remove it alone.
func (a BridgeAddress) RouteFaults() ([]string, error) {
	h, err := here()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, ok, err := h.link(a.Bridge)
	if err != nil || !ok {
		return nil, err
	}
	has, err := a.hasRoute(h, l)
	if err != nil || has {
		return nil, err
	}
	return []string{fmt.Sprintf("the route to %s over bridge %s is missing", a.Addr.Masked(), a.Bridge)}, nil
}

// hasRoute reports whether there is a route to the subnet by the bridge l, or none is needed.
func (a BridgeAddress) hasRoute(h handle, l netlink.Link) (bool, error) {
	if a.Addr.IsSingleIP() {
		return true, nil
	}
	r := a.route(l)
	all, err := Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(familyOf(a.Addr), r, netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return false, fmt.Errorf("list routes to %s: %w", a.Addr.Masked(), err)
	}
	return len(all) > 0, nil
}

// route is the route that the kernel makes with the address.
func (a BridgeAddress) route(l netlink.Link) *netlink.Route {
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(a.Addr.Masked()), Protocol: unix.RTPROT_KERNEL}
	if a.Addr.Addr().Is4() {
		r.Scope, r.Src = netlink.SCOPE_LINK, a.Addr.Addr().AsSlice()
	} else {
		r.Priority = 256 // IP6_RT_PRIO_ADDRCONF of the kernel
	}
	return r
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// Ensure adds the address to the bridge, unless it is there, and announces it then. It adds
// the route that other software has removed.
func (a BridgeAddress) Ensure() error {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("expose %s on %s: %s: %w", a.Addr, a.Bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	l, err := h.requireLink(a.Bridge)
	if err != nil {
		return wrap("look up bridge", err)
	}
	added, err := addAddrs(h, l, []netip.Prefix{a.Addr})
	if err != nil {
		return wrap("configure", err)
	}
	if has, err := a.hasRoute(h, l); err != nil || !has {
		if err == nil {
			err = h.RouteReplace(a.route(l))
		}
		if err != nil {
			return wrap("add the route", err)
		}
	}
	if err := announce(currentNS, l.Attrs().Index, l.Attrs().HardwareAddr, added); err != nil {
		return wrap("announce", err)
	}
	return nil
}

// Remove takes the address from the bridge, and reports whether the bridge had it.
func (a BridgeAddress) Remove() (removed bool, err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("hide %s on %s: %s: %w", a.Addr, a.Bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return false, wrap("connect", err)
	}
	defer h.Close()
	l, ok, err := h.link(a.Bridge)
	if err != nil {
		return false, wrap("look up bridge", err)
	}
	if !ok {
		return false, nil
	}
	err = h.AddrDel(l, addrOf(a.Addr))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return false, wrap("remove address", err)
	}
	return err == nil, nil
}

// exposeChains are the chains of exposures.
var exposeChains = []chain{
	{natChain, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource},
	{forwardChain, nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter},
	{inputChain, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter},
}

const (
	natChain     = "expose-nat"
	forwardChain = "expose-forward"
	inputChain   = "expose-input"
)

// ExposeRules are weft's nftables rules for all exposures of a bridge. Without exposures
// there are none.
//
//	table inet weft {
//	  chain expose-nat {     type nat hook postrouting priority srcnat
//	    ip saddr S ip daddr != S ip daddr != 224.0.0.0/4 oifname != weft masquerade fully-random
//	    ip saddr != S ip daddr S oifname weft masquerade fully-random
//	    or with KeepClients:    ... ct status & dnat == 0 masquerade fully-random
//	                            ... fib saddr type local masquerade fully-random
//	  }
//	  chain expose-forward { type filter hook forward priority filter
//	    ct state invalid ip saddr S ip daddr != S oifname != weft drop
//	    ct state invalid ip saddr != S ip daddr S oifname weft drop
//	    iifname weft accept
//	    oifname weft accept
//	  }
//	  chain expose-input {   type filter hook input priority filter
//	    ct state invalid meta l4proto tcp socket transparent 0-1 accept
//	    ct state invalid meta l4proto tcp iifname != weft drop
//	  }
//	}
//
// Packets that conntrack calls invalid, such as late segments, are not translated. Those of
// masqueraded subnets would leave with a container's address, and those for a masqueraded
// connection would arrive at the host itself, whose RST ends the connection. So both are
// dropped, the latter only if the host has no socket for them. Without fully-random two
// connections that begin at once can get the same port, and one loses its first packet.
//
// The accept rules hold for weft's own table only. If the forward chain of another table
// drops the packet, it is dropped; package firewall finds such chains.
type ExposeRules struct {
	Bridge string
	All    []Exposure
}

func (r ExposeRules) rules() ruleSet {
	if len(r.All) == 0 {
		return ruleSet{append(slices.Clone(exposeChains), dockerChains...), nil}
	}
	return ruleSet{exposeChains, exposeRules(r.Bridge, r.All)}
}

// Faults returns how the kernel's rules differ from the desired ones, in words.
func (r ExposeRules) Faults() ([]string, error) { return r.rules().Faults() }

// Ensure writes the rules in one transaction.
func (r ExposeRules) Ensure() error { return r.rules().Ensure() }
