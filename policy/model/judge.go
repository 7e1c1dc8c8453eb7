package model

import (
	"net/netip"
	"slices"
)

// Flow is the addresses, the protocol and the port of a flow's first packet, with the destination
// translated and the source not.
type Flow struct {
	Src, Dst netip.Addr
	Protocol Protocol
	Port     uint16 // destination port; 0 for protocols without ports
	// Sender and Receiver are addresses of the pods that send and receive the packet. They are set
	// if Src or Dst is not a pod's own address but a multicast, broadcast or link-local address.
	Sender, Receiver netip.Addr
}

// Judgement is the verdict of the policies on a flow in one direction.
type Judgement struct {
	Pod      *Pod           // the pod whose policies were evaluated; nil if no pod owns the address
	Decided  *ClusterPolicy // the cluster policy that decided; nil if none did
	Denied   bool           // the decision of Decided
	Isolated []*Policy      // the policies that isolate the pod, by name; nil if a cluster policy decided before them
	By       *Policy        // the first policy of Isolated that allows the flow
}

// Allowed reports whether the flow may pass.
func (j Judgement) Allowed() bool {
	if j.Decided != nil {
		return !j.Denied
	}
	return len(j.Isolated) == 0 || j.By != nil
}

// Judge evaluates all policies for a flow in one direction, on whichever node the pod runs. Only
// this complete evaluation is called judging: a rule matches, and a policy applies.
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
	j := Judgement{Pod: pod}
	if j.decide(c, Admin, f, d, other) {
		return j
	}
	j.Isolated = c.Applying(pod, d)
	for _, p := range j.Isolated {
		if slices.ContainsFunc(p.Rules[d], func(r Rule) bool { return c.matches(&r, f, other) }) {
			j.By = p
			break
		}
	}
	if len(j.Isolated) == 0 {
		j.decide(c, Baseline, f, d, other)
	}
	return j
}

// decide evaluates the cluster policies of a tier and reports whether one of them decided.
func (j *Judgement) decide(c *Cluster, t Tier, f Flow, d Direction, other netip.Addr) bool {
	for _, p := range c.Deciding(j.Pod, d, t) {
		for i := range p.Rules[d] {
			switch r := &p.Rules[d][i]; {
			case !c.matches(&r.Rule, f, other):
			case r.Action == Pass:
				return false
			default:
				j.Decided, j.Denied = p, r.Action == Deny
				return true
			}
		}
	}
	return false
}

// matches reports whether a rule matches a flow whose other end has the address other.
func (c *Cluster) matches(r *Rule, f Flow, other netip.Addr) bool {
	peer := r.AnyPeer || slices.ContainsFunc(r.Peers, func(p Peer) bool {
		if p.Block.IsValid() {
			return p.Contains(other)
		}
		pod := c.Owner(other)
		return pod != nil && p.Matches(pod, c.namespaces[pod.Namespace])
	})
	return peer && (r.AnyPort || slices.ContainsFunc(r.Ports, func(p Port) bool { return c.names(p, f) }))
}

// names reports whether p includes the destination port of a flow.
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
