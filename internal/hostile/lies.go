package hostile

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/peer"
)

// NewIdentity returns a fresh identity, under another name than its key gives unless name is
// zero.
func (a *Attack) NewIdentity(name peer.Name) (*Identity, error) {
	id, err := peer.NewIdentity(crand.Reader)
	if err != nil {
		return nil, err
	}
	if !name.IsZero() {
		id.Name = name
	}
	topo, err := a.database(id, time.Now())
	if err != nil {
		return nil, err
	}
	return &Identity{Identity: id, topo: topo}, nil
}

// MadeUp returns the made-up peer of a number, from 0. It has no session.
func (a *Attack) MadeUp(i int) (*Identity, error) { return a.made(i) }

// Announce sends the entry of an identity, signed by its key, with links to some peers.
func (p *Peer) Announce(id *Identity, to ...peer.Name) error {
	delta, err := p.attack.entry(id, to, 0)
	if err != nil {
		return err
	}
	return p.Gossip(gossipDelta, mesh.ChannelTopology, delta)
}

// HostNames announces host names of an identity.
func (p *Peer) HostNames(id *Identity, in ...names.Entry) error {
	return p.changeNames(names.New(names.Config{Self: id.Name, Signer: id, Verifier: peer.Ed25519{}, Start: time.Now()}), in)
}

// changeNames adds entries to the names of a state, and announces them.
func (p *Peer) changeNames(s *names.State, in []names.Entry) error {
	deltas, err := s.Change(nil, in)
	if err != nil {
		return err
	}
	return p.spread(mesh.ChannelNames, deltas)
}

// Bindings announces bindings of an identity in the place of those that it announced before.
func (p *Peer) Bindings(id *Identity, list ...bindings.Binding) error {
	return p.bind(newBindings(id), list)
}

func newBindings(id *Identity) *bindings.State {
	return bindings.New(bindings.Config{
		Self: id.Name, Signer: id, Verifier: peer.Ed25519{}, Start: time.Now(),
		OwnerOf: func(netip.Addr) (peer.Name, bool) { return id.Name, true },
	})
}

func newGroups(id *Identity) *groups.State {
	return groups.New(groups.Config{Self: id.Name, Signer: id, Verifier: peer.Ed25519{}, Start: time.Now()})
}

func (p *Peer) bind(s *bindings.State, list []bindings.Binding) error {
	deltas, err := s.Announce(list)
	if err != nil {
		return err
	}
	return p.spread(mesh.ChannelBindings, deltas)
}

// spread sends deltas of a channel.
func (p *Peer) spread(channel byte, deltas [][]byte) error {
	for _, d := range deltas {
		if err := p.Gossip(gossipDelta, channel, d); err != nil {
			return err
		}
	}
	return nil
}

// IPAM is the kind of messages between allocators.
const IPAM = mesh.KindIPAM

// SignedTo sends a message between allocators, which this peer signs, to a peer.
func (p *Peer) SignedTo(to peer.Name, msg []byte) error { return p.Signed(p.ID, to, IPAM, msg) }

// gullible is a Verifier that believes every signature.
type gullible struct{}

func (gullible) Verify(peer.Key, string, []byte, peer.Signature) bool { return true }

// errNoRing is the error of lies about a ring that this peer has not heard of yet.
var errNoRing = errors.New("no ring is known yet")

// WithRing calls f with what this peer knows of the ring of addresses.
func (p *Peer) WithRing(f func(r *ring.Ring) error) error {
	p.ID.mu.Lock()
	defer p.ID.mu.Unlock()
	if p.ring == nil || !p.ring.Ready() {
		return errNoRing
	}
	return f(p.ring)
}

// Decree sends a decision of the ring that only this peer made. It signs the vote of each
// voter with its own key.
func (p *Peer) Decree(actions ...*ring.Action) error {
	return p.WithRing(func(r *ring.Ring) error {
		body := r.Body(actions)
		if body == nil {
			return errors.New("the actions have no effect")
		}
		id := r.Genesis().ID()
		var votes []ring.Vote
		for i := range r.Voters() {
			msg := ring.VoteMessage(id, r.Slot()+1, 0, ring.BodyID(body))
			votes = append(votes, ring.Vote{Voter: i, Key: p.ID.Key(), Sig: p.ID.Sign(ring.VoteDomain, msg)})
		}
		raw := ring.NewDecision(body, 0, votes)
		return p.Gossip(gossipDelta, mesh.ChannelRing, ringRecord(id, raw))
	})
}

// FirstRing sends entries of an election of the first ring in which this peer alone has
// chosen itself, and expects no other voter.
func (p *Peer) FirstRing(over netip.Prefix) error {
	self := ring.HolderOf(p.ID.Name, p.ID.Key())
	el, err := paxos.NewElection(paxos.Config{
		Self: p.ID.Name, Signer: p.ID, Verifier: peer.Ed25519{}, Instance: append([]byte("first ring of "), over.String()...),
		Expect: 1, Now: time.Now,
		Eligible:   func(ring.Holder) bool { return true },
		Host:       func(ring.Holder) netip.Addr { return netip.Addr{} },
		Value:      func([]ring.Holder) []byte { return self.Append(nil) },
		Acceptable: func([]byte) error { return nil },
		SealMessage: func([]byte) (string, []byte) {
			g, err := ring.NewGenesis(over, []ring.Holder{self})
			if err != nil {
				return "", nil
			}
			return ring.VoteDomain, g.VoteMessage()
		},
	}, nil, nil)
	if err != nil {
		return err
	}
	el.Propose()
	el.Hurry()
	if _, chosen := el.Chosen(); !chosen {
		return errors.New("an election with one voter chose nothing")
	}
	deltas, _, err := el.Missing(nil, gossip.MaxDelta)
	if err != nil {
		return err
	}
	for _, d := range deltas {
		if err := p.Gossip(gossipDelta, mesh.ChannelRing, append([]byte{deltaElection}, d...)); err != nil {
			return err
		}
	}
	g, err := ring.NewGenesis(over, []ring.Holder{self})
	if err != nil {
		return fmt.Errorf("make a ring: %w", err)
	}
	vote, _ := g.Sign(p.ID, self)
	raw := (&ring.Action{Kind: ring.Adopt, Genesis: g.WithVotes([]ring.Vote{vote})}).Encode()[1:]
	return p.Gossip(gossipDelta, mesh.ChannelRing, ringRecord(g.ID(), raw))
}

// What a delta of a ring or of its election begins with; see ipam/channel.go.
const (
	deltaRing     = 1
	deltaElection = 2
)

// ringRecord is a delta with one record of a ring; see ipam/ring/ring.go.
func ringRecord(id ring.ID, raw []byte) []byte {
	delta := append([]byte{deltaRing, 1}, id[:]...)
	return append(binary.BigEndian.AppendUint16(delta, uint16(len(raw))), raw...)
}

// learnRing merges what a router says of the ring. It is called with the lock of the
// identity held.
func (p *Peer) learnRing(kind byte, body []byte) (digest []byte) {
	if p.ring == nil {
		p.ring = ring.New(p.attack.cfg.Range, gullible{}, nil)
	}
	if kind == gossipDelta {
		if body[0] == deltaRing {
			_, _ = p.ring.Merge(slices.Clone(body[1:])) // what it refuses it need not know
		}
		return nil
	}
	return append(ring.EncodeRange(p.attack.cfg.Range), p.ring.Digest()...)
}
