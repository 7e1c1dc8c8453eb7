package netdev

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// exposeRules compiles exposures to rules: NAT rules for each masqueraded subnet, and
// two rules that accept the bridge's traffic if there is any exposure.
func exposeRules(bridge string, all []Exposure) []rule {
	var rules []rule
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
		rules = append(rules, rule{natChain, "masquerade " + s.String() + " leaving other than by " + bridge, append(out, &expr.Masq{})})
		others := "masquerade others entering " + s.String() + " by " + bridge
		if !e.KeepClients {
			rules = append(rules, rule{natChain, others, append(in, &expr.Masq{})})
			continue
		}
		rules = append(rules,
			rule{natChain, others + " untranslated", append(slices.Clone(in).untranslated(), &expr.Masq{})},
			rule{natChain, others + " from this host", append(slices.Clone(in).fromHere(), &expr.Masq{})})
	}
	if len(all) > 0 {
		accept := &expr.Verdict{Kind: expr.VerdictAccept}
		rules = append(rules,
			rule{forwardChain, "accept from " + bridge, append(exprs{}.device(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridge), accept)},
			rule{forwardChain, "accept to " + bridge, append(exprs{}.device(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridge), accept)})
	}
	return rules
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

// untranslated matches packets whose destination address was not translated.
func (x exprs) untranslated() exprs {
	const dstNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	return append(x,
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)})
}

// fromHere matches packets from an address of the host itself.
func (x exprs) fromHere() exprs {
	return append(x,
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
}

func addrOf(p netip.Prefix) *netlink.Addr { return &netlink.Addr{IPNet: toIPNet(p)} }
