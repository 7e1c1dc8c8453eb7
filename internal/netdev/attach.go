package netdev

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrHostNS is the cause of an error if a container shares the network namespace of
// the caller, so that there is nothing to attach.
var ErrHostNS = errors.New("it is the network namespace of the host")

// multicastRoute sends multicast to the overlay, independent of the default route.
var multicastRoute = netip.MustParsePrefix("224.0.0.0/4")

// Attachment describes how a namespace is connected to the bridge.
type Attachment struct {
	NS     string         // path of the container's network namespace
	Iface  string         // name of the interface there, usually IfaceName
	Bridge string         // the bridge, in the caller's namespace
	MTU    int            // of both ends, in bytes of IP packet
	Addrs  []netip.Prefix // required addresses; the interface may have others
	// MulticastRoute adds a route for 224.0.0.0/4 over the interface.
	MulticastRoute bool
	// MAC of the interface; nil for a random one, or the present one if the interface exists.
	MAC net.HardwareAddr
	// Hairpin lets the bridge send frames back out of the port that they came in by,
	// so that a container can reach itself through a translated address.
	Hairpin bool
	// RateLimited says that another program is going to limit the rate of the
	// interface, so its frames must not bypass the bridge.
	RateLimited bool
	Sysctls     Sysctls // of the caller's host
	// Owner, in the allocators, and Name, for people, are written down in the kernel with
	// Addrs and AllowSpoof, see UsedPorts.
	Owner, Name string
	// AllowSpoof is that of PortUser.
	AllowSpoof bool
	// Guard makes the port drop frames with other addresses than those of GivenPort, or, if
	// it allows these, drop none. It is called before the first frame of the container can
	// pass, and before the container gets another address. Nil for none.
	Guard func(GivenPort) error
}

// Attach connects the namespace to the bridge with a veth pair unless it is already
// connected, adds missing addresses, and announces every address of a.Addrs with a
// gratuitous ARP or an unsolicited neighbour advertisement. It returns the addresses
// that it added. On error it has undone its changes.
//
// Transmit checksum offload stays at the kernel's default: the kernel completes
// checksums before a frame leaves through a TAP.
func Attach(a Attachment) (added []netip.Prefix, err error) {
	if err := checkNotHost(a.NS); err != nil {
		return nil, a.failed("check namespace", err)
	}
	host, err := here()
	if err != nil {
		return nil, a.failed("connect", err)
	}
	defer host.Close()
	in, err := at(a.NS)
	if err != nil {
		return nil, a.failed("connect", err)
	}
	defer in.Close()
	port, l, made, err := a.findOrMakePair(host, in)
	if err != nil {
		return nil, err
	}
	before, known := readPortAlias(port.Attrs().Alias, port.Attrs().AltNames)
	defer func() {
		switch {
		case err != nil && made:
			_ = host.delete(port)
		case err != nil && known:
			_ = host.writePortAlias(port, before)
			if a.Guard != nil {
				_ = a.Guard(givenPort(port.Attrs(), before))
			}
		}
	}()
	if err := a.configurePair(host, in, port, l); err != nil {
		return nil, err
	}
	return a.configureInterface(host, in, port, l)
}

func (a *Attachment) user() PortUser { return PortUser{a.Owner, a.Name, a.Addrs, a.AllowSpoof} }

func (a *Attachment) failed(what string, cause error) error {
	return fmt.Errorf("attach %s to bridge %s: %s: %w", a.NS, a.Bridge, what, cause)
}

// findOrMakePair returns the ends of the veth pair, port on the host and l inside, and
// whether it made the pair.
func (a *Attachment) findOrMakePair(host, in handle) (port, l netlink.Link, made bool, err error) {
	bridge, err := host.requireLink(a.Bridge)
	if err != nil {
		return nil, nil, false, a.failed("look up bridge", err)
	}
	l, ok, err := in.link(a.Iface)
	if err != nil {
		return nil, nil, false, a.failed("look up "+a.Iface, err)
	}
	if ok {
		if port, err = reattach(host, bridge, l); err != nil {
			return nil, nil, false, a.failed("use interface "+a.Iface, err)
		}
		return port, l, false, nil
	}
	if port, l, err = makePairIn(host, in, bridge, *a); err != nil {
		return nil, nil, false, a.failed("make the veth pair", err)
	}
	return port, l, true, nil
}

