package rotation

import (
	"cmp"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// Step is how far a member is with a password.
type Step int

// The steps of the package comment, and those before them.
const (
	Silent   Step = iota // it publishes nothing: it is away, or has only just come
	Behind               // it does not accept the password
	Accepts              // it accepts the password, and offers another one
	Offers               // it offers the password, and accepts others
	Finished             // it accepts only the password
)

// Status is the state of a rotation.
type Status struct {
	// Target is the password that is to take the place of others, or that has.
	Target ID
	// By is the key of the peer that gave the order, and Time when, in microseconds since
	// 1970. There is none if the configuration has the password.
	By   peer.Key
	Time int64
	// Running is set until this peer accepts only Target.
	Running bool
	Step    Step         // of this peer
	Peers   []PeerStatus // without this peer, by name
}

// PeerStatus is how far one peer is.
type PeerStatus struct {
	Peer
	Step Step
	// Named reports whether the order names it, so that it gets the password. It is set,
	// too, if there is no order.
	Named bool
}

// Status returns the present state.
func (m *Machine) Status() (s Status) {
	target := m.held[0]
	s = Status{Target: target.ID, Time: target.time, Step: step(m.State(), target.ID)}
	s.Running = m.Running()
	if target.order != nil {
		s.By, s.Time = target.order.By, target.order.Time
	}
	for k, e := range m.peers {
		s.Peers = append(s.Peers, PeerStatus{e.Peer, step(e.state, target.ID), target.order == nil || target.order.names(k)})
	}
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int {
		return cmp.Or(a.Name.Compare(b.Name), a.Key.Compare(b.Key))
	})
	return s
}

func step(s State, id ID) Step {
	_, ok := s.accepts(id)
	switch {
	case len(s.Accepts) == 0:
		return Silent
	case !ok:
		return Behind
	case !s.offers(id):
		return Accepts
	case len(s.Accepts) > 1:
		return Offers
	}
	return Finished
}
