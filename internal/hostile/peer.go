// Package hostile is a peer that lies. It knows the password, or does not, and sends
// what no honest router sends, so that tests and weft lab hostile show what honest
// routers make of it.
//
// A Peer is one session, made with the real handshake under any identity. It answers
// pings, learns from gossip who is in the mesh, and sends what it is told. Messages are
// made by the packages of the router where these can lie: topology.State signs entries
// with any links, ring and names sign records of any owner. The few bytes around them
// are written here, as far as the drawings in mesh, gossip and ipam say.
//
// Floods are the attacks, each a function. An Attack runs one of them against some
// routers until its time is over.
package hostile

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
)

// Types of records of a session; see mesh/mesh.go.
const (
	recPing    = 0
	recPong    = 1
	recGossip  = 2
	recUnicast = 3
)

// Kinds of gossip messages; see mesh/gossip/engine.go.
const (
	gossipSum    = 0
	gossipDigest = 1
	gossipFinal  = 2
	gossipDelta  = 3
)

// maxHops is the highest hop limit that routers accept.
const maxHops = 64

// signedDomain is the domain of signatures of messages; see mesh/signed.go.
const signedDomain = "weft message"

// Identity is a name that this peer uses, with sessions of its own or made up. It is safe
// for concurrent use.
type Identity struct {
	*peer.Identity

	mu        sync.Mutex
	topo      *topology.State // as an honest peer of this name has it
	last      []byte          // its entry
	routers   []peer.Name     // with which it has sessions
	confirmed []peer.Name     // to which it says that it has links, besides
}

// Peer is a session of an identity with one router. It is safe for concurrent use.
type Peer struct {
	*session.Conn
	ID     *Identity
	Router peer.Name // at the other end

	attack    *Attack
	announced bool // used by the one that sends floods, as latest
	latest    []peer.Name
	ring      *ring.Ring // as this peer knows it; guarded by the lock of the identity
}

// Dial makes a session with the router at target under an identity. Its entry says that
// it has a link with the router, so that the router believes that it is a member.
func (a *Attack) Dial(ctx context.Context, target string, id *Identity) (*Peer, error) {
	nc, err := a.connect(ctx, target, false)
	if err != nil {
		return nil, err
	}
	c, err := a.shake(nc, id.Identity, a.psk)
	if err != nil {
		nc.Close()
		return nil, err
	}
	p := &Peer{Conn: c, ID: id, Router: c.Peer.Name, attack: a}
	id.mu.Lock()
	if !slices.Contains(id.routers, p.Router) {
		id.routers = append(id.routers, p.Router)
	}
	id.mu.Unlock()
	if err := p.Link(); err != nil {
		nc.Close()
		return nil, err
	}
	return p, nil
}

// shake makes a handshake over nc as the one who dialled.
func (a *Attack) shake(nc net.Conn, id *peer.Identity, psk session.PSK) (*session.Conn, error) {
	cfg, err := a.session(id, psk)
	if err != nil {
		return nil, err
	}
	return session.Dial(nc, cfg)
}

// Refuse answers a router that has dialled this peer, and refuses the session once it has
// proved its own key. It returns an error if the router went away before.
func (a *Attack) Refuse(nc net.Conn, id *Identity, code session.Code, reason string) error {
	cfg, err := a.session(id.Identity, a.psk)
	if err != nil {
		return err
	}
	refusal := &session.Refusal{Code: code, Reason: reason}
	cfg.Check = func(*session.Hello, bool) *session.Refusal { return refusal }
	if _, err = session.Accept(nc, cfg); errors.Is(err, refusal) {
		return nil
	}
	return err
}

// session returns the configuration of a handshake that wants each session.
func (a *Attack) session(id *peer.Identity, psk session.PSK) (*session.Config, error) {
	static, err := session.NewStatic(crand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a session key: %w", err)
	}
	return &session.Config{
		Self: id.Name, Nickname: a.cfg.Nickname, Instance: a.instance, Port: mesh.DefaultPort, Signer: id, Verifier: peer.Ed25519{},
		Static: static, Offer: psk, Accept: []session.PSK{psk}, Min: session.ProtocolMin, Max: session.ProtocolMax,
		Check: func(*session.Hello, bool) *session.Refusal { return nil }, Random: crand.Reader,
	}, nil
}

// database returns a database that signs entries of an identity, whose versions begin at
// a time.
func (a *Attack) database(id *peer.Identity, start time.Time) (*topology.State, error) {
	s, err := topology.New(topology.Config{
		Self: id.Name, Nickname: a.cfg.Nickname, Instance: a.instance, Signer: id, Verifier: peer.Ed25519{}, Book: believer{}, Start: start,
	})
	if err == nil {
		s.SetAddrs(a.cfg.Addrs)
	}
	return s, err
}

