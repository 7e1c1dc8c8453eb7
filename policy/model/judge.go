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
	Pod      *Pod           // whose policies judged: nil if the address is no pod's
	Decided  *ClusterPolicy // the one of the whole cluster that decided, nil if none did
	Denied   bool           // what Decided decided
	Isolated []*Policy      // those that isolate the pod, by name, unless a policy before them decided
	By       *Policy        // the first of them that allows the flow
}

// Allowed reports whether the flow may pass.
func (j Judgement) Allowed() bool {
	if j.Decided != nil {
		return !j.Denied
	}
	return len(j.Isolated) == 0 || j.By != nil
}

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

// decide has the policies of a tier decide, and reports whether one did.
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

// matches reports whether a rule matches a flow with another end.
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

// names reports whether a flow goes to a port of a policy.
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