// configurePair configures both ends, except for addresses, and sets the port up.
func (a *Attachment) configurePair(host, in handle, port, l netlink.Link) error {
	if a.RateLimited && port.Attrs().Group != rateLimitedGroup {
		if err := host.LinkSetGroup(port, rateLimitedGroup); err != nil {
			return a.failed("mark "+port.Attrs().Name+" as limited", err)
		}
	}
	if err := host.LinkSetHairpin(port, a.Hairpin); err != nil {
		return a.failed("set hairpin mode of "+port.Attrs().Name, err)
	}
	before, _ := readPortAlias(port.Attrs().Alias, port.Attrs().AltNames)
	mac := before.mac
	if a.MAC != nil {
		mac = a.MAC
	} else if mac == nil {
		mac = l.Attrs().HardwareAddr
	}
	now := portAlias{port.Attrs().MTU, a.Hairpin, mac, before.user}.with(a.user())
	if err := host.writePortAlias(port, now); err != nil {
		return a.failed("write down whose the port is", err)
	}
	if a.Guard != nil {
		if err := a.Guard(givenPort(port.Attrs(), now)); err != nil {
			return a.failed("guard "+port.Attrs().Name, err)
		}
	}
	if a.MAC != nil && l.Attrs().HardwareAddr.String() != a.MAC.String() {
		if err := in.LinkSetHardwareAddr(l, a.MAC); err != nil {
			return a.failed("set MAC address "+a.MAC.String(), err)
		}
		l.Attrs().HardwareAddr = a.MAC
	}
	if err := host.LinkSetUp(port); err != nil {
		return a.failed("set up "+port.Attrs().Name, err)
	}
	return nil
}

// configureInterface adds addresses and routes to the interface inside and announces
// the addresses. On error it has removed the addresses that it added.
func (a *Attachment) configureInterface(host, in handle, port, l netlink.Link) (added []netip.Prefix, err error) {
	defer func() {
		if err != nil {
			for _, p := range added {
				_ = in.AddrDel(l, &netlink.Addr{IPNet: toIPNet(p)})
			}
			added = nil
		}
	}()
	if err := enableIPv6(a.NS, a.Iface, a.Addrs); err != nil {
		return nil, a.failed("configure "+a.Iface, err)
	}
	if added, err = addAddrs(in, l, a.Addrs); err != nil {
		return added, a.failed("configure "+a.Iface, err)
	}
	if err := in.LinkSetUp(l); err != nil {
		return added, a.failed("set up "+a.Iface, err)
	}
	if a.MulticastRoute {
		r := netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(multicastRoute), Scope: netlink.SCOPE_LINK}
		if err := in.RouteReplace(&r); err != nil {
			return added, a.failed("add route "+multicastRoute.String(), err)
		}
	}
	waitCarrier(host, port)
	if err := host.placeMAC(port, l.Attrs().HardwareAddr); err != nil {
		return added, a.failed("make the bridge send frames to "+port.Attrs().Name, err)
	}
	if err := announce(a.NS, l.Attrs().Index, l.Attrs().HardwareAddr, a.Addrs); err != nil {
		return added, a.failed("announce addresses", err)
	}
	return added, nil
}

func checkNotHost(path string) error {
	id, err := IdentifyNS(path)
	if err != nil {
		return err
	}
	own, err := IdentifyNS(currentNS)
	if err != nil {
		return err
	}
	if id == own {
		return ErrHostNS
	}
	return nil
}

// reattach returns the host's end of an interface that is in the container already,
// and puts it back on the bridge if the bridge was recreated.
func reattach(host handle, bridge, l netlink.Link) (netlink.Link, error) {
	port, err := hostEnd(host, l)
	if err != nil {
		return nil, err
	}
	switch port.Attrs().MasterIndex {
	case bridge.Attrs().Index:
		return port, nil
	case 0:
		if err := host.LinkSetMasterByIndex(port, bridge.Attrs().Index); err != nil {
			return nil, fmt.Errorf("put %s back on the bridge: %w", port.Attrs().Name, err)
		}
		return port, nil
	}
	return nil, fmt.Errorf("its other end %s is a port of another bridge", port.Attrs().Name)
}

