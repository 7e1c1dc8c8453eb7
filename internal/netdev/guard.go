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
	// After the translation of sources, where a packet has the address that it
	// leaves with.
	{guardOut, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 50)},
}

const (
	guardIn  = "guard-in"
	guardOut = "guard-out"
)

// Guard is Guard in the namespace that is watched.
func (w *Watch) Guard(port uint16, sealed netip.Prefix) (rebuilt bool, err error) {
	err = DoIn(w.ns, func() (err error) { rebuilt, err = Guard(port, sealed); return err })
	return rebuilt, err
}

// Guard keeps containers and strangers from a UDP port by which hosts take frames
// from each other in clear, where a host is known by its address only; port 0
// takes the rules away. What is sent there to addresses of sealed, if that is valid,
// leaves by the tunnel only. It reports whether the rules were not there.
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
// The first drops what claims to come from an address that is not reached by the
// interface it came by. The second drops what the host passes on for others and
// gives its own address to: a container behind the host would speak as the host.
// Hosts behind this one, whose addresses are kept, are not touched. The third is for
// routes and rules of routing that others make: they must not lead frames that are to
// be encrypted past the tunnel.
func Guard(port uint16, sealed netip.Prefix) (rebuilt bool, err error) {
	var rules []rule
	if port != 0 {
		drop := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
		in := exprs{}.udpTo(port).
			local(destination).
			fib(expr.Fib{FlagSADDR: true, FlagIIF: true, ResultOIF: true}, expr.CmpOpEq, 0)
		out := exprs{}.udpTo(port).
			forwarded().
			device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, VXLANName). // where the host's own come from
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

// udpTo lets only UDP packets to a port pass.
func (x exprs) udpTo(port uint16) exprs {
	return append(x,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
}

// local lets only packets pass of which an address is one of the host's.
func (x exprs) local(f field) exprs {
	return x.fib(expr.Fib{FlagSADDR: f == source, FlagDADDR: f == destination, ResultADDRTYPE: true}, expr.CmpOpEq, unix.RTN_LOCAL)
}

// fib compares what the routes say.
func (x exprs) fib(look expr.Fib, op expr.CmpOp, to uint32) exprs {
	look.Register = 1
	return append(x, &look, &expr.Cmp{Op: op, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, to)})
}

// forwarded lets only packets pass that came by an interface.
func (x exprs) forwarded() exprs {
	return append(x,
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
}
