package model

import (
	"net/netip"
	"slices"
)

// Flow is what a first packet says of a flow, with the destination translated
// and the source not.
type Flow struct {
	Src, Dst netip.Addr
	Protocol Protocol
	Port     uint16 // of the destination; 0 for protocols without ports
	// Sender and Receiver are addresses of the pods that a packet comes from and
	// reaches if Src or Dst is not the pod's own: a group's, all's, or one that is
	// valid on the link only.
	Sender, Receiver netip.Addr
}

// Judgement is what becomes of a flow in one direction.
type Judgement struct {
	Pod      *Pod      // whose policies judged: nil if the address is no pod's
	Isolated []*Policy // those that isolate it, by name
	By       *Policy   // the first of them that allows the flow
}

// Allowed tells whether the flow may pass.
func (j Judgement) Allowed() bool { return len(j.Isolated) == 0 || j.By != nil }

// Judge judges a flow in one direction, wherever the pod runs.
func (c *Cluster) Judge(f Flow, d Direction) Judgement {
	if f.Src == f.Dst {
		return Judgement{}
	}
	self, other := f.Src, f.Dst
	if f.Sender.IsValid() {
		self = f.Sender
	}
	if d == Ingress {
		self, other = f.Dst, f.Src
		if f.Receiver.IsValid() {
			self = f.Receiver
		}
	}
	pod := c.Owner(self)
	if pod == nil {
		return Judgement{}
	}
	j := Judgement{Pod: pod, Isolated: c.Applying(pod, d)}
	for _, p := range j.Isolated {
		if slices.ContainsFunc(p.Rules[d], func(r Rule) bool { return c.allows(&r, f, other) }) {
			j.By = p
			break
		}
	}
	return j
}

// allows tells whether a rule allows a flow with another end.
func (c *Cluster) allows(r *Rule, f Flow, other netip.Addr) bool {
	peer := r.AnyPeer || slices.ContainsFunc(r.Peers, func(p Peer) bool {
		if p.Block.IsValid() {
			return p.Contains(other)
		}
		pod := c.Owner(other)
		return pod != nil && p.Matches(pod, c.namespaces[pod.Namespace])
	})
	return peer && (r.AnyPort || slices.ContainsFunc(r.Ports, func(p Port) bool { return c.names(p, f) }))
}

// names tells whether a flow goes to a port of a policy.
func (c *Cluster) names(p Port, f Flow) bool {
	if p.Protocol != f.Protocol {
		return false
	}
	if p.Name == "" {
		return p.From <= f.Port && f.Port <= p.To
	}
	to := c.Owner(f.Dst)
	return to != nil && slices.Contains(to.Ports, NamedPort{p.Name, p.Protocol, f.Port})
}
