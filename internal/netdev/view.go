package netdev

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// View is what the kernel says of the interfaces of one namespace at one moment, and of
// their addresses. Nothing in it may be changed.
type View struct {
	Links   map[string]*Link // by name
	byIndex map[int]*Link
	addrs   map[int][]netip.Prefix
}

// Link is an interface in a View.
type Link struct {
	Name  string
	Index int
	Kind  string // like veth; empty for a card
	Up    bool
	MTU   int // bytes of IP packet
	MAC   net.HardwareAddr
	Alias string
	// AltNames are alternative names.
	AltNames []string
	// Master is the index of the bridge that it is a port of, 0 for none.
	Master int
	// Peer is the index of the other end of a veth pair, which is in another namespace if
	// Elsewhere is set.
	Peer      int
	Elsewhere bool
	Group     uint32
	Port      PortFlags   // if it is a port
	Bridge    BridgeFlags // if it is a bridge
}

// PortFlags are flags that a port has while it is a port.
type PortFlags struct {
	Hairpin bool // frames may leave by the port that they came in by
}

// BridgeFlags are flags of a bridge.
type BridgeFlags struct {
	Snooping            bool // of multicast
	SpanningTree, VLANs bool // VLANs: it filters them
	// Netfilter: IP rules see the frames that the bridge forwards, of IPv4 and of IPv6,
	// whatever the sysctls net.bridge.bridge-nf-call-* say.
	Netfilter4, Netfilter6, NetfilterARP bool
}

// ReadView reads the interfaces of the calling thread's namespace and their addresses.
func ReadView() (*View, error) {
	h, err := here()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	v := &View{Links: make(map[string]*Link), byIndex: make(map[int]*Link), addrs: make(map[int][]netip.Prefix)}
	links, err := Dump(dumpLinks)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		v.Links[l.Name], v.byIndex[l.Index] = l, l
	}
	addrs, err := h.addrs(nil)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := fromIPNet(a.IPNet); ok {
			v.addrs[a.LinkIndex] = append(v.addrs[a.LinkIndex], p)
		}
	}
	return v, nil
}

// Addrs returns the addresses of an interface.
func (v *View) Addrs(l *Link) []netip.Prefix { return v.addrs[l.Index] }

// ByIndex returns the interface with an index, nil if there is none.
func (v *View) ByIndex(index int) *Link { return v.byIndex[index] }

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h: counters are most of an
// answer.
const skipStats = 1 << 3

// dumpLinks reads all interfaces with the properties that Link has, some of which
// package netlink does not parse.
func dumpLinks() ([]*Link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	links := make([]*Link, 0, len(msgs))
	for _, m := range msgs {
		if l, ok := parseLink(m); ok {
			links = append(links, l)
		}
	}
	return links, nil
}

// parseLink parses an RTM_NEWLINK message. It returns false for one that it cannot read.
func parseLink(m []byte) (*Link, bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return nil, false
	}
	msg := nl.DeserializeIfInfomsg(m)
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return nil, false
	}
	l := &Link{Index: int(msg.Index), Up: msg.Flags&unix.IFF_UP != 0}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(a.Value)
		case unix.IFLA_MTU:
			l.MTU = int(number(a.Value))
		case unix.IFLA_MASTER:
			l.Master = int(number(a.Value))
		case unix.IFLA_LINK:
			l.Peer = int(number(a.Value))
		case unix.IFLA_LINK_NETNSID:
			l.Elsewhere = true
		case unix.IFLA_GROUP:
			l.Group = number(a.Value)
		case unix.IFLA_IFALIAS:
			l.Alias = unix.ByteSliceToString(a.Value)
		case unix.IFLA_PROP_LIST | unix.NLA_F_NESTED, unix.IFLA_PROP_LIST:
			l.AltNames = parseAltNames(a.Value)
		case unix.IFLA_LINKINFO:
			parseLinkInfo(l, a.Value)
		}
	}
	return l, l.Name != ""
}

func parseAltNames(b []byte) (names []string) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_ALT_IFNAME {
			names = append(names, unix.ByteSliceToString(a.Value))
		}
	}
	return names
}

func parseLinkInfo(l *Link, b []byte) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.IFLA_INFO_KIND:
			l.Kind = unix.ByteSliceToString(a.Value)
		case nl.IFLA_INFO_DATA:
			if l.Kind == "bridge" { // the kernel puts the kind first
				parseFlags(a.Value, map[uint16]*bool{
					nl.IFLA_BR_MCAST_SNOOPING: &l.Bridge.Snooping, nl.IFLA_BR_NF_CALL_IPTABLES: &l.Bridge.Netfilter4,
					nl.IFLA_BR_NF_CALL_IP6TABLES: &l.Bridge.Netfilter6, nl.IFLA_BR_NF_CALL_ARPTABLES: &l.Bridge.NetfilterARP,
					nl.IFLA_BR_STP_STATE: &l.Bridge.SpanningTree, nl.IFLA_BR_VLAN_FILTERING: &l.Bridge.VLANs,
				})
			}
		case nl.IFLA_INFO_SLAVE_DATA:
			parseFlags(a.Value, map[uint16]*bool{nl.IFLA_BRPORT_MODE: &l.Port.Hairpin})
		}
	}
}

// parseFlags reads attributes that are 0 or another number.
func parseFlags(b []byte, to map[uint16]*bool) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return
	}
	for _, a := range attrs {
		if f := to[a.Attr.Type]; f != nil {
			*f = slices.ContainsFunc(a.Value, func(b byte) bool { return b != 0 })
		}
	}
}

// number reads an attribute of four bytes; 0 for another one.
func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// setBridgeFlags sets attributes IFLA_BR_... of linux/if_link.h of a bridge in the calling
// thread's namespace. Package netlink does not know those of netfilter.
func setBridgeFlags(l netlink.Link, flags map[int][]byte) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	for _, flag := range slices.Sorted(maps.Keys(flags)) {
		data.AddRtAttr(flag, flags[flag])
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
