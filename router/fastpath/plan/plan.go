package plan

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// Hop is a neighbour that frames may be sent to over the fast path.
type Hop struct {
	Remote, Local netip.Addr // outer addresses
	Gateway       netip.Addr // next hop on the underlay
	Ifindex       int        // of the interface of the underlay
	MTU           int        // largest IP packet inside, in bytes
	Up            bool       // it answers probes; else frames are accepted from it, but not sent to it
	Express       bool       // frames may bypass the VXLAN device
	Direct        bool       // so may frames that crossed the bridge
	// Encaps are those of packets of each family between known addresses. Accepts: plain packets may
	// come from it, and probes by them may be sent to it.
	Encaps  [2]Encap
	Accepts bool
}

// Plain reports whether any packets go to the neighbour without VXLAN.
func (h *Hop) Plain() bool { return h.Encaps != [2]Encap{} }

// Peer is how frames for a peer leave this host. It is comparable.
type Peer struct {
	Hop         // of the next hop; zero if the kernel sends it nothing
	Next uint16 // its short id, 0 if the kernel sends it nothing
	// From are the short ids of the neighbours that may relay frames of the peer, in
	// order, then zeros. FromAny: there are too many, so any neighbour may.
	From    [MaxFrom]uint16
	FromAny bool
}

// Carries reports whether the kernel sends frames for the peer.
func (p *Peer) Carries() bool { return p.Up || p.Plain() }

// MaxFrom is how many neighbours Peer.From has space for.
const MaxFrom = 16

// Remote is the neighbour at an outer address.
type Remote struct {
	Peer  uint16
	Local netip.Addr
	Key   peer.Key // that it proved; Plan leaves it zero
}

// Tables are the contents of the maps in the kernel.
type Tables struct {
	Peers   map[uint16]Peer // of every peer that has a short id
	Remotes map[netip.Addr]Remote
}

// Plan computes the tables. ids are the peers that have a short id, next the next
// hop to each peer that is reached, hops the willing neighbours by name, and from the
// neighbours over which frames of a peer may come besides those that it sends itself.
// Neighbours without a known id are left out. If two neighbours have one address, as
// behind one address translator, neither is fast, because their frames could not be
// distinguished.
func Plan(self peer.Name, ids map[peer.Name]uint16, next map[peer.Name]peer.Name, hops map[peer.Name]Hop, from func(peer.Name) []peer.Name) Tables {
	t := Tables{Peers: make(map[uint16]Peer), Remotes: make(map[netip.Addr]Remote)}
	shared := make(map[netip.Addr]int)
	for _, h := range hops {
		shared[h.Remote]++
	}
	usable := func(n peer.Name) (Hop, uint16, bool) {
		h, ok := hops[n]
		return h, ids[n], ok && ids[n] != 0 && shared[h.Remote] == 1
	}
	for n := range hops {
		if h, id, ok := usable(n); ok {
			t.Remotes[h.Remote] = Remote{Peer: id, Local: h.Local}
		}
	}
	for n, id := range ids {
		if n == self || id == 0 {
			continue
		}
		p := Peer{}
		if via, ok := next[n]; ok {
			if h, hid, ok := usable(via); ok && (h.Up || n == via && (h.Plain() || h.Accepts)) {
				p.Hop, p.Next = h, hid
			}
			if n != via { // plain packets go to the host of the container
				p.Encaps, p.Accepts = [2]Encap{}, false
			}
		}
		p.From, p.FromAny = relays(ids, from(n))
		t.Peers[id] = p
	}
	return t
}

// relays returns Peer.From and Peer.FromAny.
func relays(ids map[peer.Name]uint16, neighbours []peer.Name) (from [MaxFrom]uint16, any bool) {
	var list []uint16
	for _, n := range neighbours {
		if id := ids[n]; id != 0 {
			list = append(list, id)
		}
	}
	if len(list) > MaxFrom {
		return from, true
	}
	slices.Sort(list)
	copy(from[:], list)
	return from, false
}

// Changes are the writes that turn one Tables into another, in the order in which
// they must be made: no frame is sent to a peer that does not expect it, and a
// neighbour is known before frames use it.
type Changes struct {
	DeletePeers   []uint16
	PutRemotes    []netip.Addr
	PutPeers      []uint16
	DeleteRemotes []netip.Addr
}

// Empty reports whether there are no changes.
func (c *Changes) Empty() bool {
	return len(c.DeletePeers)+len(c.PutRemotes)+len(c.PutPeers)+len(c.DeleteRemotes) == 0
}

// Diff returns the changes from old to t.
func (t Tables) Diff(old Tables) (c Changes) {
	for _, id := range slices.Sorted(maps.Keys(old.Peers)) {
		if _, ok := t.Peers[id]; !ok {
			c.DeletePeers = append(c.DeletePeers, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(t.Peers)) {
		if p, ok := old.Peers[id]; !ok || p != t.Peers[id] {
			c.PutPeers = append(c.PutPeers, id)
		}
	}
	addrs := func(m map[netip.Addr]Remote) []netip.Addr {
		return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
	}
	for _, a := range addrs(t.Remotes) {
		if r, ok := old.Remotes[a]; !ok || r != t.Remotes[a] {
			c.PutRemotes = append(c.PutRemotes, a)
		}
	}
	for _, a := range addrs(old.Remotes) {
		if _, ok := t.Remotes[a]; !ok {
			c.DeleteRemotes = append(c.DeleteRemotes, a)
		}
	}
	return c
}

// Writer writes to the kernel's maps.
type Writer interface {
	PutPeer(id uint16, p Peer) error
	DeletePeer(id uint16) error
	PutRemote(a netip.Addr, r Remote) error
	DeleteRemote(a netip.Addr) error
}

// Apply writes the changes of Diff from have to t, in their order, and updates have.
// A failed write leaves its entry as it was and is retried by the next Apply. The
// other writes are made.
func (t Tables) Apply(have Tables, w Writer) error {
	var errs []error
	done := func(what string, key any, err error) bool {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %v: %w", what, key, err))
		}
		return err == nil
	}
	c := t.Diff(have)
	for _, id := range c.DeletePeers {
		if done("delete peer", id, w.DeletePeer(id)) {
			delete(have.Peers, id)
		}
	}
	for _, a := range c.PutRemotes {
		if done("put remote", a, w.PutRemote(a, t.Remotes[a])) {
			have.Remotes[a] = t.Remotes[a]
		}
	}
	for _, id := range c.PutPeers {
		if done("put peer", id, w.PutPeer(id, t.Peers[id])) {
			have.Peers[id] = t.Peers[id]
		}
	}
	for _, a := range c.DeleteRemotes {
		if done("delete remote", a, w.DeleteRemote(a)) {
			delete(have.Remotes, a)
		}
	}
	return errors.Join(errs...)
}
