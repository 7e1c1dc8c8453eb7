package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// The rules of a host, in a table that is not the router's:
//
//	table inet weft-lab {
//	  set cut4  { type ipv4_addr }  set cut6  { type ipv6_addr }
//	  set dial4 { type ipv4_addr }  set dial6 { type ipv6_addr }
//	  chain input { type filter hook input priority raw
//	    ip saddr @cut4 drop         ip6 saddr @cut6 drop
//	    tcp flags & (syn|ack) == syn ip saddr @dial4 drop    (ip6, @dial6 likewise)
//	  }
//	}
const cutTable = "weft-lab"

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
	return netdev.Do(l.Netns(Place{Host: b}), func() error {
		for _, addr := range []netip.Addr{Addr4(a), Addr6(a)} {
			if err := changeSet(setName(way, addr), addr, cut); err != nil {
				return fmt.Errorf("cut %s from %s in lab %s: %w", hostName(b), hostName(a), l.Name, err)
			}
		}
		return nil
	})
}

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
func changeSet(name string, a netip.Addr, add bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	set := &nftables.Set{Table: table(), Name: name}
	element := []nftables.SetElement{{Key: a.AsSlice()}}
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

// applyTopology writes the rules on every host, with the cuts of the topology.
func (l *Lab) applyTopology() error {
	for b := 1; b <= l.Hosts; b++ {
		var from []int
		for a := 1; a <= l.Hosts; a++ {
			if a != b && !l.Topology.joins(a, b) {
				from = append(from, a)
			}
		}
		if err := netdev.Do(l.Netns(Place{Host: b}), func() error { return makeRules(from) }); err != nil {
			return fmt.Errorf("make the rules of %s: %w", hostName(b), err)
		}
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
	return &nftables.Table{Name: cutTable, Family: nftables.TableFamilyINet}
}

func makeRules(from []int) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	t := c.AddTable(table())
	chain := c.AddChain(&nftables.Chain{
		Name: "input", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRaw,
	})
	id := uint32(0) // the library's own numbers are not safe for concurrent use
	for _, way := range []Way{Packets, Dials} {
		for _, v6 := range []bool{false, true} {
			some := Addr4(0)
			if v6 {
				some = Addr6(0)
			}
			id++
			set := &nftables.Set{Table: t, ID: id, Name: setName(way, some), KeyType: nftables.TypeIPAddr}
			if v6 {
				set.KeyType = nftables.TypeIP6Addr
			}
			var elements []nftables.SetElement
			for _, a := range from {
				switch {
				case way != Packets:
				case v6:
					elements = append(elements, nftables.SetElement{Key: Addr6(a).AsSlice()})
				default:
					elements = append(elements, nftables.SetElement{Key: Addr4(a).AsSlice()})
				}
			}
			if err := c.AddSet(set, elements); err != nil {
				return fmt.Errorf("add set %s: %w", set.Name, err)
			}
			var match []expr.Any
			if way == Dials {
				match = firstOfTCP()
			}
			match = append(match, sourceIn(set, v6)...)
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
	}
	return c.Flush()
}

// sourceIn matches packets whose source address is in the set.
func sourceIn(set *nftables.Set, v6 bool) []expr.Any {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if v6 {
		family, offset, length = unix.NFPROTO_IPV6, 8, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
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
