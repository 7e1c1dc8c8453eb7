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

// Guarded says which UDP ports Guard protects.
type Guarded struct {
	// Port is where hosts exchange frames in clear text; 0 removes the rules.
	Port uint16
	// Tunnel is where WireGuard of the hosts listens; 0 if there is none.
	Tunnel uint16
	// Sealed has the addresses inside the tunnel, if it is valid. Packets to Port there
	// may leave through the tunnel only.
	Sealed netip.Prefix
	// Sleeve is where routers exchange packets; 0 protects none. Containers of Bridge,
	// an interface, may not send there with the host's address.
	Sleeve uint16
	Bridge string
	// IPIP: hosts accept packets of IP protocols 4 and 41 of this host.
	IPIP bool
}

// Guard calls the function Guard in the watched namespace.
func (w *Watch) Guard(g Guarded) (rebuilt bool, err error) {
	err = DoIn(w.ns, func() (err error) { rebuilt, err = Guard(g); return err })
	return rebuilt, err
}

// Guard installs the rules that protect the UDP ports of g, and reports whether they were
// missing.
func Guard(g Guarded) (rebuilt bool, err error) { return g.rules().reconcile() }

// GuardFaults calls Guarded.Faults in the watched namespace.
func (w *Watch) GuardFaults(g Guarded) (faults []string, err error) {
	err = DoIn(w.ns, func() (err error) { faults, err = g.Faults(); return err })
	return faults, err
}

// Faults returns how the rules that protect the ports differ from the desired ones, in
// words.
func (g Guarded) Faults() ([]string, error) { return g.rules().Faults() }

// rules protect the UDP ports on which hosts exchange frames. On Port frames are in clear
// text and a host is identified by its address only, so only the kernel may send from the
// host's address, and nobody may forge an address.
//
//	table inet weft {
//	  chain guard-in {  type filter hook prerouting priority raw
//	    udp dport PORT fib daddr type local fib saddr . iif oif missing counter drop
//	    iifname vethwe-wg udp dport != PORT counter drop
//	    iifname vethwe-wg meta l4proto != udp counter drop
//	  }
//	  chain guard-out { type filter hook postrouting priority srcnat + 50
//	    udp dport PORT   iif != 0 iifname != vethwe-vxlan fib saddr type local counter drop
//	    udp dport PORT   iif 0 meta skuid exists counter drop
//	    udp dport TUNNEL iif != 0 iifname != vethwe-wg fib saddr type local counter drop
//	    udp dport TUNNEL iif 0 meta skuid exists counter drop
//	    udp dport SLEEVE iifname BRIDGE fib saddr type local counter drop
//	    meta l4proto 4   ct status & snat != 0 counter drop    (41 likewise)
//	    udp dport PORT ip daddr SEALED oifname != vethwe-wg counter drop
//	  }
//	}
//
// The first rule drops a packet if the route to its source does not use the interface
// that it came in by. The next two are for the tunnel, which is for frames only: users and
// containers of other hosts must not reach services of this one through it, past firewalls
// between the hosts.
//
// The first rule on the way out drops forwarded packets that leave with the host's own
// address: otherwise a container behind NAT could speak as the host. It does not match
// hosts behind this one whose addresses are not translated. The second drops what sockets
// of the host's own users and of containers in its network namespace send.
//
// The kernel's tunnels pass: since Linux 5.7, postrouting shows the tunnel's device as the
// input interface of the outer packet, and none for a packet of a socket. The socket alone
// does not distinguish them, as the outer packet keeps that of the inner one. Frames that
// the eBPF programs send bypass netfilter. A packet of a bridge that netfilter sees
// (br_netfilter) has no input interface here and no socket either.
//
// Other hosts identify IPIP of this one by its source address, too, so a container behind NAT must not
// send it as the host. The tunnels of the host itself are not translated and pass.
//
// The last rule is for routes and routing rules of other programs: they must not lead
// frames past the encrypting tunnel.
func (g Guarded) rules() ruleSet {
	var rules []rule
	drop := func(chain, comment string, x exprs) {
		rules = append(rules, rule{chain, comment, append(x, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	if g.Port != 0 {
		drop(guardIn, fmt.Sprintf("drop forged packets to UDP %d", g.Port), exprs{}.udpTo(g.Port).
			local(destination).
			fib(expr.Fib{FlagSADDR: true, FlagIIF: true, ResultOIF: true}, expr.CmpOpEq, 0))
		for _, p := range []struct {
			port   uint16
			device string // by which the kernel's own packets come in
		}{{g.Port, VXLANName}, {g.Tunnel, TunnelName}} {
			if p.port == 0 {
				continue
			}
			drop(guardOut, fmt.Sprintf("drop packets to UDP %d that leave with our address and are not ours", p.port),
				exprs{}.udpTo(p.port).forwarded(true).device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, p.device).local(source))
			drop(guardOut, fmt.Sprintf("drop packets of sockets to UDP %d", p.port), exprs{}.udpTo(p.port).forwarded(false).fromSocket())
		}
		if g.Sleeve != 0 {
			drop(guardOut, fmt.Sprintf("drop packets of containers of %s to UDP %d that leave with our address", g.Bridge, g.Sleeve),
				exprs{}.udpTo(g.Sleeve).device(expr.MetaKeyIIFNAME, expr.CmpOpEq, g.Bridge).local(source))
		}
		for _, p := range []byte{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
			if g.IPIP {
				drop(guardOut, fmt.Sprintf("drop packets of IP protocol %d that leave with our address and are not ours", p), exprs{}.protocol(p).sourceTranslated())
			}
		}
		if g.Sealed.IsValid() {
			drop(guardIn, fmt.Sprintf("drop packets of the tunnel to other ports than UDP %d", g.Port),
				exprs{}.device(expr.MetaKeyIIFNAME, expr.CmpOpEq, TunnelName).udp(expr.CmpOpEq).udpPort(expr.CmpOpNeq, g.Port))
			drop(guardIn, "drop packets of the tunnel that are not UDP", exprs{}.device(expr.MetaKeyIIFNAME, expr.CmpOpEq, TunnelName).udp(expr.CmpOpNeq))
			drop(guardOut, fmt.Sprintf("drop packets to UDP %d of %s that pass by the tunnel", g.Port, g.Sealed),
				exprs{}.udpTo(g.Port).family(g.Sealed).addr(g.Sealed, destination, expr.CmpOpEq).device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, TunnelName))
		}
	}
	return ruleSet{guardChains, rules}
}

// udpTo matches UDP packets to a port.
func (x exprs) udpTo(port uint16) exprs { return x.udp(expr.CmpOpEq).udpPort(expr.CmpOpEq, port) }

// udp compares the protocol of a packet with UDP.
func (x exprs) udp(op expr.CmpOp) exprs {
	return append(x,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{unix.IPPROTO_UDP}})
}

// udpPort compares the destination port of a UDP packet.
func (x exprs) udpPort(op expr.CmpOp, port uint16) exprs {
	return append(x,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: op, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
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

// forwarded matches packets that came in by an interface, or those that did not.
func (x exprs) forwarded(was bool) exprs {
	op := expr.CmpOpEq
	if was {
		op = expr.CmpOpNeq
	}
	return append(x,
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)})
}

// fromSocket matches packets of a socket that a process has: the expression ends the rule
// if there is none.
func (x exprs) fromSocket() exprs { return append(x, &expr.Meta{Key: expr.MetaKeySKUID, Register: 1}) }
