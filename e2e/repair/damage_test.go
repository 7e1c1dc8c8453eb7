package repair

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// damage is what other software does to an object of weft on a host.
type damage struct {
	name string
	kind owned.Kind
	// objects are damaged, so that random damage does not look like a fight.
	objects []string
	do      func() error // in the namespace of the host
}

// on calls f with an interface.
func on(name string, f func(netlink.Link) error) func() error {
	return func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(l)
	}
}

// port calls f with the port of a container.
func port(f func(netlink.Link) error) func() error {
	return func() error {
		v, err := netdev.ReadView()
		if err != nil {
			return err
		}
		ports := netdev.ContainerPorts(v, netdev.BridgeName, "")
		if len(ports) == 0 {
			return errors.New("there is no port of a container")
		}
		return on(ports[0].Name, f)()
	}
}

func mtu(n int) func(netlink.Link) error {
	return func(l netlink.Link) error { return netlink.LinkSetMTU(l, n) }
}

func setMAC(l netlink.Link) error {
	return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9})
}

func flushAddrs(l netlink.Link) error {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return fmt.Errorf("%s has no address", l.Attrs().Name)
	}
	for _, a := range addrs {
		err = errors.Join(err, netlink.AddrDel(l, &a))
	}
	return err
}

func flushRoutes(l netlink.Link) error {
	routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
	if err == nil && len(routes) == 0 {
		err = fmt.Errorf("there is no route by %s", l.Attrs().Name)
	}
	for _, r := range routes {
		err = errors.Join(err, netlink.RouteDel(&r))
	}
	return err
}

// ownTable is the table of routes to other hosts, and the priority of the rules to it.
const ownTable = 6784

func flushOwnRoutes() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: ownTable}, netlink.RT_FILTER_TABLE)
	if err == nil && len(routes) == 0 {
		err = fmt.Errorf("there is no route in table %d", ownTable)
	}
	for _, r := range routes {
		err = errors.Join(err, netlink.RouteDel(&r))
	}
	return err
}

func flushOwnRules() error {
	rules, err := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Table: ownTable}, netlink.RT_FILTER_TABLE)
	if err == nil && len(rules) == 0 {
		err = fmt.Errorf("there is no rule to table %d", ownTable)
	}
	for _, r := range rules {
		err = errors.Join(err, netlink.RuleDel(&r))
	}
	return err
}

func flushRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.FlushRuleset()
	return c.Flush()
}

func hairpin(l netlink.Link) error { return netlink.LinkSetHairpin(l, true) }

func sysctl(value string, key ...string) func() error {
	return func() error { return os.WriteFile(netdev.ProcSys.Path(key...), []byte(value), 0) }
}

// common are damages of every router. Host has the address exposed.
func common() []damage {
	return []damage{
		{"ip link set weft down", owned.Bridge, []string{"bridge"}, on("weft", netlink.LinkSetDown)},
		{"ip link del weft", owned.Bridge, []string{"bridge", "port", "router port", "tap", "address"}, on("weft", netlink.LinkDel)},
		{"ip link set weft mtu 1200", owned.Bridge, []string{"bridge"}, on("weft", mtu(1200))},
		{"ip link set weft address 02:00:00:00:00:09", owned.Bridge, []string{"bridge"}, on("weft", setMAC)},
		{"ip link set PORT nomaster", owned.ContainerPort, []string{"port"}, port(netlink.LinkSetNoMaster)},
		{"ip link set PORT down", owned.ContainerPort, []string{"port"}, port(netlink.LinkSetDown)},
		{"ip link set PORT mtu 600", owned.ContainerPort, []string{"port"}, port(mtu(600))},
		{"ip addr flush dev weft", owned.Address, []string{"address"}, on("weft", flushAddrs)},
		{"ip route flush dev weft", owned.Address, []string{"address"}, on("weft", flushRoutes)},
		{"nft flush ruleset", owned.Rules, []string{"rules"}, flushRules},
		{"sysctl -w net.ipv4.ip_forward=0", owned.Sysctl, []string{"forward"}, sysctl("0", "net", "ipv4", "ip_forward")},
		{"sysctl -w net.ipv6.conf.weft.accept_ra=1", owned.Sysctl, []string{"ra"}, sysctl("1", "net", "ipv6", "conf", "weft", "accept_ra")},
		{"ip link set vethwe-tap down", owned.TAP, []string{"tap"}, on(netdev.TAPName, netlink.LinkSetDown)},
		{"ip link set vethwe-tap mtu 600", owned.TAP, []string{"tap"}, on(netdev.TAPName, mtu(600))},
		{"ip link del vethwe-tap", owned.TAP, []string{"tap"}, on(netdev.TAPName, netlink.LinkDel)},
	}
}

