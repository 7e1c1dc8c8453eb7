package netdev

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge is the desired state of a bridge. It has no multicast snooping: the router snoops for
// the whole host, and must see all reports. It has neither spanning
// tree nor VLAN filtering, and accepts no IPv6 address or route from router advertisements
// of containers.
type Bridge struct {
	Name    string
	MAC     net.HardwareAddr
	MTU     int // bytes of IP packet
	Sysctls Sysctls
	// Filtered makes IP rules see the frames that the bridge forwards, by the bridge's own
	// flags. They have no effect while the kernel module br_netfilter is not loaded.
	// Without it the flags stay as they are.
	Filtered bool
}

// EnsureBridge makes a bridge, or brings an existing one to the desired state.
func EnsureBridge(name string, mac net.HardwareAddr, mtu int, sysctls Sysctls) error {
	return Bridge{Name: name, MAC: mac, MTU: mtu, Sysctls: sysctls}.Ensure()
}

// Faults returns how the bridge differs from the desired state, in words.
func (b Bridge) Faults(v *View) (faults []string) {
	l := v.Links[b.Name]
	switch {
	case l == nil:
		return []string{"it does not exist"}
	case l.Kind != "bridge":
		return []string{b.otherType(l.Kind)}
	}
	fault := func(is bool, format string, args ...any) {
		if is {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	fault(!l.Up, "it is down")
	fault(l.MAC.String() != b.MAC.String(), "its MAC address is %s, not %s", l.MAC, b.MAC)
	fault(l.MTU != b.MTU, "its MTU is %d, not %d", l.MTU, b.MTU)
	fault(l.Bridge.Snooping, "it snoops multicast")
	fault(l.Bridge.SpanningTree, "it has a spanning tree")
	fault(l.Bridge.VLANs, "it filters VLANs")
	fault(b.Filtered && !l.Bridge.Netfilter4, "its flag nf_call_iptables is off")
	fault(b.Filtered && !l.Bridge.Netfilter6, "its flag nf_call_ip6tables is off")
	return faults
}

func (b Bridge) otherType(kind string) string {
	return fmt.Sprintf("an interface of that name exists and is of type %s; remove it with: ip link del %s", kind, b.Name)
}

// flags returns those flags that are not as desired, with their values, by the attribute
// of linux/if_link.h.
func (b Bridge) flags(have BridgeFlags) map[int][]byte {
	flags := make(map[int][]byte)
	if b.Filtered {
		flags = netfilterFlags(have)
	}
	if have.Snooping {
		flags[nl.IFLA_BR_MCAST_SNOOPING] = []byte{0}
	}
	if have.SpanningTree {
		flags[nl.IFLA_BR_STP_STATE] = make([]byte, 4)
	}
	if have.VLANs {
		flags[nl.IFLA_BR_VLAN_FILTERING] = []byte{0}
	}
	return flags
}

// netfilterFlags returns the flags of netfilter that are off, with their desired value.
func netfilterFlags(have BridgeFlags) map[int][]byte {
	flags := make(map[int][]byte)
	if !have.Netfilter4 {
		flags[nl.IFLA_BR_NF_CALL_IPTABLES] = []byte{1}
	}
	if !have.Netfilter6 {
		flags[nl.IFLA_BR_NF_CALL_IP6TABLES] = []byte{1}
	}
	return flags
}

// setFlags sets those flags of a bridge that differ. A kernel may lack others.
func setFlags(l netlink.Link, differ func(have BridgeFlags) map[int][]byte) error {
	links, err := Dump(dumpLinks)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(links, func(have *Link) bool { return have.Index == l.Attrs().Index })
	if i < 0 {
		return unix.ENODEV
	}
	flags := differ(links[i].Bridge)
	if len(flags) == 0 {
		return nil
	}
	return setBridgeFlags(l, flags)
}

// Ensure makes the bridge, or brings an existing one to the desired state, and sets it up.
// Ports stay. It fails if an interface of another type has the name.
func (b Bridge) Ensure() (err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("set up bridge %s: %s: %w", b.Name, what, cause)
	}
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	l, ok, err := h.link(b.Name)
	if err != nil {
		return wrap("look up", err)
	}
	if ok && l.Type() != "bridge" {
		return fmt.Errorf("set up bridge %s: %s", b.Name, b.otherType(l.Type()))
	}
	if !ok {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, b.MAC
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return wrap("create", err)
		}
		if l, ok, err = h.link(b.Name); err != nil || !ok {
			return wrap("look up the new bridge", errors.Join(err, unix.ENODEV))
		}
		defer func() {
			if err != nil {
				_ = h.delete(l)
			}
		}()
	}
	if err := setFlags(l, b.flags); err != nil {
		return wrap("set its flags", err)
	}
	if l.Attrs().HardwareAddr.String() != b.MAC.String() {
		if err := h.LinkSetHardwareAddr(l, b.MAC); err != nil {
			return wrap("set MAC address "+b.MAC.String(), err)
		}
	}
	// Setting the MTU, even to its current value, stops the kernel from lowering it to
	// that of the smallest port.
	if err := h.LinkSetMTU(l, b.MTU); err != nil {
		return wrap(fmt.Sprintf("set mtu %d", b.MTU), err)
	}
	for _, s := range b.SysctlsOf() {
		if err := s.Ensure(); err != nil {
			return wrap("set "+s.Name(), err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return wrap("set up", err)
	}
	return nil
}

// SysctlsOf returns the sysctls of the bridge.
func (b Bridge) SysctlsOf() []Sysctl {
	var all []Sysctl
	for _, key := range []string{"accept_ra", "autoconf"} {
		all = append(all, Sysctl{b.Sysctls, []string{"net", "ipv6", "conf", b.Name, key}, "0"})
	}
	return all
}

// sharedAlias is the alias of a bridge whose router shares its addresses with other hosts.
const sharedAlias = "weft shared"

// MarkShared writes down in the kernel that the router of a bridge shares its addresses with
// other hosts, for a router that starts later and has no file that says so.
func MarkShared(bridge string) error {
	h, err := here()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.requireLink(bridge)
	if err == nil && l.Attrs().Alias != sharedAlias {
		err = h.LinkSetAlias(l, sharedAlias)
	}
	if err != nil {
		return fmt.Errorf("set alias of bridge %s: %w", bridge, err)
	}
	return nil
}

// IsShared reports whether MarkShared was called for a bridge, as far as the kernel knows.
func IsShared(bridge string) bool {
	h, err := here()
	if err != nil {
		return false
	}
	defer h.Close()
	l, ok, err := h.link(bridge)
	return err == nil && ok && l.Attrs().Alias == sharedAlias
}

// DeleteBridge removes the bridge; its ports become plain interfaces. A missing bridge
// is no error.
func DeleteBridge(name string) error { return deleteLink(name) }

func deleteLink(name string) error {
	h, err := here()
	if err != nil {
		return err
	}
	defer h.Close()
	l, ok, err := h.link(name)
	if err != nil || !ok {
		return err
	}
	return h.delete(l)
}

// Interface is the desired state of an interface that is up and has no IPv6 address of its
// own.
type Interface struct {
	Name    string
	MTU     int // bytes of IP packet
	Sysctls Sysctls
}

// Faults returns how the interface differs from the desired state, in words.
func (i Interface) Faults(v *View) (faults []string) {
	l := v.Links[i.Name]
	if l == nil {
		return []string{"it does not exist"}
	}
	if !l.Up {
		faults = append(faults, "it is down")
	}
	if l.MTU != i.MTU {
		faults = append(faults, fmt.Sprintf("its MTU is %d, not %d", l.MTU, i.MTU))
	}
	return faults
}

// Ensure sets an existing interface up, with the MTU and without an IPv6 address.
func (i Interface) Ensure() error {
	wrap := func(what string, cause error) error { return fmt.Errorf("set up %s: %s: %w", i.Name, what, cause) }
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	l, err := h.requireLink(i.Name)
	if err != nil {
		return wrap("look up", err)
	}
	if err := ipv6Off(i.Sysctls, i.Name).Ensure(); err != nil {
		return wrap("disable ipv6", err)
	}
	if l.Attrs().MTU != i.MTU {
		if err := h.LinkSetMTU(l, i.MTU); err != nil {
			return wrap(fmt.Sprintf("set mtu %d", i.MTU), err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return wrap("set up", err)
	}
	return nil
}

// BridgePort is the desired state of an interface that is a port of a bridge. It has no
// IPv6 address of its own.
type BridgePort struct {
	Name, Bridge string
	MTU          int // bytes of IP packet
	Hairpin      bool
	Sysctls      Sysctls
}

// Faults returns how the port differs from the desired state, in words. The bridge must
// be in v.
func (p BridgePort) Faults(v *View) (faults []string) {
	l, bridge := v.Links[p.Name], v.Links[p.Bridge]
	faults = p.iface().Faults(v)
	if l == nil {
		return faults
	}
	if bridge == nil || l.Master != bridge.Index {
		faults = append(faults, "it is not a port of bridge "+p.Bridge)
	}
	switch {
	case p.Hairpin && !l.Port.Hairpin:
		faults = append(faults, "its flag hairpin is off")
	case !p.Hairpin && l.Port.Hairpin:
		faults = append(faults, "its flag hairpin is on")
	}
	return faults
}

// Ensure makes the interface a port of the bridge, with the given MTU, and sets it up.
func (p BridgePort) Ensure() error {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("make %s a port of bridge %s: %s: %w", p.Name, p.Bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	b, err := h.requireLink(p.Bridge)
	if err != nil {
		return wrap("look up bridge", err)
	}
	l, err := h.requireLink(p.Name)
	if err != nil {
		return wrap("look up port", err)
	}
	if err := h.LinkSetMasterByIndex(l, b.Attrs().Index); err != nil {
		return wrap("set master", err)
	}
	if err := h.LinkSetHairpin(l, p.Hairpin); err != nil {
		return wrap("set flag hairpin", err)
	}
	return p.iface().Ensure()
}

func (p BridgePort) iface() Interface { return Interface{p.Name, p.MTU, p.Sysctls} }

// IPv6Off is the sysctl that disables the host's IPv6 stack on the port. Otherwise each
// port would send duplicate address detection and router solicitations into the overlay.
func (p BridgePort) IPv6Off() Sysctl { return ipv6Off(p.Sysctls, p.Name) }

func ipv6Off(sysctls Sysctls, name string) Sysctl {
	return Sysctl{sysctls, []string{"net", "ipv6", "conf", name, "disable_ipv6"}, "1"}
}

// ContainerPorts returns the ports of a bridge that lead to containers, as they must be,
// whoever made them: those with an alias of weft.
func ContainerPorts(v *View, bridge string, sysctls Sysctls) (ports []BridgePort) {
	for name, l := range v.Links {
		if a, ours := parsePortAlias(l.Alias); ours && l.Kind == "veth" {
			ports = append(ports, BridgePort{Name: name, Bridge: bridge, MTU: a.mtu, Hairpin: a.hairpin, Sysctls: sysctls})
		}
	}
	slices.SortFunc(ports, func(a, b BridgePort) int { return strings.Compare(a.Name, b.Name) })
	return ports
}
