package netdev

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// exposeRules compiles exposures to rules: for each masqueraded subnet those that translate
// its packets and drop what cannot be translated, and two that accept the bridge's traffic.
func exposeRules(bridge string, all []Exposure) []rule {
	var nat, forward, input []rule
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	masquerade := &expr.Masq{FullyRandom: true}
	seen := make(map[netip.Prefix]bool)
	for _, e := range all {
		s := e.Addr.Masked()
		if !e.Masquerade || seen[s] {
			continue
		}
		seen[s] = true
		out := exprs{}.family(s).
			addr(s, source, expr.CmpOpEq).
			addr(s, destination, expr.CmpOpNeq).
			addr(multicastPrefix(s), destination, expr.CmpOpNeq).
			device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, bridge)
		in := exprs{}.family(s).
			addr(s, source, expr.CmpOpNeq).
			addr(s, destination, expr.CmpOpEq).
			device(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridge)
		leaving := fmt.Sprintf("%s leaving other than by %s", s, bridge)
		entering := fmt.Sprintf("others entering %s by %s", s, bridge)
		nat = append(nat, rule{natChain, "masquerade at random ports " + leaving, append(slices.Clone(out), masquerade)})
		if others := "masquerade at random ports " + entering; e.KeepClients {
			nat = append(nat,
				rule{natChain, others + " untranslated", append(slices.Clone(in).untranslated(), masquerade)},
				rule{natChain, others + " from this host", append(slices.Clone(in).fromHere(), masquerade)})
		} else {
			nat = append(nat, rule{natChain, others, append(slices.Clone(in), masquerade)})
		}
		forward = append(forward,
			rule{forwardChain, "drop invalid packets of " + leaving, append(out.state(expr.CtStateBitINVALID), drop)},
			rule{forwardChain, "drop invalid packets of " + entering, append(in.state(expr.CtStateBitINVALID), drop)})
	}
	if len(all) > 0 {
		forward = append(forward,
			rule{forwardChain, "accept from " + bridge, append(exprs{}.device(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridge), accept)},
			rule{forwardChain, "accept to " + bridge, append(exprs{}.device(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridge), accept)})
	}
	if len(nat) > 0 {
		invalid := exprs{}.state(expr.CtStateBitINVALID).protocol(unix.IPPROTO_TCP)
		input = append(input,
			// The expression ends the rule if there is no socket.
			rule{inputChain, "accept invalid segments with a socket", append(slices.Clone(invalid),
				&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}, accept)},
			rule{inputChain, "drop invalid segments other than by " + bridge, append(invalid.device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, bridge), drop)})
	}
	return slices.Concat(nat, forward, input)
}

func multicastPrefix(like netip.Prefix) netip.Prefix {
	if like.Addr().Is4() {
		return multicastRoute
	}
	return netip.MustParsePrefix("ff00::/8")
}

type exprs []expr.Any

// family matches packets of p's IP version.
func (x exprs) family(p netip.Prefix) exprs {
	f := byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		f = unix.NFPROTO_IPV6
	}
	return append(x,
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}})
}

type field int

const (
	source field = iota
	destination
)

// addr compares an address of the IP header (RFC 791, RFC 8200) to a prefix.
func (x exprs) addr(p netip.Prefix, f field, op expr.CmpOp) exprs {
	size := uint32(p.Addr().BitLen() / 8)
	offset := uint32(12)
	if p.Addr().Is6() {
		offset = 8
	}
	if f == destination {
		offset += size
	}
	return append(x,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: size,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size),
		},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func (x exprs) device(key expr.MetaKey, op expr.CmpOp, name string) exprs {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return append(x,
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded})
}

// state matches packets that conntrack gives one of the states.
func (x exprs) state(bits uint32) exprs {
	return append(x,
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
}

// protocol matches packets of a protocol above IP.
func (x exprs) protocol(p byte) exprs {
	return append(x,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}})
}

// untranslated matches packets whose destination address was not translated.
func (x exprs) untranslated() exprs {
	const dstNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	return x.status(dstNAT, expr.CmpOpEq)
}

// sourceTranslated matches packets whose source address was translated.
func (x exprs) sourceTranslated() exprs {
	const srcNAT = 1 << 4 // IPS_SRC_NAT
	return x.status(srcNAT, expr.CmpOpNeq)
}

// status compares a bit of the status of the connection with zero.
func (x exprs) status(bit uint32, op expr.CmpOp) exprs {
	return append(x,
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)})
}

// fromHere matches packets from an address of the host itself.
func (x exprs) fromHere() exprs {
	return append(x,
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
}

func addrOf(p netip.Prefix) *netlink.Addr { return &netlink.Addr{IPNet: toIPNet(p)} }
