package netdev

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var guardChains = []chain{
	{guardIn, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw},
	// After source NAT, where a packet has the source address that it leaves with.
	{guardOut, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 50)},
}

const (
	guardIn  = "guard-in"
	guardOut = "guard-out"
)

// Guard calls the function Guard in the watched namespace.
func (w *Watch) Guard(port uint16, sealed netip.Prefix) (rebuilt bool, err error) {
	err = DoIn(w.ns, func() (err error) { rebuilt, err = Guard(port, sealed); return err })
	return rebuilt, err
}

// Guard protects the UDP port on which hosts exchange frames in clear text. There a
// host is identified by its address only, so containers and others must not forge it.
// Port 0 removes the rules. If the prefix sealed is valid, packets for the port to its
// addresses may leave through the tunnel only. Guard reports whether it had to change
// the rules.
//
//	table inet weft {
//	  chain guard-in {  type filter hook prerouting priority raw
//	    udp dport P fib daddr type local fib saddr . iif oif missing counter drop
//	  }
//	  chain guard-out { type filter hook postrouting priority srcnat + 50
//	    udp dport P iif != 0 iifname != vethwe-vxlan fib saddr type local counter drop
//	    udp dport P ip daddr SEALED oifname != vethwe-wg counter drop
//	  }
//	}
//
// The first rule drops a packet if the route to its source does not use the interface
// that it came in by. The second drops forwarded packets that leave with the host's own
// address: otherwise a container behind NAT could speak as the host. It does not match
// hosts behind this one whose addresses are not translated. The third is for routes and
// routing rules of other programs: they must not lead frames past the encrypting tunnel.
func Guard(port uint16, sealed netip.Prefix) (rebuilt bool, err error) {
	var rules []rule
	if port != 0 {
		drop := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
		in := exprs{}.udpTo(port).
			local(destination).
			fib(expr.Fib{FlagSADDR: true, FlagIIF: true, ResultOIF: true}, expr.CmpOpEq, 0)
		out := exprs{}.udpTo(port).
			forwarded().
			device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, VXLANName). // the host's own packets
			local(source)
		rules = []rule{
			{guardIn, fmt.Sprintf("drop forged packets to UDP %d", port), append(in, drop...)},
			{guardOut, fmt.Sprintf("drop packets to UDP %d that leave with our address and are not ours", port), append(out, drop...)},
		}
		if sealed.IsValid() {
			past := exprs{}.udpTo(port).family(sealed).addr(sealed, destination, expr.CmpOpEq).
				device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, TunnelName)
			rules = append(rules, rule{guardOut, fmt.Sprintf("drop packets to UDP %d of %s that pass by the tunnel", port, sealed), append(past, drop...)})
		}
	}
	return reconcile(guardChains, rules)
}

// udpTo matches UDP packets to a port.
func (x exprs) udpTo(port uint16) exprs {
	return append(x,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
}

// local matches packets whose source or destination is an address of the host.
func (x exprs) local(f field) exprs {
	return x.fib(expr.Fib{FlagSADDR: f == source, FlagDADDR: f == destination, ResultADDRTYPE: true}, expr.CmpOpEq, unix.RTN_LOCAL)
}

// fib compares the result of a route lookup.
func (x exprs) fib(lookup expr.Fib, op expr.CmpOp, to uint32) exprs {
	lookup.Register = 1
	return append(x, &lookup, &expr.Cmp{Op: op, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, to)})
}

// forwarded matches packets that came in by an interface.
func (x exprs) forwarded() exprs {
	return append(x,
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
}
