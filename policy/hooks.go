package policy

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/policy/rules"
)

// hook is one of the constant chains that the package documentation draws.
type hook struct {
	name     string
	hook     *nftables.ChainHook // nil for a chain that is only jumped to
	priority *nftables.ChainPriority
	rules    []exprs
}

const (
	strictChain    = "policy-strict"
	linkLocalChain = "policy-link-local"
)

var bothFamilies = []rules.Family{rules.IPv4, rules.IPv6}

var (
	inetTable   = &nftables.Table{Name: netdev.TableName, Family: nftables.TableFamilyINet}
	bridgeTable = &nftables.Table{Name: netdev.TableName, Family: nftables.TableFamilyBridge}
)

// States of connection tracking, as bits of `ct state`.
const (
	stateInvalid     = 1 << 0
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3
)

func inetHooks() []hook {
	after := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter + 1)
	return []hook{
		{strictChain, nil, nil, []exprs{
			exprs{}.state(stateInvalid).drop(),
			exprs{}.state(stateNew).withoutSYN().drop(),
		}},
		{linkLocalChain, nil, nil, append(alwaysAccepted(), byMark(nil, rules.EgressPortsMap))},
		{"policy-prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, []exprs{
			exprs{}.family(rules.IPv6).within(rules.IPv6, saddr, linkLocal).jump(linkLocalChain),
		}},
		{"policy-egress", nftables.ChainHookForward, nftables.ChainPriorityFilter, egressRules()},
		{"policy-ingress", nftables.ChainHookForward, after, ingressRules()},
		{"policy-host", nftables.ChainHookInput, nftables.ChainPriorityFilter, egressRules()},
		{"policy-output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, append(
			[]exprs{exprs{}.state(stateEstablished | stateRelated).accept()}, strictFor(daddr)...)},
	}
}

// alwaysAccepted are the rules for packets that policies never filter.
func alwaysAccepted() []exprs {
	return []exprs{
		exprs{}.state(stateEstablished | stateRelated).accept(),
		exprs{}.icmp6(130, 137).accept(),
		exprs{}.icmp6(143, 143).accept(),
		exprs{}.protocol(unix.IPPROTO_IGMP).accept(),
	}
}

// strictFor sends packets from or to isolated pods to policy-strict.
func strictFor(f field) []exprs {
	var all []exprs
	for _, family := range bothFamilies {
		all = append(all, exprs{}.family(family).in(family, f, family.Name(rules.IsolatedSet)).jump(strictChain))
	}
	return all
}

// selfRules let pods reach themselves through a Service.
func selfRules() []exprs {
	var all []exprs
	for _, family := range bothFamilies {
		from, size := saddr.load(family, word0)
		to, _ := daddr.load(family, word0+size/4)
		all = append(all, append(exprs{}.family(family), from, to, lookup(word0, family.Name(rules.SelfSet))).accept())
	}
	return all
}

func egressRules() []exprs {
	all := append(alwaysAccepted(), strictFor(saddr)...)
	all = append(all, strictFor(daddr)...)
	all = append(all, selfRules()...)
	for _, family := range bothFamilies {
		all = append(all, exprs{}.family(family).vmap(family, saddr, family.Name(rules.EgressMap)))
	}
	return all
}

func ingressRules() []exprs {
	all := append(alwaysAccepted(), selfRules()...)
	all = append(all, byMark(exprs{}.groupFrame(), rules.IngressPortsMap))
	for _, family := range bothFamilies {
		all = append(all, byMark(exprs{}.family(family).within(family, daddr, groups(family)), rules.IngressPortsMap))
	}
	all = append(all, byMark(exprs{}.family(rules.IPv6).within(rules.IPv6, daddr, linkLocal), rules.IngressPortsMap))
	for _, family := range bothFamilies {
		all = append(all, exprs{}.family(family).vmap(family, daddr, family.Name(rules.IngressMap)))
	}
	return all
}

// groups returns the multicast (RFC 1112, RFC 4291) and broadcast addresses.
func groups(f rules.Family) netip.Prefix {
	if f == rules.IPv6 {
		return netip.MustParsePrefix("ff00::/8")
	}
	return netip.MustParsePrefix("224.0.0.0/3")
}

// linkLocal is the IPv6 link-local addresses (RFC 4291). The kernel assigns them by itself, so
// pods could use them to bypass their policies.
var linkLocal = netip.MustParsePrefix("fe80::/10")

// bridgeHooks writes the bridge port by which a packet leaves or arrived to its mark, for packets
// whose address does not identify the pod. A unicast frame that contains a packet to a group is a
// forgery, which some receivers accept, so it is matched by its IP address too.
func bridgeHooks() []hook {
	in := []exprs{writeMark(exprs{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{1}, Xor: []byte{0}},
		equal(1),
	}, expr.MetaKeyOIF)}
	for _, family := range bothFamilies {
		in = append(in, writeMark(ether(family).within(family, daddr, groups(family)), expr.MetaKeyOIF))
	}
	in = append(in, writeMark(ether(rules.IPv6).within(rules.IPv6, daddr, linkLocal), expr.MetaKeyOIF))
	out := []exprs{writeMark(ether(rules.IPv6).within(rules.IPv6, saddr, linkLocal), expr.MetaKeyIIF)}
	// br_netfilter passes packets to the IP hooks at priority -1.
	early := nftables.ChainPriorityRef(-200)
	return []hook{
		{"policy-ports-out", nftables.ChainHookPrerouting, early, out},
		{"policy-ports-in", nftables.ChainHookForward, early, in},
	}
}

func writeMark(x exprs, port expr.MetaKey) exprs {
	return append(x, &expr.Meta{Key: port, Register: 1}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true})
}

// byMark applies the verdict that a map has for the port in the packet's mark. bridgeHooks writes
// the mark.
func byMark(x exprs, ports string) exprs {
	return append(x, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, verdictLookup(1, ports))
}

// ether matches frames that contain a packet of an IP version.
func ether(f rules.Family) exprs {
	b := []byte{0x08, 0x00}
	if f == rules.IPv6 {
		b = []byte{0x86, 0xdd}
	}
	return exprs{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, equal(b...)}
}
