package netdev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Watch observes one network namespace and reports changes of its interfaces,
// queueing disciplines, addresses, routes and rules. Make it with NewWatch. Its
// methods are safe for concurrent use.
type Watch struct {
	ns netns.NsHandle
	h  handle
}

// NewWatch watches the network namespace of the calling thread. Its methods may be
// called from any thread.
func NewWatch() (*Watch, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: open the thread's network namespace: %w", err)
	}
	h, err := here()
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	return &Watch{ns, h}, nil
}

// Close closes what NewWatch opened. Run must have returned.
func (w *Watch) Close() {
	w.h.Close()
	w.ns.Close()
}

// Hop is how packets to an address leave the host.
type Hop struct {
	Ifindex int
	Local   netip.Addr // source address of the packets
	Gateway netip.Addr // next hop: the address itself, or a router
}

// Hop looks up the route to an address, for packets from the address from, which is one of this
// host; if it is invalid, the route says from which.
func (w *Watch) Hop(to, from netip.Addr) (Hop, error) {
	o := netlink.RouteGetOptions{}
	if from.IsValid() {
		o.SrcAddr = from.AsSlice()
	}
	routes, err := w.h.RouteGetWithOptions(to.AsSlice(), &o)
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Hop{}, fmt.Errorf("look up the route to %s: %w", to, err)
	}
	r := routes[0]
	hop := Hop{Ifindex: r.LinkIndex, Gateway: to}
	if local, ok := netip.AddrFromSlice(r.Src); ok {
		hop.Local = local.Unmap()
	}
	if from.IsValid() {
		hop.Local = from
	}
	if gw, ok := netip.AddrFromSlice(r.Gw); ok && !gw.IsUnspecified() {
		hop.Gateway = gw.Unmap()
	}
	return hop, nil
}

// Port is a port of a bridge.
type Port struct {
	Name    string
	Ifindex int
	// RateLimited reports that a queueing discipline limits the traffic of the port,
	// or will.
	RateLimited bool
}

// Containers returns the ports of a bridge that are the host's ends of veth pairs,
// ordered by index, without those named in but.
func (w *Watch) Containers(bridge string, but ...string) ([]Port, error) {
	links, err := w.h.links()
	if err != nil {
		return nil, fmt.Errorf("list the ports of bridge %s: %w", bridge, err)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == bridge })
	if i < 0 {
		return nil, nil
	}
	shaped, err := w.rateLimited()
	if err != nil {
		return nil, fmt.Errorf("list the queueing disciplines of the ports of bridge %s: %w", bridge, err)
	}
	var ports []Port
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex == links[i].Attrs().Index && l.Type() == "veth" && !slices.Contains(but, a.Name) {
			ports = append(ports, Port{a.Name, a.Index, shaped[a.Index] || a.Group == rateLimitedGroup})
		}
	}
	slices.SortFunc(ports, func(a, b Port) int { return a.Ifindex - b.Ifindex })
	return ports, nil
}

// Filter is a rule set of the host that sees the frames which a bridge forwards from
// port to port. The zero value is none. It is comparable.
type Filter struct {
	Family FilterFamily
	Table  string
	Chain  string // if IP packets are filtered
	Cause  Cause  // likewise: why rules see them
}

// FilterFamily is the family of a Filter.
type FilterFamily uint8

// Families of rules.
const (
	NoFilter     FilterFamily = iota
	FilterBridge              // nftables' family bridge
	FilterIP                  // IP packets
	FilterLegacy              // the same, of iptables-legacy
)

// String describes the filter for status; "" for the zero value.
func (f Filter) String() string {
	switch f.Family {
	case FilterBridge:
		return "rules filter bridged frames: table bridge " + f.Table
	case FilterIP:
		return fmt.Sprintf("rules filter bridged packets: chain %s of table %s, and %s", f.Chain, f.Table, f.Cause)
	case FilterLegacy:
		return fmt.Sprintf("iptables or arptables filters bridged packets: %s", f.Cause)
	}
	return ""
}

