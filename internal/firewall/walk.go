package firewall

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// outcome is what a chain does with a packet.
type outcome int

const (
	passed   outcome = iota // to the end of the chain
	returned                // to the chain that jumped here
	accepted
	dropped
)

// maxDepth bounds jumps, as the kernel does (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// maxRules bounds the rules that one packet crosses. Beyond it, nothing is said.
const maxRules = 20_000

// walk follows one packet.
type walk struct {
	source Source
	chains map[chainName]*nftables.Chain
	packet Packet

	rules int
	at    *nftables.Chain // where the packet was dropped
	word  string
	err   error
}

// chain follows the packet through a chain.
func (w *walk) chain(c *nftables.Chain, depth int) outcome {
	rules, err := w.source.Rules(c)
	if err != nil {
		w.err = fmt.Errorf("list the rules of chain %s: %w", c.Name, err)
		return accepted
	}
	for _, r := range rules {
		if w.rules++; w.rules > maxRules {
			return accepted
		}
		if o, ends := w.rule(c, r, depth); ends {
			return o
		}
	}
	return passed
}

// certainty is whether a rule matches the packet, if nothing refutes it.
type certainty int

const (
	sure certainty = iota
	// open: it may match all packets of containers, such as one that asks for a mark.
	open
	// partial: it matches some of them at most, such as one that asks for a port.
	partial
)

// value is what a register holds: nil bytes if that is not known. why is then how a rule
// matches that compares it.
type value struct {
	bytes []byte
	why   certainty
}

// registers of the virtual machine of nftables, by number. Numbers from 8 on are parts of
// the same registers, and a part of a longer value is not known.
type registers map[uint32]value

// rule follows the packet through a rule. ends reports whether it does not go on to the next
// one, and o how it ended.
func (w *walk) rule(c *nftables.Chain, r *nftables.Rule, depth int) (o outcome, ends bool) {
	regs := make(registers)
	how := sure
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			regs[e.Register] = w.meta(e.Key)
		case *expr.Ct:
			regs[e.Register] = tracked(e.Key)
		case *expr.Payload:
			regs[e.DestRegister] = value{w.address(e), partial}
		case *expr.Fib:
			regs[e.Register] = value{nil, partial}
		case *expr.Bitwise:
			v := regs[e.SourceRegister]
			regs[e.DestRegister] = value{masked(v.bytes, e), v.why}
		case *expr.Cmp:
			v := regs[e.Register]
			switch matches, known := compared(v.bytes, e); {
			case !known:
				how = max(how, v.why, open)
			case !matches:
				return passed, false
			}
		case *expr.Range:
			how = max(how, regs[e.Register].why, open)
		case *expr.Lookup:
			v := regs[e.SourceRegister]
			found, known := w.lookup(r.Table, v.bytes, e)
			switch {
			case !known && v.bytes == nil:
				how = max(how, v.why, open)
			case !known:
				how = max(how, open)
			case found == e.Invert:
				return passed, false
			case found && e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT && how == sure:
				// The library does not read the verdicts of a map, so nothing is said.
				return accepted, true
			}
		case *expr.Match:
			how = max(how, matched(e.Name))
		case *expr.Verdict:
			if o, ends := w.verdict(c, e, how, depth); ends {
				return o, true
			}
		case *expr.Reject:
			if how == sure {
				w.at, w.word = c, "reject"
				return dropped, true
			}
		case *expr.Target:
			if word, ends := targets[e.Name]; ends && how == sure {
				w.at, w.word = c, word
				return dropped, true
			}
		case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Immediate:
		case *expr.Queue:
			if how != partial {
				return accepted, true // a program decides
			}
		case *expr.Limit, *expr.Quota, *expr.Connlimit, *expr.Exthdr, *expr.Socket:
			how = partial
		default:
			how = max(how, open)
		}
	}
	return passed, false
}

// tracked returns what is known of the packet's connection.
func tracked(k expr.CtKey) value {
	switch k {
	case expr.CtKeySTATE:
		return value{bytes: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW)}
	case expr.CtKeyMARK, expr.CtKeyZONE, expr.CtKeyLABELS:
		return value{nil, open}
	}
	return value{nil, partial}
}

