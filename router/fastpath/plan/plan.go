package plan

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// Hop is a neighbour to which frames may go by the fast datapath.
type Hop struct {
	Remote, Local netip.Addr // outer addresses
	Gateway       netip.Addr // neighbour on the underlay that packets go to
	Ifindex       int        // of the underlay's interface
	MTU           int        // largest IP packet inside, in bytes
	Up            bool       // it answers; else it may only send
	Express       bool       // frames may pass by the VXLAN device
	Direct        bool       // and so may those that have crossed the bridge
}

// Peer is how frames for a peer leave this host. It is comparable.
type Peer struct {
	Hop         // of the next hop; zero if not fast
	Next uint16 // its short id, 0 if not fast
}

// Remote is the neighbour at an outer address.
type Remote struct {
	Peer  uint16
	Local netip.Addr
}

// Tables are what the maps in the kernel hold.
type Tables struct {
	Peers   map[uint16]Peer // of every peer that has a short id
	Remotes map[netip.Addr]Remote
}

// Plan works the tables out: ids are the peers that have a short id, next the
// next hop to each peer that is reached, hops the neighbours that are willing,
// by name. Neighbours that no id is known of are left out. If two neighbours are
// at one address (behind one translator), neither is fast: their frames could not
// be told apart.
func Plan(self peer.Name, ids map[peer.Name]uint16, next map[peer.Name]peer.Name, hops map[peer.Name]Hop) Tables {
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
			if h, hid, ok := usable(via); ok && h.Up {
				p = Peer{Hop: h, Next: hid}
			}
		}
		t.Peers[id] = p
	}
	return t
}

// Changes is what makes one Tables of another, in the order in which it must be
// done: nothing is sent to where it is not expected, and what is reached again is
// known before it is used.
type Changes struct {
	DeletePeers   []uint16
	PutRemotes    []netip.Addr
	PutPeers      []uint16
	DeleteRemotes []netip.Addr
}

// Empty reports that nothing must be done.
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

// Apply brings the maps from have to t by the changes of Diff, in their order,
// and have with them. What cannot be written stays as it was, and is tried again
// with the next Apply; the rest is done.
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
