package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Underlay has the properties of an interface that matter for packets which bypass
// the stack of the host.
type Underlay struct {
	Ethernet bool // frames on it have an Ethernet header
	// Netfilter reports that packets which leave by the interface still cross
	// netfilter: in a bridge, or in the output chain of an IPVLAN.
	Netfilter bool
	MTU       int // in bytes of IP packet, 0 if not known
	// Forwards reports that the host forwards packets of IPv4 that come by the interface.
	Forwards bool
}

// Underlay returns the properties of an interface. If a property cannot be
// determined, it returns the pessimistic value.
func (w *Watch) Underlay(ifindex int) (u Underlay) {
	for i := range 8 { // more interfaces are not stacked
		l, err := w.h.LinkByIndex(ifindex)
		if err != nil {
			break
		}
		if i == 0 {
			u.MTU, u.Forwards = l.Attrs().MTU, w.forwards(l.Attrs().Name)
		}
		u.Ethernet = l.Attrs().EncapType == "ether"
		v, isIPVLAN := l.(*netlink.IPVlan)
		switch kind := l.Type(); {
		case isIPVLAN && v.Mode == netlink.IPVLAN_MODE_L2, kind == "vlan", kind == "macvlan", kind == "macvtap":
			ifindex = l.Attrs().ParentIndex
		default:
			u.Netfilter = isIPVLAN || kind == "bridge" || kind == "openvswitch"
			return u
		}
	}
	return Underlay{Netfilter: true, MTU: u.MTU, Forwards: u.Forwards}
}

// forwards reads the sysctl of an interface; false if it cannot be read.
func (w *Watch) forwards(name string) (on bool) {
	_ = DoIn(w.ns, func() error {
		b, err := os.ReadFile(ProcSys.Path("net", "ipv4", "conf", name, "forwarding"))
		on = err == nil && strings.TrimSpace(string(b)) == "1"
		return nil
	})
	return on
}

// IPsecPrefixes returns the IPv4 networks of other hosts for which the policies of
// this host apply IPsec to packets of UDP or IPIP.
func (w *Watch) IPsecPrefixes() (others []netip.Prefix, err error) {
	var policies []netlink.XfrmPolicy
	err = DoIn(w.ns, func() (err error) {
		policies, err = Dump(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(unix.AF_INET) })
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // the kernel has no IPsec
	}
	if err != nil {
		return nil, fmt.Errorf("list the policies of IPsec: %w", err)
	}
	for _, p := range policies {
		ours := []netlink.Proto{0, unix.IPPROTO_UDP, unix.IPPROTO_IPIP, unix.IPPROTO_IPV6}
		if len(p.Tmpls) == 0 || p.Ifid != 0 || !slices.Contains(ours, p.Proto) {
			continue
		}
		switch p.Dir {
		case netlink.XFRM_DIR_OUT:
			others = append(others, network(p.Dst))
		case netlink.XFRM_DIR_IN:
			others = append(others, network(p.Src))
		}
	}
	return others, nil
}

// network returns n as a prefix; all IPv4 addresses if n is nil.
func network(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits).Masked()
}