// believer is a book that believes every key.
type believer struct{}

func (believer) Check(peer.Name, peer.Key) error          { return nil }
func (believer) Bind(peer.Name, peer.Key, peer.Via) error { return nil }
func (believer) Hold(peer.Name)                           {}
func (believer) Release(peer.Name)                        {}

// Read answers pings and learns the topology and the ring until the session ends.
func (p *Peer) Read() error {
	var compared time.Time
	for {
		rec, err := p.ReadRecord()
		switch {
		case err != nil:
			return err
		case len(rec) > 0 && rec[0] == recPing:
			if err := p.Send(append([]byte{recPong}, rec[1:]...)); err != nil {
				return err
			}
		case len(rec) > 3 && rec[0] == recGossip && rec[2] == mesh.ChannelTopology:
			p.ID.mu.Lock()
			p.ID.topo.SetTime(time.Now())
			if rec[1] == gossipDelta {
				_, _ = p.ID.topo.Merge(p.Router, rec[3:]) // what it refuses it need not know
			}
			digest := p.ID.topo.Digest()
			p.ID.mu.Unlock()
			// The answer to a digest is what this peer lacks.
			if rec[1] != gossipDelta && time.Since(compared) > time.Second {
				compared = time.Now()
				if err := p.Gossip(gossipFinal, mesh.ChannelTopology, digest); err != nil {
					return err
				}
			}
		case len(rec) > 3 && rec[0] == recGossip && rec[2] == mesh.ChannelRing:
			p.ID.mu.Lock()
			digest := p.learnRing(rec[1], rec[3:])
			p.ID.mu.Unlock()
			if digest != nil {
				if err := p.Gossip(gossipFinal, mesh.ChannelRing, digest); err != nil {
					return err
				}
			}
		}
	}
}

// Known returns the entries of the peers in the mesh, as far as gossip brought them.
func (p *Peer) Known() (entries []*topology.Entry) {
	p.ID.mu.Lock()
	defer p.ID.mu.Unlock()
	for _, e := range p.ID.topo.Entries() {
		if e.Name != p.ID.Name && !p.attack.isMadeUp(e.Name) {
			entries = append(entries, e)
		}
	}
	return entries
}

// Send sends one record.
func (p *Peer) Send(rec []byte) error {
	if err := p.WriteRecord(rec); err != nil {
		return err
	}
	p.attack.sent.Add(1)
	return nil
}

// Gossip sends a message of a kind on a channel.
func (p *Peer) Gossip(kind, channel byte, body []byte) error {
	return p.Send(append([]byte{recGossip, kind, channel}, body...))
}

// Unicast sends a message for a peer, which says that it comes from another one.
func (p *Peer) Unicast(to, from peer.Name, hops byte, k mesh.Kind, payload []byte) error {
	rec := append([]byte{recUnicast}, to[:]...)
	rec = append(rec, from[:]...)
	return p.Send(append(append(rec, hops, byte(k)), payload...))
}

// Signed sends a message that an identity signs as its source.
func (p *Peer) Signed(from *Identity, to peer.Name, k mesh.Kind, payload []byte) error {
	b := binary.BigEndian.AppendUint64(nil, p.attack.instance)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()))
	b = binary.BigEndian.AppendUint64(b, p.attack.numbers.Add(1))
	b = append(b, payload...)
	msg := append(append(append([]byte{}, to[:]...), from.Name[:]...), byte(k))
	sig := from.Sign(signedDomain, append(msg, b...))
	return p.Unicast(to, from.Name, maxHops, k, append(b, sig[:]...))
}

// Link says in the entry of this peer that it has sessions with its routers, and with
// these peers from now on, if there are any.
func (p *Peer) Link(to ...peer.Name) error {
	p.ID.mu.Lock()
	if len(to) > 0 {
		p.ID.confirmed = to
	}
	delta := p.ID.entry(slices.Concat(p.ID.routers, p.ID.confirmed))
	p.ID.mu.Unlock()
	return p.Gossip(gossipDelta, mesh.ChannelTopology, delta)
}

// entry returns the entry with links to these peers. It is called with mu held.
func (id *Identity) entry(to []peer.Name) []byte {
	id.topo.SetTime(time.Now())
	if delta := id.topo.SetLinks(sessionsWith(to)); delta != nil {
		id.last = delta
	}
	return id.last // as it was; not every router may know it
}

// sessionsWith returns links as an entry states them.
func sessionsWith(names []peer.Name) (links []topology.Link) {
	for _, n := range names {
		links = append(links, topology.Link{To: n, Flags: topology.LinkSession | topology.LinkData})
	}
	return links
}
