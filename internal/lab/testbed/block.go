package testbed

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// The rules of Block are in the namespace of the underlay. There they also see packets
// that a host's XDP or tc program takes off its interface before netfilter:
//
//	table bridge weft-block-hN {
//	  chain forward { type filter hook forward priority -200
//	    oifname "hN" udp dport PORT drop        (one rule for each port)
//	  }
//	}
const blockTable = "weft-block-"

// beforeBridgeNetfilter is priority "filter" of the family bridge. At priority 0, that of
// other families, br_netfilter bypasses the chain on Linux 6.1.
var beforeBridgeNetfilter nftables.ChainPriority = -200

// Block makes the underlay drop packets to these UDP ports of host n, instead of those of
// an earlier call. Without ports it drops none.
func (l *Lab) Block(n int, ports ...uint16) error {
	if err := l.CheckPlace(Place{Host: n}); err != nil {
		return err
	}
	err := netdev.Do(l.underlay(), func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		t := &nftables.Table{Name: blockTable + hostName(n), Family: nftables.TableFamilyBridge}
		c.AddTable(t)
		c.DelTable(t) // the table of an earlier call, or the one just added
		if len(ports) > 0 {
			c.AddTable(t)
			chain := c.AddChain(&nftables.Chain{
				Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
				Priority: &beforeBridgeNetfilter,
			})
			for _, port := range ports {
				match := append(toInterface(hostName(n)), udpTo(port)...)
				c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
			}
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("block UDP ports %v of %s in lab %s: %w", ports, hostName(n), l.Name, err)
	}
	return nil
}

// toInterface matches packets that leave by an interface.
func toInterface(name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

// udpTo matches UDP packets to a port.
func udpTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// BlockPlain makes the underlay drop IP packets without VXLAN to host n: with sources, those whose source is
// no host of the underlay, as networks do that check sources, and with ipip, those of IP protocols 4 and 41.
// It replaces what an earlier call did.
func (l *Lab) BlockPlain(n int, sources, ipip bool) error {
	if err := l.CheckPlace(Place{Host: n}); err != nil {
		return err
	}
	err := netdev.Do(l.underlay(), func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		t := &nftables.Table{Name: blockTable + "plain-" + hostName(n), Family: nftables.TableFamilyBridge}
		c.AddTable(t)
		c.DelTable(t)
		c.AddTable(t)
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
			Priority: &beforeBridgeNetfilter,
		})
		drop := func(match ...expr.Any) {
			match = append(toInterface(hostName(n)), match...)
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
		if sources {
			for _, of := range []struct {
				protocol       uint16
				offset, length uint32
				network        []byte
			}{{unix.ETH_P_IP, 12, 3, Addr4(1).AsSlice()}, {unix.ETH_P_IPV6, 8, 8, Addr6(1).AsSlice()}} {
				drop(append(ofProtocol(of.protocol),
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: of.offset, Len: of.length},
					&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: of.network[:of.length]})...)
			}
		}
		if ipip {
			for _, protocol := range []byte{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
				drop(append(ofProtocol(unix.ETH_P_IP),
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 9, Len: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}})...)
			}
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("block plain packets to %s in lab %s: %w", hostName(n), l.Name, err)
	}
	return nil
}
