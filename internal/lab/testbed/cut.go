package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// The rules of Cut are in the namespace of the underlay, as those of Block. Each element of a
// set is the port of a host from which packets are dropped, and that of the host to which they
// go. Addresses would not do: packets may have those of containers.
//
//	table bridge weft-cut {
//	  set cut  { type ifname . ifname }
//	  set dial { type ifname . ifname }
//	  chain forward { type filter hook forward priority -200
//	    meta protocol ip  iifname . oifname @cut drop                                  (ip6 likewise)
//	    meta protocol ip  tcp flags & (syn|ack) == syn iifname . oifname @dial drop    (ip6 likewise)
//	  }
//	}
const cutTable = "weft-cut"

// Way says which packets from one host to another a cut drops.
type Way string

// The ways.
const (
	Packets Way = "cut"  // all packets
	Dials   Way = "dial" // the first packet of a TCP connection
)

// Cut drops packets from host a to host b in the underlay, in that direction only. It may
// be repeated.
func (l *Lab) Cut(a, b int, way Way) error { return l.setCut(a, b, way, true) }

// Heal undoes a Cut, or a cut of the topology.
func (l *Lab) Heal(a, b int, way Way) error { return l.setCut(a, b, way, false) }

func (l *Lab) setCut(a, b int, way Way, cut bool) error {
	if err := l.checkPair(a, b); err != nil {
		return err
	}
	return netdev.Do(l.underlay(), func() error {
		if err := changeSet(way, a, b, cut); err != nil {
			return fmt.Errorf("cut %s from %s in lab %s: %w", hostName(b), hostName(a), l.Name, err)
		}
		return nil
	})
}

// underlay returns the namespace of the underlay.
func (l *Lab) underlay() string { return netdev.NSByName("weft-" + l.Name + "-" + underlayNS) }

func (l *Lab) checkPair(a, b int) error {
	if a == b {
		return fmt.Errorf("%s to itself: there is no underlay between them", hostName(a))
	}
	return errors.Join(l.CheckPlace(Place{Host: a}), l.CheckPlace(Place{Host: b}))
}

// pairKey is an element of a set.
func pairKey(from, to int) []byte {
	key := make([]byte, 2*unix.IFNAMSIZ)
	copy(key, hostName(from))
	copy(key[unix.IFNAMSIZ:], hostName(to))
	return key
}

// changeSet adds an element to a set of the calling thread's namespace, or deletes it. It
// is no error if that was done already.
func changeSet(way Way, from, to int, add bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	set := &nftables.Set{Table: table(), Name: string(way)}
	element := []nftables.SetElement{{Key: pairKey(from, to)}}
	if add {
		err = c.SetAddElements(set, element)
	} else {
		err = c.SetDeleteElements(set, element)
	}
	if err != nil {
		return fmt.Errorf("change set %s: %w", way, err)
	}
	err = c.Flush()
	if (add && errors.Is(err, os.ErrExist)) || (!add && errors.Is(err, os.ErrNotExist)) {
		return nil
	}
	return err
}

// applyTopology writes the rules, with the cuts of the topology.
func (l *Lab) applyTopology() error {
	var cuts [][2]int
	for a := 1; a <= l.Hosts; a++ {
		for b := 1; b <= l.Hosts; b++ {
			if a != b && !l.Topology.joins(a, b) {
				cuts = append(cuts, [2]int{a, b})
			}
		}
	}
	if err := netdev.Do(l.underlay(), func() error { return makeRules(cuts) }); err != nil {
		return fmt.Errorf("make the rules of the underlay: %w", err)
	}
	return nil
}

func (t Topology) joins(a, b int) bool {
	switch t {
	case Line:
		return a-b == 1 || b-a == 1
	case Star:
		return a == 1 || b == 1
	default:
		return true
	}
}

func table() *nftables.Table {
	return &nftables.Table{Name: cutTable, Family: nftables.TableFamilyBridge}
}

func makeRules(cuts [][2]int) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	t := c.AddTable(table())
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: &beforeBridgeNetfilter,
	})
	pair, err := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	if err != nil {
		return fmt.Errorf("make the type of a set: %w", err)
	}
	for i, way := range []Way{Packets, Dials} {
		// The library's own numbers are not safe for concurrent use.
		set := &nftables.Set{Table: t, ID: uint32(i + 1), Name: string(way), KeyType: pair, Concatenation: true}
		var elements []nftables.SetElement
		if way == Packets {
			for _, cut := range cuts {
				elements = append(elements, nftables.SetElement{Key: pairKey(cut[0], cut[1])})
			}
		}
		if err := c.AddSet(set, elements); err != nil {
			return fmt.Errorf("add set %s: %w", set.Name, err)
		}
		for _, protocol := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
			match := ofProtocol(protocol)
			if way == Dials {
				match = append(match, firstOfTCP()...)
			}
			match = append(match, betweenPorts(set)...)
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
	}
	return c.Flush()
}

// ofProtocol matches packets with an ethertype.
func ofProtocol(protocol uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, protocol)},
	}
}

// betweenPorts matches packets whose ports of entry and exit are in the set.
func betweenPorts(set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
	}
}

// firstOfTCP matches packets with SYN and without ACK (RFC 9293, section 3.1: the flags
// are in byte 13 of the header).
func firstOfTCP() []expr.Any {
	const syn, ack = 0x02, 0x10
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
	}
}
