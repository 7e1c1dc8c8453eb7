package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/dial"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
)

// Status is the state of a Mesh for users and metrics.
type Status struct {
	Name     peer.Name
	Nickname string
	Instance uint64
	Port     uint16
	// Authenticated is set when the mesh has a password.
	Authenticated            bool
	ProtocolMin, ProtocolMax uint8
	Discover                 bool
	ConnLimit                int
	Targets                  []string
	Sessions                 []SessionStatus
	Candidates               []dial.Candidate
	Peers                    []PeerStatus
	Problems                 []Problem
	BannedBy                 []BannedBy
	Gossip                   gossip.Stats
	Terminations             uint64
	Relayed                  uint64
	UnicastDrops             uint64
	// Misbehaved counts the sessions ended because the peer sent what no honest peer
	// sends. Topology has the limits of what members can make this peer store.
	Misbehaved uint64
	// Evicted counts the sessions ended to make room for others.
	Evicted uint64
	// Unproved counts messages refused because their source was not proved.
	Unproved          uint64
	Topology          topology.Stats
	HandshakeFailures map[string]uint64 // by session.Code; "address" for those that Config.Refuse refused
	// Wanted is the number of sessions that are kept for their keys, MaxWanted their
	// limit, and Unwanted how often one more was refused.
	Wanted, MaxWanted int
	Unwanted          uint64
}

// SessionStatus is one session.
type SessionStatus struct {
	Peer     peer.Name
	Nickname string
	Addr     string // the far end
	Dialled  bool
	Relayed  bool // carried by other peers, for a link through address translation
	Cipher   string
	Since    time.Time
	RTT      time.Duration
	Queued   int // records that wait to be sent
	Dropped  uint64
}

// PeerStatus is one peer of the topology.
type PeerStatus struct {
	Name      peer.Name
	Nickname  string
	Instance  uint64
	Version   uint64
	Reachable bool
	Via       peer.Name       // next hop for frames, zero if there is none
	Links     []topology.Link // read-only
}

// Problem is a reason why two peers have no session, or why this peer did not take what a
// neighbour sent, for users.
type Problem struct {
	Text  string
	First time.Time
	Last  time.Time
	Count int

	peer   peer.Name  // the other peer, zero if it is unknown
	from   netip.Addr // its address, if it is unknown
	banned peer.KeyID // set if this peer refused that key because it is banned
	gossip bool       // set if it is about what a neighbour sent
}

