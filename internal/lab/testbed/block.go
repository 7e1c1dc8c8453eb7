package testbed

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// The rules of Block are in the underlay's namespace, where what a host takes
// off its interface before any hook of its own passes too:
//
//	table bridge weft-block-hN {
//	  chain forward { type filter hook forward priority -200
//	    oifname "hN" udp dport PORT drop        (one rule for each port)
//	  }
//	}
const blockTable = "weft-block-"

// beforeBridgeNetfilter is "filter" of the family bridge. At 0, where that of
// the others is, br_netfilter takes frames past the chain on Linux 6.1.
var beforeBridgeNetfilter nftables.ChainPriority = -200

// Block drops what the underlay has for these UDP ports of host n, and for no
// others; none lifts the block.
func (l *Lab) Block(n int, ports ...uint16) error {
	if err := l.CheckPlace(Place{Host: n}); err != nil {
		return err
	}
	err := netdev.Do(netdev.NSByName("weft-"+l.Name+"-"+underlayNS), func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		t := &nftables.Table{Name: blockTable + hostWord(n), Family: nftables.TableFamilyBridge}
		c.AddTable(t)
		c.DelTable(t) // of an earlier call; the one that was just added, if there was none
		if len(ports) > 0 {
			c.AddTable(t)
			chain := c.AddChain(&nftables.Chain{
				Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
				Priority: &beforeBridgeNetfilter,
			})
			for _, port := range ports {
				match := append(toInterface(hostWord(n)), udpTo(port)...)
				c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
			}
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("block UDP ports %v of %s in lab %s: %w", ports, hostWord(n), l.Name, err)
	}
	return nil
}

// toInterface matches what leaves by an interface.
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
