package netdev

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// PortAddrs returns the port of a bridge that leads to each address of a container: the
// ifindex of the host's end of the veth pair, by the addresses of the other end. The
// bridge is in the calling thread's namespace. The function identifies the other
// namespace by its netns id (IFA_TARGET_NETNSID), so it needs no path to the namespace
// and does not depend on who made the pair. Link-local addresses are omitted.
func PortAddrs(bridge string) (map[netip.Addr]uint32, error) {
	wrap := func(err error) error {
		return fmt.Errorf("find addresses behind the ports of bridge %s: %w", bridge, err)
	}
	all, err := listPorts(bridge, true)
	if err != nil {
		return nil, wrap(err)
	}
	ports := make(map[netip.Addr]uint32)
	for _, p := range all {
		if p.err != nil {
			return nil, wrap(p.err)
		}
		for _, a := range p.Behind {
			if p.on {
				ports[a.Addr()] = uint32(p.index)
			}
		}
	}
	return ports, nil
}

// UsedPort is the host's end of a veth pair of a container. Its PortUser is by the records that
// weft keeps in the kernel.
type UsedPort struct {
	Name string
	PortUser
	// Behind are the addresses of the other end, whoever gave them, except link-local ones.
	// The kernel knows none if the other end is still in this namespace.
	Behind []netip.Prefix

	index        int
	nsid, inside int   // netns id of the other end, and its index there
	on           bool  // the bridge
	err          error // of reading Behind
}

// UsedPorts returns the ports of a bridge that lead to other namespaces, and those that weft made
// for it, even if other software has taken them from the bridge, or has removed the bridge.
func UsedPorts(bridge string) ([]UsedPort, error) {
	ports, err := listPorts(bridge, true)
	if err != nil {
		return nil, fmt.Errorf("list the ports of bridge %s: %w", bridge, err)
	}
	return ports, nil
}

// PortOwners returns the owners of the ports that UsedPorts returns, with the names of the
// ports.
func PortOwners(bridge string) (map[string]string, error) {
	ports, err := listPorts(bridge, false)
	if err != nil {
		return nil, fmt.Errorf("list the owners of the ports of bridge %s: %w", bridge, err)
	}
	owners := make(map[string]string)
	for _, p := range ports {
		if p.Owner != "" {
			owners[p.Owner] = p.Name
		}
	}
	return owners, nil
}

// PortMACs returns the MAC addresses of containers by the names of the ports that UsedPorts
// returns, and that of the bridge itself by its name.
func PortMACs(bridge string) (map[string]net.HardwareAddr, error) {
	wrap := func(err error) error {
		return fmt.Errorf("read the MAC addresses behind the ports of bridge %s: %w", bridge, err)
	}
	h, err := here()
	if err != nil {
		return nil, wrap(err)
	}
	defer h.Close()
	ports, err := listPorts(bridge, false)
	if err != nil {
		return nil, wrap(err)
	}
	socket, err := strictSocket()
	if err != nil {
		return nil, wrap(err)
	}
	defer socket.Close()
	macs := make(map[string]net.HardwareAddr)
	if br, ok, err := h.link(bridge); err != nil {
		return nil, wrap(err)
	} else if ok {
		macs[bridge] = br.Attrs().HardwareAddr
	}
	for _, p := range ports {
		if p.nsid < 0 {
			continue
		}
		// A container can end meanwhile.
		if mac, err := macBehind(socket, p.nsid, p.inside); err == nil && len(mac) == 6 {
			macs[p.Name] = mac
		}
	}
	return macs, nil
}

// macBehind returns the MAC address of an interface in the namespace with that netns id.
func macBehind(s *nl.NetlinkSocket, nsid, ifindex int) (net.HardwareAddr, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	for _, m := range answers {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_ADDRESS {
				return net.HardwareAddr(a.Value), nil
			}
		}
	}
	return nil, unix.ENODEV
}

// listPorts lists the ports, and what is behind them if that is asked for: it takes two
// requests for each port.
func listPorts(bridge string, behind bool) (ports []UsedPort, err error) {
	h, err := here()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	br, hasBridge, err := h.link(bridge)
	if err != nil {
		return nil, err
	}
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	socket, err := strictSocket()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	for _, l := range links {
		a := l.Attrs()
		alias, ours := readPortAlias(a.Alias, a.AltNames)
		p := UsedPort{Name: a.Name, PortUser: alias.user, index: a.Index, nsid: a.NetNsID, inside: a.ParentIndex, on: hasBridge && a.MasterIndex == br.Attrs().Index}
		elsewhere := a.NetNsID >= 0 // a pair with both ends in this namespace is the router's
		if l.Type() != "veth" || !ours && !(p.on && elsewhere) {
			continue
		}
		if elsewhere && behind {
			p.Behind, p.err = Dump(func() ([]netip.Prefix, error) { return addrsBehind(socket, a.NetNsID, a.ParentIndex) })
			if p.err != nil {
				p.err = fmt.Errorf("port %s: %w", a.Name, p.err)
			}
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// strictSocket makes a netlink socket on which the kernel honours the filters of a dump.
func strictSocket() (*nl.NetlinkSocket, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		s.Close()
		return nil, fmt.Errorf("enable strict checks on the netlink socket: %w", err)
	}
	return s, nil
}

// addrsBehind returns the addresses of an interface in the namespace with that netns id.
func addrsBehind(s *nl.NetlinkSocket, nsid, ifindex int) ([]netip.Prefix, error) {
	var addrs []netip.Prefix
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		msg := nl.NewIfAddrmsg(family)
		msg.Index = uint32(ifindex)
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
		answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		if err != nil {
			return nil, err
		}
		for _, m := range answers {
			if a, ok := addrOfMessage(m, ifindex); ok {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs, nil
}

// addrOfMessage parses an RTM_NEWADDR message. It returns false for another interface and
// for a link-local address.
func addrOfMessage(m []byte, ifindex int) (netip.Prefix, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return netip.Prefix{}, false
	}
	msg := nl.DeserializeIfAddrmsg(m)
	if msg.Index != uint32(ifindex) || msg.Scope != unix.RT_SCOPE_UNIVERSE {
		return netip.Prefix{}, false
	}
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return netip.Prefix{}, false
	}
	var addr netip.Addr
	for _, a := range attrs {
		// IFA_LOCAL is the interface's own where IFA_ADDRESS is the other end's.
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !addr.IsValid() {
			addr, _ = netip.AddrFromSlice(a.Value)
		}
	}
	p := netip.PrefixFrom(addr.Unmap(), int(msg.Prefixlen))
	return p, p.IsValid()
}