// fast are damages of a router with the fast datapath. pins is the folder of its pins.
func fast(pins string) []damage {
	return []damage{
		{"ip link set vethwe-bridge nomaster", owned.RouterPort, []string{"router port"}, on(netdev.PortName, netlink.LinkSetNoMaster)},
		{"ip link set vethwe-bridge down", owned.RouterPort, []string{"router port"}, on(netdev.PortName, netlink.LinkSetDown)},
		{"bridge link set dev vethwe-bridge hairpin on", owned.RouterPort, []string{"router port"}, on(netdev.PortName, hairpin)},
		{"ip link set vethwe-pcap down", owned.RouterPort, []string{"router port"}, on(netdev.PortPeerName, netlink.LinkSetDown)},
		{"ip link del vethwe-bridge", owned.RouterPort, []string{"router port"}, on(netdev.PortName, netlink.LinkDel)},
		{"ip link set vethwe-vxlan down", owned.VXLAN, []string{"vxlan"}, on(netdev.VXLANName, netlink.LinkSetDown)},
		{"ip link del vethwe-vxlan", owned.VXLAN, []string{"vxlan"}, on(netdev.VXLANName, netlink.LinkDel)},
		{"ip route flush table 6784", owned.OwnRoutes, []string{"own routes"}, flushOwnRoutes},
		{"ip rule del pref 6784", owned.OwnRoutes, []string{"own routes"}, flushOwnRules},
		{"rm the pins", owned.Pin, []string{"pins"}, func() error { return removePins(pins) }},
	}
}

// tunnel are damages of a router whose fast datapath is inside WireGuard.
func tunnel() []damage {
	return []damage{
		{"ip link set vethwe-wg down", owned.WireGuard, []string{"wireguard"}, on(netdev.TunnelName, netlink.LinkSetDown)},
		{"ip link set vethwe-wg mtu 1300", owned.WireGuard, []string{"wireguard"}, on(netdev.TunnelName, mtu(1300))},
		{"ip addr flush dev vethwe-wg", owned.WireGuard, []string{"wireguard"}, on(netdev.TunnelName, flushAddrs)},
		{"ip route flush dev vethwe-wg", owned.WireGuard, []string{"wireguard"}, on(netdev.TunnelName, flushRoutes)},
		{"ip link del vethwe-wg", owned.WireGuard, []string{"wireguard"}, on(netdev.TunnelName, netlink.LinkDel)},
	}
}

// removePins removes all pins of a router.
func removePins(dir string) error {
	pins, err := filepath.Glob(filepath.Join(dir, "*", "*")) // each layout has a folder
	if err == nil && len(pins) == 0 {
		err = fmt.Errorf("there are no pins in %s", dir)
	}
	for _, p := range pins {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}

// takeName gives another interface the name of the bridge, unless one has it.
func takeName() error {
	l, err := netlink.LinkByName(netdev.BridgeName)
	if err == nil && l.Type() == "veth" {
		return nil
	}
	if err == nil {
		if err := netlink.LinkDel(l); err != nil {
			return err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = netdev.BridgeName
	pair := netlink.NewVeth(attrs)
	pair.PeerName = "other"
	err = netlink.LinkAdd(pair)
	if errors.Is(err, os.ErrExist) {
		return nil // the router was faster; the caller tries again
	}
	return err
}

// freeName undoes takeName.
func freeName() error { return on(netdev.BridgeName, netlink.LinkDel)() }