// Filtered returns the rules that see the frames that a bridge forwards: those of family
// bridge, and those of IP if ShownBy says so. The zero value means that there are none.
func (w *Watch) Filtered(bridge string) (Filter, error) {
	var shown Shown
	var legacy, legacyARP bool
	var chains []*nftables.Chain
	err := DoIn(w.ns, func() (err error) {
		if shown, err = ShownBy(bridge); err != nil {
			return err
		}
		for _, names := range []string{"ip_tables_names", "ip6_tables_names"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + names)
			legacy = legacy || err == nil && len(b) > 0
		}
		// nftables has no chain of family arp that sees forwarded packets.
		b, err := os.ReadFile("/proc/thread-self/net/arp_tables_names")
		legacyARP = err == nil && len(b) > 0
		c, err := nftables.New()
		if err == nil {
			chains, err = c.ListChains()
		}
		return err
	})
	cause := cmp.Or(shown.IPv4, shown.IPv6)
	switch {
	case cause != "" && legacy:
		return Filter{Family: FilterLegacy, Cause: cause}, nil
	case shown.ARP != "" && legacyARP:
		return Filter{Family: FilterLegacy, Cause: shown.ARP}, nil
	case err != nil:
		return Filter{}, fmt.Errorf("read the rules of netfilter: %w", err)
	}
	for _, ch := range chains {
		if f := filterOf(ch, cause); f != (Filter{}) {
			return f, nil
		}
	}
	return Filter{}, nil
}

// filterOf returns a chain as a Filter, the zero value if it does not see bridged
// frames. cause is why chains of IP see bridged packets, "" if they do not.
func filterOf(ch *nftables.Chain, cause Cause) Filter {
	if ch.Hooknum == nil {
		return Filter{}
	}
	switch ch.Table.Family {
	case nftables.TableFamilyBridge:
		return Filter{FilterBridge, ch.Table.Name, ch.Name, ""}
	case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
		// Bridged packets cross these three. The chains of weft itself ignore them,
		// except those of policies.
		ours := ch.Table.Name == TableName && !strings.HasPrefix(ch.Name, PolicyPrefix)
		hooks := []nftables.ChainHook{*nftables.ChainHookPrerouting, *nftables.ChainHookForward, *nftables.ChainHookPostrouting}
		if cause != "" && !ours && slices.Contains(hooks, *ch.Hooknum) {
			return Filter{FilterIP, ch.Table.Name, ch.Name, cause}
		}
	}
	return Filter{}
}

// Run calls changed after interfaces, queueing disciplines, addresses or routes
// changed, once for all changes within settle, until ctx ends. It also calls it
// after so many changes at once that the kernel could not report all of them.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	for {
		if err := w.listen(ctx, changed); !errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		changed() // the lost messages may be anything
	}
}

// listen is Run until a socket overflows, which ends its messages.
func (w *Watch) listen(ctx context.Context, changed func()) error {
	wrap := func(what string, err error) error { return fmt.Errorf("watch %s: %w", what, err) }
	done := make(chan struct{})
	defer close(done)
	wake := make(chan struct{}, 1)
	fire := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	lost := func(error) { fire() }
	links := make(chan netlink.LinkUpdate, 64)
	if err := DoIn(w.ns, func() error {
		return netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: lost})
	}); err != nil {
		return wrap("interfaces", err)
	}
	defer drain(links)
	routes := make(chan netlink.RouteUpdate, 64)
	if err := DoIn(w.ns, func() error {
		return netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: lost})
	}); err != nil {
		return wrap("routes", err)
	}
	defer drain(routes)
	addrs := make(chan netlink.AddrUpdate, 64)
	if err := DoIn(w.ns, func() error {
		return netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: lost})
	}); err != nil {
		return wrap("addresses", err)
	}
	defer drain(addrs)
	var qdiscs <-chan struct{}
	if err := DoIn(w.ns, func() (err error) { qdiscs, err = qdiscChanges(done); return err }); err != nil {
		return wrap("queueing disciplines", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-links:
			if !ok {
				return wrap("interfaces", errEnded)
			}
		case _, ok := <-routes:
			if !ok {
				return wrap("routes", errEnded)
			}
		case _, ok := <-addrs:
			if !ok {
				return wrap("addresses", errEnded)
			}
		case _, ok := <-qdiscs:
			if !ok {
				return wrap("queueing disciplines", errEnded)
			}
		case <-wake:
			if err := rest(links, routes, addrs); err != nil {
				return err
			}
			changed()
			continue
		}
		fire()
	}
}

// rest receives the messages that come within settle: a container that starts causes
// a dozen.
func rest(links <-chan netlink.LinkUpdate, routes <-chan netlink.RouteUpdate, addrs <-chan netlink.AddrUpdate) error {
	settled := time.After(settle)
	for {
		ok := true
		select {
		case _, ok = <-links:
		case _, ok = <-routes:
		case _, ok = <-addrs:
		case <-settled:
			return nil
		}
		if !ok {
			return errEnded
		}
	}
}

// drain receives messages until their socket is closed, so that nobody blocks on
// sending them.
func drain[T any](messages <-chan T) {
	go func() {
		for range messages {
		}
	}()
}

// settle is how long Run waits for more changes before it calls changed.
const settle = 5 * time.Millisecond

var errEnded = errors.New("the kernel's messages ended")
