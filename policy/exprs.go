package policy

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// exprs is the expressions of a rule. Each expression uses register 1, of 16 bytes, except that
// keys of several fields are assembled in registers of 4 bytes.
type exprs []expr.Any

// word0 is the first register of 4 bytes. It overlaps register 1.
const word0 = unix.NFT_REG32_00

// field is the offset of a header field, for each IP version.
type field struct{ offset4, offset6 uint32 }

var (
	saddr = field{12, 8}
	daddr = field{16, 24}
)

// load returns the expression that loads an address into a register, and the size of the address
// in bytes.
func (f field) load(family rules.Family, register uint32) (load expr.Any, size uint32) {
	offset, size := f.offset4, uint32(4)
	if family == rules.IPv6 {
		offset, size = f.offset6, 16
	}
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}, size
}

// compile returns the nftables expressions of a compiled rule.
func compile(r rules.Rule) []expr.Any {
	var x exprs
	if r.Family != rules.Both {
		x = x.family(r.Family)
	}
	if r.Peers != "" {
		far := saddr
		if r.Far == model.Egress {
			far = daddr
		}
		x = x.in(r.Family, far, r.Peers)
	}
	if r.Protocol != 0 {
		x = x.protocol(byte(r.Protocol))
	}
	if r.From != 0 || r.To != 0 {
		x = append(x, dport(1))
		x = append(x, &expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: be16(r.From)}, &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: be16(r.To)})
	}
	if r.Ports != "" {
		x = append(x, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word0}, dport(word0+1), lookup(word0, r.Ports))
	}
	if r.Named != "" {
		load, size := daddr.load(r.Family, word0)
		x = append(x, load, dport(word0+size/4), lookup(word0, r.Named))
	}
	switch r.Action {
	case rules.Accept:
		return x.accept()
	case rules.Jump:
		return x.jump(r.Chain)
	case rules.Log:
		return x.log(r.Chain)
	case rules.Return:
		return append(x, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return x.drop()
}

// family matches packets of an IP version.
func (x exprs) family(f rules.Family) exprs {
	b := byte(unix.NFPROTO_IPV4)
	if f == rules.IPv6 {
		b = unix.NFPROTO_IPV6
	}
	return append(x, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(b))
}

func (x exprs) protocol(p byte) exprs {
	return append(x, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(p))
}

// in matches packets with an address in a set.
func (x exprs) in(family rules.Family, f field, set string) exprs {
	load, _ := f.load(family, 1)
	return append(x, load, lookup(1, set))
}

// vmap applies the verdict that a map has for an address.
func (x exprs) vmap(family rules.Family, f field, set string) exprs {
	load, _ := f.load(family, 1)
	return append(x, load, verdictLookup(1, set))
}

// within matches packets with an address in a prefix.
func (x exprs) within(family rules.Family, f field, p netip.Prefix) exprs {
	load, size := f.load(family, 1)
	return append(x, load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask(p), Xor: make([]byte, size)},
		equal(p.Addr().AsSlice()...))
}

// state matches packets whose connection is in one of these states.
func (x exprs) state(bits uint32) exprs {
	return append(x,
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
}

// icmp6 matches ICMPv6 messages with a type in a range.
func (x exprs) icmp6(from, to byte) exprs {
	x = x.protocol(unix.IPPROTO_ICMPV6)
	return append(x,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{from}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{to}})
}

// withoutSYN matches TCP packets that do not open a connection.
func (x exprs) withoutSYN() exprs {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	x = x.protocol(unix.IPPROTO_TCP)
	return append(x,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{syn}})
}

// groupFrame matches packets that arrived in a multicast or broadcast frame.
func (x exprs) groupFrame() exprs {
	return append(x, &expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{unix.PACKET_BROADCAST}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{unix.PACKET_MULTICAST}})
}

func (x exprs) accept() exprs { return append(x, &expr.Verdict{Kind: expr.VerdictAccept}) }

func (x exprs) drop() exprs {
	return append(x, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

func (x exprs) jump(chain string) exprs {
	return append(x, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
}

// log sends some packets to the log group, with a prefix that names the chain.
func (x exprs) log(prefix string) exprs {
	return append(x,
		&expr.Limit{Type: expr.LimitTypePkts, Rate: rules.LogRate, Unit: expr.LimitTimeSecond, Burst: rules.LogBurst},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group: rules.LogGroup, Snaplen: snapLen, Data: []byte(prefix),
		})
}

// snapLen is the number of bytes of a denied packet that the kernel logs: enough for the headers.
const snapLen = 128

func dport(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func lookup(register uint32, set string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: set}
}

// verdictLookup looks up a verdict in a map.
func verdictLookup(register uint32, set string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: set, IsDestRegSet: true}
}

func equal(b ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func ne32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for bit := range p.Bits() {
		m[bit/8] |= 1 << (7 - bit%8)
	}
	return m
}