// matched returns how a match of iptables matches.
func matched(name string) certainty {
	switch name {
	case "comment":
		return sure
	case "mark", "connmark", "set", "iprange", "physdev", "mac", "bpf", "u32":
		return open
	}
	return partial
}

// targets are those of iptables that drop.
var targets = map[string]string{"REJECT": "reject", "DROP": "drop"}

// verdict applies a verdict. If it may be reached by all packets, it counts only if it accepts
// them; if by some at most, it does nothing.
func (w *walk) verdict(c *nftables.Chain, v *expr.Verdict, how certainty, depth int) (o outcome, ends bool) {
	switch o, ends := w.follow(c, v, how, depth); {
	case how == sure || o == accepted && ends:
		return o, ends
	}
	w.at, w.word = nil, ""
	return passed, false
}

// follow applies a verdict that is reached.
func (w *walk) follow(c *nftables.Chain, v *expr.Verdict, how certainty, depth int) (o outcome, ends bool) {
	if v == nil || how == partial {
		return passed, false
	}
	switch v.Kind {
	case expr.VerdictAccept:
		return accepted, true
	case expr.VerdictDrop:
		w.at, w.word = c, "drop"
		return dropped, true
	case expr.VerdictReturn:
		return returned, true
	case expr.VerdictJump, expr.VerdictGoto:
		to := w.chains[chainName{c.Table.Family, c.Table.Name, v.Chain}]
		if to == nil || depth >= maxDepth {
			return passed, false
		}
		o := w.chain(to, depth+1)
		if o == accepted || o == dropped {
			return o, true
		}
		return returned, v.Kind == expr.VerdictGoto
	}
	return passed, false
}

// meta returns what is known of the packet itself.
func (w *walk) meta(k expr.MetaKey) value {
	name := func(s string) value {
		b := make([]byte, unix.IFNAMSIZ)
		copy(b, s)
		return value{bytes: b}
	}
	switch k {
	case expr.MetaKeyIIFNAME:
		return name(w.packet.In)
	case expr.MetaKeyOIFNAME:
		return name(w.packet.Out)
	case expr.MetaKeyNFPROTO:
		return value{bytes: []byte{w.packet.nfproto()}}
	case expr.MetaKeyL4PROTO, expr.MetaKeyPROTOCOL, expr.MetaKeyLEN, expr.MetaKeyPKTTYPE:
		return value{nil, partial}
	}
	return value{nil, open}
}

// address returns the source or destination address if that is what a rule loads (RFC 791,
// RFC 8200).
func (w *walk) address(e *expr.Payload) []byte {
	size := uint32(w.packet.Src.BitLen() / 8)
	first := uint32(12)
	if w.packet.Src.Is6() {
		first = 8
	}
	if e.Base != expr.PayloadBaseNetworkHeader || e.Len > size {
		return nil
	}
	switch e.Offset {
	case first:
		return w.packet.Src.AsSlice()[:e.Len]
	case first + size:
		return w.packet.Dst.AsSlice()[:e.Len]
	}
	return nil
}

// masked returns a value with a mask applied.
func masked(v []byte, e *expr.Bitwise) []byte {
	if v == nil || len(v) != len(e.Mask) || len(v) != len(e.Xor) {
		return nil
	}
	out := make([]byte, len(v))
	for i := range v {
		out[i] = v[i]&e.Mask[i] ^ e.Xor[i]
	}
	return out
}

// compared compares a value. A shorter operand compares a prefix, as of eth*.
func compared(v []byte, e *expr.Cmp) (matches, known bool) {
	if v == nil || len(e.Data) > len(v) {
		return false, false
	}
	order := bytes.Compare(v[:len(e.Data)], e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return order == 0, true
	case expr.CmpOpNeq:
		return order != 0, true
	case expr.CmpOpLt:
		return order < 0, true
	case expr.CmpOpLte:
		return order <= 0, true
	case expr.CmpOpGt:
		return order > 0, true
	case expr.CmpOpGte:
		return order >= 0, true
	}
	return false, false
}

// lookup looks a value up in a set.
func (w *walk) lookup(t *nftables.Table, v []byte, e *expr.Lookup) (found, known bool) {
	if v == nil {
		return false, false
	}
	return w.source.Contains(t, e.SetName, v)
}
