package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Packet is the first packet of a flow that crosses the host.
type Packet struct {
	// In and Out are names of interfaces. The empty name is some interface that no rule
	// names.
	In, Out  string
	Src, Dst netip.Addr // of one family
}

// End is where a firewall drops a packet.
type End struct {
	Family nftables.TableFamily
	Table  string
	Chain  string // in which the packet ends
	Base   string // where it began
	// Word is what ends it: reject, drop, or policy drop.
	Word string
}

// String describes the end in words.
func (e End) String() string {
	return fmt.Sprintf("chain %s of table %s %s ends with %s", e.Chain, familyName(e.Family), e.Table, e.Word)
}

// Command returns a command that accepts packets from bridge to bridge.
func (e End) Command(bridge string) string {
	switch {
	case e.Table == "firewalld":
		return "firewall-cmd --permanent --zone=trusted --add-interface=" + bridge + " && firewall-cmd --reload"
	case e.Table == "filter" && e.Base == "FORWARD" && e.Family == nftables.TableFamilyIPv4:
		return fmt.Sprintf("iptables -I FORWARD -i %s -o %s -j ACCEPT", bridge, bridge)
	case e.Table == "filter" && e.Base == "FORWARD" && e.Family == nftables.TableFamilyIPv6:
		return fmt.Sprintf("ip6tables -I FORWARD -i %s -o %s -j ACCEPT", bridge, bridge)
	}
	return fmt.Sprintf("nft insert rule %s %s %s iifname %s oifname %s accept", familyName(e.Family), e.Table, e.Base, bridge, bridge)
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprint(f)
}

// Source has the rules of a network namespace.
type Source interface {
	Chains() ([]*nftables.Chain, error)
	// Rules returns the rules of a chain, in order.
	Rules(*nftables.Chain) ([]*nftables.Rule, error)
	// Contains reports whether a set of a table has an element with a key. known is false
	// if that is not sure, as with sets of intervals.
	Contains(t *nftables.Table, set string, key []byte) (found, known bool)
}

// Ends returns where the rules of other tables than those named end a packet, one End for
// each chain of the forward hook, in the order of their priority.
func Ends(s Source, p Packet, except string) ([]End, error) {
	chains, err := s.Chains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	byName := make(map[chainName]*nftables.Chain)
	var base []*nftables.Chain
	for _, c := range chains {
		byName[nameOf(c)] = c
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter && sees(c.Table.Family, p) && c.Table.Name != except {
			base = append(base, c)
		}
	}
	slices.SortStableFunc(base, func(a, b *nftables.Chain) int { return int(*a.Priority) - int(*b.Priority) })
	var ends []End
	for _, c := range base {
		w := walk{source: s, chains: byName, packet: p}
		switch w.chain(c, 0) {
		case dropped:
			end := End{c.Table.Family, c.Table.Name, w.at.Name, c.Name, w.word}
			ends = append(ends, end)
		case passed, returned:
			if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop && w.err == nil {
				ends = append(ends, End{c.Table.Family, c.Table.Name, c.Name, c.Name, "policy drop"})
			}
		case accepted:
		}
		if w.err != nil {
			return ends, w.err
		}
	}
	return ends, nil
}

// sees reports whether chains of a family see a packet.
func sees(f nftables.TableFamily, p Packet) bool {
	return f == nftables.TableFamilyINet || f == nftables.TableFamilyIPv4 && p.Src.Is4() || f == nftables.TableFamilyIPv6 && p.Src.Is6()
}

type chainName struct {
	family      nftables.TableFamily
	table, name string
}

func nameOf(c *nftables.Chain) chainName { return chainName{c.Table.Family, c.Table.Name, c.Name} }

// nfproto is the number of the packet's family in rules.
func (p Packet) nfproto() byte {
	if p.Src.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}