var errNotOurs = errors.New("it is not weft's")

// hostEnd finds the end of the veth pair of l that is in the host's namespace. Two
// namespaces may use the same interface index, so both ends must refer to each other
// and the host's end must have a name that weft gives.
func hostEnd(host handle, l netlink.Link) (netlink.Link, error) {
	if l.Type() != "veth" {
		return nil, fmt.Errorf("%s is of type %s: %w", l.Attrs().Name, l.Type(), errNotOurs)
	}
	port, err := Dump(func() (netlink.Link, error) { return host.Handle.LinkByIndex(l.Attrs().ParentIndex) })
	if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && !isHostEnd(port, l) {
		return nil, fmt.Errorf("the other end of %s: %w", l.Attrs().Name, errNotOurs)
	}
	return port, err
}

func isHostEnd(port, l netlink.Link) bool {
	return port.Type() == "veth" && port.Attrs().ParentIndex == l.Attrs().Index &&
		len(port.Attrs().Name) > len(HostPrefix) && port.Attrs().Name[:len(HostPrefix)] == HostPrefix
}

// makePairIn makes the pair of an attachment and returns both ends.
func makePairIn(host, in handle, bridge netlink.Link, a Attachment) (port, l netlink.Link, err error) {
	ns, err := netns.GetFromPath(a.NS)
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	var suffix [4]byte
	_, _ = rand.Read(suffix[:]) // never fails, by its documentation
	port, err = host.makePair(pair{
		port: HostPrefix + hex.EncodeToString(suffix[:]), inside: a.Iface, ns: &ns, bridge: bridge, mtu: a.MTU, mac: a.MAC,
		hairpin: a.Hairpin, rateLimited: a.RateLimited, user: a.user(), sysctls: a.Sysctls,
	})
	if err != nil {
		return nil, nil, err
	}
	if l, err = in.requireLink(a.Iface); err != nil {
		_ = host.delete(port)
		return nil, nil, err
	}
	return port, l, nil
}

// addAddrs adds the missing addresses to l and returns them, also on error. IPv6
// addresses skip duplicate address detection: they are unique already, and the
// container may use them at once.
func addAddrs(h handle, l netlink.Link, want []netip.Prefix) (added []netip.Prefix, err error) {
	have, err := prefixesOf(h, l)
	if err != nil {
		return nil, err
	}
	for _, p := range want {
		if have[p] {
			continue
		}
		addr := &netlink.Addr{IPNet: toIPNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return added, fmt.Errorf("add address %s: %w", p, err)
		}
		have[p] = true
		added = append(added, p)
	}
	return added, nil
}

func prefixesOf(h handle, l netlink.Link) (map[netip.Prefix]bool, error) {
	addrs, err := h.addrs(l)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	have := make(map[netip.Prefix]bool)
	for _, a := range addrs {
		if p, ok := fromIPNet(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			have[p] = true
		}
	}
	return have, nil
}

// carrierWait bounds how long Attach waits until the bridge forwards on a new port. An
// earlier announcement would be lost.
const carrierWait = 500 * time.Millisecond

func waitCarrier(h handle, port netlink.Link) {
	for deadline := time.Now().Add(carrierWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		l, err := Dump(func() (netlink.Link, error) { return h.Handle.LinkByIndex(port.Attrs().Index) })
		if err != nil || l.Attrs().OperState == netlink.OperUp {
			return
		}
	}
}

