package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/policy/model"
)

// source is one or two sets that rules use. It exists as long as rules refer to it.
type source struct {
	names []string // its sets: one, or one each for IPv4 and IPv6
	refs  int
	// refresh updates the elements of an address. owner is the address's pod, nil if it has none.
	refresh func(netip.Addr, *model.Pod)
	current bool // it was created by this Change, so it needs no refresh
}

// podsSource returns the sets of pods that match one of the peers, nil if all peers are blocks.
func (c *Compiler) podsSource(peers []model.Peer) *source {
	var selectors []model.Peer
	var keys []string
	for _, p := range peers {
		if !p.Block.IsValid() {
			selectors = append(selectors, p)
			keys = append(keys, selectorKey(p))
		}
	}
	if len(selectors) == 0 {
		return nil
	}
	slices.Sort(keys)
	return c.source("pods", strings.Join(slices.Compact(keys), "\n"), Addrs, nil, func(s *source) {
		s.refresh = func(a netip.Addr, owner *model.Pod) {
			name := s.names[0]
			if a.Is6() {
				name = s.names[1]
			}
			selected := owner != nil && slices.ContainsFunc(selectors, func(p model.Peer) bool {
				return p.Matches(owner, c.cluster.NamespaceLabels(owner.Namespace))
			})
			if selected {
				c.ledger.put(name, Element{Addr: a}, "")
			} else {
				c.ledger.drop(name, Element{Addr: a})
			}
		}
	})
}

// namedSource returns the sets of addresses and ports of all pods that have a port of a name.
func (c *Compiler) namedSource(p model.Port) *source {
	return c.source("named", p.Protocol.String()+" "+p.Name, AddrPorts, nil, func(s *source) {
		have := make(map[netip.Addr][]uint16)
		s.refresh = func(a netip.Addr, owner *model.Pod) {
			name := s.names[0]
			if a.Is6() {
				name = s.names[1]
			}
			for _, port := range have[a] {
				c.ledger.drop(name, Element{Addr: a, Port: port})
			}
			delete(have, a)
			if owner == nil {
				return
			}
			for _, named := range owner.Ports {
				if named.Name == p.Name && named.Protocol == p.Protocol {
					c.ledger.put(name, Element{Addr: a, Port: named.Port}, "")
					have[a] = append(have[a], named.Port)
				}
			}
		}
	})
}

// portsSource returns a set of ports.
func (c *Compiler) portsSource(exact []Element) *source {
	elements := make(map[Element]string)
	for _, e := range exact {
		elements[e] = ""
	}
	return c.source("ports", fmt.Sprint(exact), ProtoPorts, &Set{Elements: elements}, nil)
}

// blocksSource returns the set of addresses of one family in the peers' blocks, nil if there are
// none.
func (c *Compiler) blocksSource(peers []model.Peer, f Family) *source {
	ranges := blockRanges(peers, f)
	if len(ranges) == 0 {
		return nil
	}
	return c.source("blocks", fmt.Sprint(ranges), Ranges, &Set{Family: f, Ranges: ranges}, nil)
}

// source returns the source with a key, and creates it if necessary. A new source consists of the
// set constant, or, if constant is nil, of one set for each family; then setRefresh sets the
// function that updates them.
func (c *Compiler) source(what, key string, kind Kind, constant *Set, setRefresh func(*source)) *source {
	id := what + " " + key
	if s := c.sources[id]; s != nil {
		return s
	}
	s := &source{refresh: func(netip.Addr, *model.Pod) {}}
	name := "policy-" + what + "-" + hash(key)
	if constant != nil {
		constant.Name, constant.Kind = name, kind
		if constant.Family != Both {
			constant.Name = constant.Family.Name(name)
		}
		s.names = []string{constant.Name}
		c.ledger.addSet(constant)
	} else {
		for _, f := range []Family{IPv4, IPv6} {
			s.names = append(s.names, f.Name(name))
			c.ledger.addSet(&Set{Name: f.Name(name), Kind: kind, Family: f})
		}
		setRefresh(s)
		for a, owner := range c.cluster.Addrs {
			s.refresh(a, owner)
		}
	}
	s.current = true
	c.sources[id] = s
	return s
}

func selectorKey(p model.Peer) string {
	if p.Namespaces == nil {
		return fmt.Sprintf("namespace %q pods %s", p.Namespace, canonical(p.Pods))
	}
	return fmt.Sprintf("namespaces %s pods %s", canonical(p.Namespaces), canonical(p.Pods))
}

// canonical returns a text of a selector that does not depend on the order of its requirements.
func canonical(s labels.Selector) string {
	requirements, selectable := s.Requirements()
	if !selectable {
		return "none"
	}
	words := make([]string, len(requirements))
	for i, r := range requirements {
		words[i] = fmt.Sprintf("%q", r.String())
	}
	slices.Sort(words)
	return "[" + strings.Join(words, " ") + "]"
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:12])
}