// Status returns the present state of the mesh.
func (m *Mesh) Status() Status {
	s := Status{
		Name: m.self, Nickname: m.cfg.Nickname, Instance: m.instance, Port: m.hs.Port,
		Authenticated: len(m.cfg.Passwords) > 0, ProtocolMin: m.hs.Min, ProtocolMax: m.hs.Max,
		Discover: m.cfg.Discover, ConnLimit: m.cfg.ConnLimit,
		Terminations: m.counters.terminations.Load(), Relayed: m.counters.relayed.Load(),
		UnicastDrops: m.counters.unicastDrops.Load(), Misbehaved: m.counters.misbehaved.Load(), Topology: *m.topologyStats.Load(),
		Unproved:          m.counters.unproved.Load(),
		HandshakeFailures: make(map[string]uint64),
	}
	for c := session.CodeVersion; c <= session.CodeOther; c++ {
		s.HandshakeFailures[c.String()] = m.counters.handshakeFail[c].Load()
	}
	s.HandshakeFailures["address"] = m.counters.refusedAddrs.Load()
	s.Evicted = m.counters.evicted.Load()
	for _, n := range *m.neighbours.Load() {
		s.Sessions = append(s.Sessions, SessionStatus{
			Peer: n.name, Nickname: n.Peer.Nickname, Addr: n.RemoteAddr().String(), Dialled: n.Dialled, Relayed: n.relayed,
			Cipher: n.Cipher, Since: n.since, RTT: n.rtt(), Queued: len(n.control), Dropped: n.dropped.Load(),
		})
	}
	slices.SortFunc(s.Sessions, func(a, b SessionStatus) int { return a.Peer.Compare(b.Peer) })
	v := m.view.Load()
	for _, e := range v.entries {
		s.Peers = append(s.Peers, PeerStatus{
			Name: e.Name, Nickname: e.Nickname, Instance: e.Instance, Version: e.Version,
			Reachable: v.Reachable(e.Name), Via: v.data.Unicast[e.Name],
			Links: e.Links,
		})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Targets = m.maker.Targets()
	s.Candidates = m.maker.Status()
	s.Gossip = m.gossipStats()
	s.Wanted, s.MaxWanted, s.Unwanted = len(m.wantedSessions), maxWanted, m.counters.unwanted.Load()
	s.Problems = m.currentProblems()
	s.BannedBy = m.BannedBy()
	return s
}

// problems is a bounded set of Problems, by their text.
type problems struct{ all map[string]*Problem }

const (
	maxProblems    = 64
	maxProblemText = 512 // bytes; the reason may be that of a peer
	// problemTTL is how long a session that was refused is shown after the last time. A peer
	// dials again within dial.MaxDelay, which is less.
	problemTTL = 10 * time.Minute
	// gossipProblemTTL is the same for gossip. Each peer compares its state with two neighbours
	// every few seconds, so what is still wrong is refused again sooner.
	gossipProblemTTL = time.Minute
)

func (p *Problem) ttl() time.Duration {
	if p.gossip {
		return gossipProblemTTL
	}
	return problemTTL
}

// record adds a problem, which has no times yet, and reports whether it is new.
func (p *problems) record(x Problem, now time.Time) bool {
	x.Text = x.Text[:min(len(x.Text), maxProblemText)]
	if old := p.all[x.Text]; old != nil {
		x.First, x.Last, x.Count = old.First, now, old.Count+1
		*old = x
		return false
	}
	if len(p.all) >= maxProblems {
		return false
	}
	if p.all == nil {
		p.all = make(map[string]*Problem)
	}
	x.First, x.Last, x.Count = now, now, 1
	p.all[x.Text] = &x
	return true
}

func (p *problems) expire(now time.Time) {
	for k, v := range p.all {
		if now.Sub(v.Last) > v.ttl() {
			delete(p.all, k)
		}
	}
}

// forgetGossip forgets what a peer sent.
func (p *problems) forgetGossip(from peer.Name) {
	maps.DeleteFunc(p.all, func(_ string, x *Problem) bool { return x.gossip && x.peer == from })
}

// list returns the problems but those of which gone says that their cause is no more.
func (p *problems) list(gone func(*Problem) bool) []Problem {
	var l []Problem
	for _, v := range p.all {
		if !gone(v) {
			l = append(l, *v)
		}
	}
	slices.SortFunc(l, func(a, b Problem) int { return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.Text, b.Text)) })
	return l
}

// recordProblem adds a problem and reports whether it is new.
func (m *Mesh) recordProblem(x Problem) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.problems.record(x, time.Now())
}

// currentProblems returns the problems whose cause may still be there. The cause of a session that
// was refused, or that the other peer ended, is gone once there is another session with that
// peer, or with its address if the peer is unknown. If this peer refused one that is banned, the
// cause ends with the ban. Gossip that was refused may have been the reason to end the session, so it
// is shown for its time, unless the peer is banned; see endBanned. It is called with mu held.
func (m *Mesh) currentProblems() []Problem {
	neighbours := *m.neighbours.Load()
	since := make(map[netip.Addr]time.Time) // the start of the last session, by address
	for _, n := range neighbours {
		if a := addrPortOf(n.RemoteAddr()).Addr(); !n.relayed && n.since.After(since[a]) {
			since[a] = n.since
		}
	}
	now := time.Now()
	return m.problems.list(func(p *Problem) bool {
		n := neighbours[p.peer]
		switch {
		case now.Sub(p.Last) > p.ttl():
			return true
		case p.gossip:
			return false
		case p.banned != (peer.KeyID{}):
			return !m.IsBanned(p.banned)
		case p.peer.IsZero():
			return since[p.from].After(p.Last)
		}
		return n != nil && !n.relayed && n.since.After(p.Last)
	})
}