// Detach removes addresses from the interface iface of the namespace at path, and the
// whole veth pair if only link-local addresses are left. It returns the addresses that
// it removed. Missing addresses, interfaces and namespaces are no error.
func Detach(path, iface string, addrs []netip.Prefix) (removed []netip.Prefix, err error) {
	err = withPair(path, iface, func(host, in handle, port, l netlink.Link) error {
		have, err := prefixesOf(in, l)
		if err != nil {
			return fmt.Errorf("read addresses of %s: %w", iface, err)
		}
		for _, p := range addrs {
			if !have[p] {
				continue
			}
			if err := in.AddrDel(l, &netlink.Addr{IPNet: toIPNet(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove address %s: %w", p, err)
			}
			delete(have, p)
			removed = append(removed, p)
		}
		if len(have) == 0 {
			return host.delete(port)
		}
		if before, ours := readPortAlias(port.Attrs().Alias, port.Attrs().AltNames); ours {
			return host.writePortAlias(port, before.without(addrs))
		}
		return nil
	})
	return removed, err
}

// Remove deletes the veth pair of interface iface in the namespace at path. A missing
// interface or namespace is no error. An interface that is not weft's stays.
func Remove(path, iface string) error {
	err := withPair(path, iface, func(host, _ handle, port, _ netlink.Link) error { return host.delete(port) })
	if errors.Is(err, errNotOurs) {
		return nil
	}
	return err
}

// isNS reports whether a namespace is mounted at path. The mount point may be left as a
// plain file if its removal was interrupted.
func isNS(path string) (bool, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(path, &fs)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return fs.Type == unix.NSFS_MAGIC, err
}

// withPair calls f with both ends of the veth pair of interface iface in the namespace
// at path. It does nothing if the interface or the namespace is missing.
func withPair(path, iface string, f func(host, in handle, port, l netlink.Link) error) error {
	if there, err := isNS(path); err == nil && !there {
		return nil
	}
	wrap := func(what string, cause error) error { return fmt.Errorf("detach %s: %s: %w", path, what, cause) }
	if err := checkNotHost(path); err != nil {
		return wrap("check namespace", err)
	}
	in, err := at(path)
	if err != nil {
		return wrap("connect", err)
	}
	defer in.Close()
	l, ok, err := in.link(iface)
	if err != nil || !ok {
		return err
	}
	host, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer host.Close()
	port, err := hostEnd(host, l)
	if err != nil {
		return wrap("use interface "+iface, err)
	}
	if err := f(host, in, port, l); err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}

// Iface is an interface of a container that is connected to the bridge.
type Iface struct {
	Name     string
	MAC      net.HardwareAddr
	MTU      int
	HostName string // the port of the bridge at the other end
	HostMAC  net.HardwareAddr
	Addrs    []netip.Prefix
}

// Attached lists the interfaces of the namespace at path that are connected to the
// bridge, no matter who connected them, with their addresses except link-local ones.
func Attached(path, bridge string) ([]Iface, error) {
	wrap := func(cause error) error { return fmt.Errorf("list attachments of %s: %w", path, cause) }
	host, err := here()
	if err != nil {
		return nil, wrap(err)
	}
	defer host.Close()
	br, ok, err := host.link(bridge)
	if err != nil || !ok {
		return nil, err
	}
	in, err := at(path)
	if err != nil {
		return nil, wrap(err)
	}
	defer in.Close()
	links, err := in.links()
	if err != nil {
		return nil, wrap(err)
	}
	var found []Iface
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		port, err := hostEnd(host, l)
		if err != nil || port.Attrs().MasterIndex != br.Attrs().Index {
			continue
		}
		i, err := describe(in, l)
		if err != nil {
			return nil, wrap(err)
		}
		i.HostName, i.HostMAC = port.Attrs().Name, port.Attrs().HardwareAddr
		found = append(found, i)
	}
	return found, nil
}

// Addresses returns the addresses of an interface of the calling thread's namespace
// except link-local ones, none if the interface is missing.
func Addresses(name string) ([]netip.Prefix, error) {
	h, err := here()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, ok, err := h.link(name)
	if err != nil || !ok {
		return nil, err
	}
	i, err := describe(h, l)
	return i.Addrs, err
}

func describe(h handle, l netlink.Link) (Iface, error) {
	i := Iface{Name: l.Attrs().Name, MAC: l.Attrs().HardwareAddr, MTU: l.Attrs().MTU}
	addrs, err := h.addrs(l)
	if err != nil {
		return i, fmt.Errorf("list addresses of %s: %w", i.Name, err)
	}
	for _, a := range addrs {
		if p, ok := fromIPNet(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			i.Addrs = append(i.Addrs, p)
		}
	}
	return i, nil
}
