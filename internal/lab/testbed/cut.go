package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// The rules of Cut are in the namespace of the underlay, as those of Block. Each element of a
// set is the address of a host from which packets are dropped, and that of the host to which
// they go:
//
//	table bridge weft-cut {
//	  set cut4  { type ipv4_addr . ipv4_addr }  set cut6  { type ipv6_addr . ipv6_addr }
//	  set dial4 { type ipv4_addr . ipv4_addr }  set dial6 { type ipv6_addr . ipv6_addr }
//	  chain forward { type filter hook forward priority -200
//	    ip saddr . ip daddr @cut4 drop          ip6 saddr . ip6 daddr @cut6 drop
//	    tcp flags & (syn|ack) == syn ip saddr . ip daddr @dial4 drop    (ip6, @dial6 likewise)
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
		for _, pair := range [][2]netip.Addr{{Addr4(a), Addr4(b)}, {Addr6(a), Addr6(b)}} {
			if err := changeSet(setName(way, pair[0]), pair[0], pair[1], cut); err != nil {
				return fmt.Errorf("cut %s from %s in lab %s: %w", hostName(b), hostName(a), l.Name, err)
			}
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

func setName(way Way, a netip.Addr) string {
	if a.Is4() {
		return string(way) + "4"
	}
	return string(way) + "6"
}

// changeSet adds an element to a set of the calling thread's namespace, or deletes it. It
// is no error if that was done already.
func changeSet(name string, from, to netip.Addr, add bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	set := &nftables.Set{Table: table(), Name: name}
	element := []nftables.SetElement{{Key: append(from.AsSlice(), to.AsSlice()...)}}
	if add {
		err = c.SetAddElements(set, element)
	} else {
		err = c.SetDeleteElements(set, element)
	}
	if err != nil {
		return fmt.Errorf("change set %s: %w", name, err)
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
	id := uint32(0) // the library's own numbers are not safe for concurrent use
	for _, way := range []Way{Packets, Dials} {
		for _, v6 := range []bool{false, true} {
			address, of := nftables.TypeIPAddr, Addr4
			if v6 {
				address, of = nftables.TypeIP6Addr, Addr6
			}
			pair, err := nftables.ConcatSetType(address, address)
			if err != nil {
				return fmt.Errorf("make the type of a set: %w", err)
			}
			id++
			set := &nftables.Set{Table: t, ID: id, Name: setName(way, of(1)), KeyType: pair, Concatenation: true}
			var elements []nftables.SetElement
			if way == Packets {
				for _, cut := range cuts {
					elements = append(elements, nftables.SetElement{Key: append(of(cut[0]).AsSlice(), of(cut[1]).AsSlice()...)})
				}
			}
			if err := c.AddSet(set, elements); err != nil {
				return fmt.Errorf("add set %s: %w", set.Name, err)
			}
			var match []expr.Any
			if way == Dials {
				match = firstOfTCP()
			}
			match = append(match, addressesIn(set, v6)...)
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
	}
	return c.Flush()
}

// addressesIn matches packets whose source and destination addresses, which are next to each
// other in the header, are in the set.
func addressesIn(set *nftables.Set, v6 bool) []expr.Any {
	protocol, offset, length := uint16(unix.ETH_P_IP), uint32(12), uint32(4)
	if v6 {
		protocol, offset, length = unix.ETH_P_IPV6, 8, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, protocol)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2 * length},
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
