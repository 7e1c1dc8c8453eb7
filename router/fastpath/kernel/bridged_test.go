package kernel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// track makes connection tracking see bridged packets, as on hosts with br_netfilter and
// rules that translate addresses.
func (h *host) track() {
	h.do(func() error {
		for _, key := range []string{"iptables", "ip6tables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+key, []byte("1"), 0); err != nil {
				return err
			}
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Name: "track", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, expr.CtStateBitINVALID), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		return c.Flush()
	})
}

// TestBridgedTracked lets connection tracking reassemble fragments and fragment packets
// again on the bridge, at either end.
func TestBridgedTracked(t *testing.T) {
	hosts := newLab(t, 2, lab{express: true, bridged: true})
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.track()
	}
	for _, n := range []int{1, 1000, 5000, 60000} {
		a.reaches(b, n)
		b.reaches(a, n)
	}
	a.streams(b)
	took(t, hosts, true)
}

// TestBridgedAtOneEnd lets frames cross the bridge at one end only.
func TestBridgedAtOneEnd(t *testing.T) {
	hosts := newLab(t, 2, lab{express: true})
	a, b := hosts[0], hosts[1]
	a.track()
	if err := a.SetExpress(false); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 1000, 5000, 60000} {
		a.reaches(b, n)
		b.reaches(a, n)
	}
	a.streams(b)
	took(t, hosts, true)
}

// TestVLANInside uses containers with VLAN interfaces: in bulk, both ways, by the
// VXLAN device even if other frames bypass it.
func TestVLANInside(t *testing.T) {
	for name, l := range map[string]lab{"express": {express: true}, "bridged": {express: true, bridged: true}, "device": {}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			addr := func(h *host) netip.Addr { return netip.AddrFrom4([4]byte{10, 55, 0, byte(h.id)}) }
			for _, h := range hosts {
				err := netdev.Do(h.c, func() error {
					under, err := netlink.LinkByName("ethwe")
					if err != nil {
						return err
					}
					attrs := netlink.NewLinkAttrs()
					attrs.Name, attrs.ParentIndex, attrs.MTU = "tagged", under.Attrs().Index, labMTU-4
					if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 5}); err != nil {
						return err
					}
					l, err := netlink.LinkByName("tagged")
					if err != nil {
						return err
					}
					ip := &net.IPNet{IP: addr(h).AsSlice(), Mask: net.CIDRMask(24, 32)}
					if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ip}); err != nil {
						return err
					}
					return netlink.LinkSetUp(l)
				})
				if errors.Is(err, unix.EOPNOTSUPP) {
					nstest.Lacks(t, "VLAN interfaces")
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			neighbour(t, a.c, "tagged", b.mac, addr(b))
			neighbour(t, b.c, "tagged", a.mac, addr(a))
			if err := echo(t, a.c, addr(a), b.c, addr(b), 1000, timeout); err != nil {
				t.Error(err)
			}
			transfer(t, a.c, addr(a), b.c, addr(b), bulk)
			transfer(t, b.c, addr(b), a.c, addr(a), bulk)
			a.quiet()
			b.quiet()
		})
	}
}

// TestDatagramsInBulk lets a container send many datagrams as one GSO packet (UDP_SEGMENT).
func TestDatagramsInBulk(t *testing.T) {
	for name, l := range map[string]lab{
		"express": {express: true}, "bridged": {express: true, bridged: true}, "device": {}, "cut by the underlay": {express: true},
	} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			if name == "cut by the underlay" {
				offloads(t, a.ns, "up1")
			}
			for _, p := range [][2]netip.Addr{{a.addr(), b.addr()}, {a.addr6(), b.addr6()}} {
				src, dst := listen(t, a.c, p[0]), listen(t, b.c, p[1])
				raw, err := src.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				const size, many = 1000, 40
				var failed error
				if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) }); err != nil || failed != nil {
					t.Fatal(err, failed)
				}
				msg := make([]byte, size*many)
				for i := range msg {
					msg[i] = byte(i / size)
				}
				if _, err := src.WriteToUDPAddrPort(msg, dst.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
					t.Fatal(err)
				}
				_ = dst.SetReadDeadline(time.Now().Add(timeout))
				buf := make([]byte, 70000)
				for i := range many {
					n, err := dst.Read(buf)
					if err != nil || n != size || buf[0] != byte(i) || buf[size-1] != byte(i) {
						t.Fatalf("%s: datagram %d: %d bytes, %v", p[0], i, n, err)
					}
				}
			}
			a.quiet()
			b.quiet()
		})
	}
}
