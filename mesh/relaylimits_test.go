package mesh

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

// unicastRecord is a message as a member may send it.
func unicastRecord(to, from peer.Name, hops byte, k Kind, msg string) []byte {
	return slices.Concat([]byte{recUnicast}, to[:], from[:], []byte{hops, byte(k)}, []byte(msg))
}

// Messages whose source is not in the mesh, or cannot come over this neighbour, are dropped,
// at the relay and at the destination.
func TestMessagesOfUnknownSourcesAreDropped(t *testing.T) {
	t.Parallel()
	a := start(t, noDiscovery)
	evil := start(t, noDiscovery, to(a))
	c := start(t, noDiscovery, to(a))
	for _, n := range []*node{a, evil, c} {
		eventually(t, "a star", func() bool { return n.sees(a, evil, c) })
	}
	nobody := peer.Name{2, 0xee}
	drops := a.Status().UnicastDrops
	for _, rec := range [][]byte{
		unicastRecord(a.Self(), nobody, maxHops, KindIPAM, "nobody"),
		unicastRecord(c.Self(), nobody, maxHops, KindIPAM, "nobody, relayed"),
		unicastRecord(a.Self(), a.Self(), maxHops, KindIPAM, "itself"),
		unicastRecord(a.Self(), evil.Self(), 255, KindIPAM, "too many hops"),
		unicastRecord(a.Self(), c.Self(), maxHops, KindLink, "link of another"),
		unicastRecord(a.Self(), c.Self(), maxHops, KindPunch, "punch of another"),
		unicastRecord(evil.Self(), evil.Self(), maxHops, KindIPAM, "back"),
		unicastRecord(a.Self(), evil.Self(), maxHops, KindIPAM, "good"),
	} {
		if err := evil.direct(a.Self()).push(rec); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{evil.Self().String() + " good"}
	eventually(t, "the good message arrives", func() bool { return slices.Equal(a.received(), want) })
	if got := a.Status().UnicastDrops - drops; got != 7 {
		t.Errorf("%d messages dropped, want 7", got)
	}
	if got := c.received(); len(got) != 0 {
		t.Errorf("relayed: %q", got)
	}
}

func TestShortMessageEndsTheSession(t *testing.T) {
	t.Parallel()
	a := start(t, noDiscovery)
	evil := start(t, noDiscovery, to(a))
	eventually(t, "a session", func() bool { return a.sees(evil) && evil.sees(a) })
	if err := evil.direct(a.Self()).push([]byte{recUnicast, 1, 2}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session ends", func() bool { return a.Status().Misbehaved == 1 })
	eventually(t, "evil is told", evil.hasProblem("shorter than its header"))
}

// One source, and one neighbour, bring a limited number of messages, whatever names they
// show. Other neighbours are not concerned.
func TestMessagesThatANeighbourBringsAreLimited(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	l := newInLimits()
	count := func(n int, source func(i int) peer.Name) (allowed int) {
		for i := range n {
			if l.allow(source(i), now) {
				allowed++
			}
		}
		return allowed
	}
	one := func(int) peer.Name { return peer.Name{2, 1} }
	many := func(i int) peer.Name { return peer.Name{2, 2, byte(i % 250)} }
	if got := count(10*sourceBurst, one); got != sourceBurst {
		t.Errorf("%d messages of one source at once, want %d", got, sourceBurst)
	}
	if got := count(10*bringBurst, many); got != bringBurst-sourceBurst {
		t.Errorf("%d messages of many sources at once, want %d", got, bringBurst-sourceBurst)
	}
	count(3*maxBrought, func(i int) peer.Name { return peer.Name{2, 3, byte(i >> 8), byte(i)} })
	if len(l.sources) > maxBrought {
		t.Errorf("%d sources are kept, want at most %d", len(l.sources), maxBrought)
	}
	now = now.Add(time.Hour)
	if got := count(10, one); got != 10 {
		t.Errorf("%d of 10 messages an hour later", got)
	}
	var waited time.Duration
	for range 2 * recordsBurst {
		waited = l.pause(now)
	}
	if waited != time.Second {
		t.Errorf("a flood of records is read with pauses of %v", waited)
	}
}

// Messages that are relayed leave half of the queue to this peer's own ones.
func TestRelayedMessagesLeaveSpaceInTheQueue(t *testing.T) {
	t.Parallel()
	n := &neighbour{control: make(chan []byte, MaxControl)}
	for !n.crowded() {
		if err := n.push([]byte("relayed")); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.control) != MaxControl/2 {
		t.Errorf("crowded with %d of %d", len(n.control), MaxControl)
	}
	n = &neighbour{control: make(chan []byte, MaxControl)}
	for !n.crowded() {
		_ = n.push(make([]byte, MaxUnicast))
	}
	if got := n.queued.Load(); got > maxControlBytes/2+MaxUnicast {
		t.Errorf("crowded with %d of %d bytes", got, maxControlBytes)
	}
}

// A neighbour says at which address another peer is to be found. It is believed only if it
// has links with both, and not about addresses where no peer can be.
func TestPunchAnswersMustBePlausible(t *testing.T) {
	t.Parallel()
	seen := func(n peer.Name) (netip.AddrPort, bool) {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, n[4], n[5]}), 6783), true
	}
	hub := start(t, noDiscovery, udp(seen))
	a, b := start(t, noDiscovery, to(hub), udp(seen)), start(t, noDiscovery, to(hub), udp(seen))
	for _, n := range []*node{hub, a, b} {
		eventually(t, "a star", func() bool { return n.sees(hub, a, b) })
	}
	say := func(about peer.Name, addr string) {
		t.Helper()
		if err := hub.Send(a.Self(), KindPunch, appendPunch(about, netip.MustParseAddrPort(addr))); err != nil {
			t.Fatal(err)
		}
	}
	pending := func() int {
		a.Mesh.mu.Lock()
		defer a.Mesh.mu.Unlock()
		return len(a.pendingAddrs)
	}
	drops := a.Status().UnicastDrops
	say(b.Self(), "10.0.0.1:6783") // the two have no links yet
	eventually(t, "it is dropped", func() bool { return a.Status().UnicastDrops == drops+1 })
	for _, n := range []*node{a, b} {
		n.SetData(hub.Self(), true, time.Millisecond)
		hub.SetData(n.Self(), true, time.Millisecond)
	}
	eventually(t, "links", func() bool {
		return len(a.View().graph.Common(b.Self(), 3)) == 1
	})
	a.loopback.Store(false)
	for _, addr := range []string{"127.0.0.1:22", "0.0.0.0:1", "224.0.0.1:5", "10.0.0.1:0", "255.255.255.255:9", "[fe80::1]:1"} {
		say(b.Self(), addr)
	}
	say(peer.Name{2, 0xee}, "10.0.0.1:6783")
	eventually(t, "all are dropped", func() bool { return a.Status().UnicastDrops == drops+8 })
	if n := pending(); n != 0 {
		t.Errorf("%d addresses are believed", n)
	}
	say(b.Self(), "10.0.0.1:6783")
	eventually(t, "a plausible one is believed", func() bool { return pending() == 1 })
}

// Link messages that the router does not take in time are dropped, and the rest of the mesh
// does not wait.
func TestLinkMessagesThatWaitAreBounded(t *testing.T) {
	t.Parallel()
	m := &Mesh{loopWake: make(chan struct{}, 1)}
	n := &neighbour{name: peer.Name{2, 1}}
	for range 2 * maxLinkMessages {
		m.linkMessage(n, []byte("x"))
	}
	if len(m.events) != maxLinkMessages || m.counters.unicastDrops.Load() != maxLinkMessages {
		t.Errorf("%d wait, %d were dropped", len(m.events), m.counters.unicastDrops.Load())
	}
	other := &node{t: t, up: make(map[peer.Name]Neighbour)}
	for _, f := range m.events {
		f(other)
	}
	m.events = nil
	if len(other.links) != maxLinkMessages || n.linkMessages.Load() != 0 || n.linkBytes.Load() != 0 {
		t.Errorf("%d arrived, %d with %d bytes are still counted", len(other.links), n.linkMessages.Load(), n.linkBytes.Load())
	}
	for range maxLinkMessages {
		m.linkMessage(n, make([]byte, MaxUnicast))
	}
	if got := n.linkBytes.Load(); got > maxLinkBytes || len(m.events) == 0 {
		t.Errorf("%d bytes wait in %d messages", got, len(m.events))
	}
}

// While a neighbour floods entries of peers that do not exist, sessions stay, newcomers get
// in, and nothing of the flood is stored.
func TestFloodOfEntriesDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	a := start(t)
	evil := start(t, to(a))
	b := start(t, to(a))
	eventually(t, "a mesh", func() bool { return a.sees(evil, b) && evil.sees(a, b) && b.sees(a, evil) })
	for i := range 3000 {
		evil.Announce(ChannelTopology, madeUpEntry(t, i))
	}
	eventually(t, "the flood arrives", func() bool { return a.Status().Topology.Waiting > 100 })
	c := start(t, to(b))
	eventually(t, "a newcomer is seen by all", func() bool { return a.sees(evil, b, c) && b.sees(a, evil, c) && c.sees(a, evil, b) })
	if st := a.Status(); len(st.Peers) != 4 || st.Terminations != 0 {
		t.Errorf("%d peers, %d sessions ended", len(st.Peers), st.Terminations)
	}
}

// madeUpEntry returns the entry of a peer that does not exist.
func madeUpEntry(t *testing.T, i int) []byte {
	t.Helper()
	var seed [32]byte
	seed[0], seed[1] = byte(i), byte(i>>8)
	id, err := peer.IdentityFromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	s, err := topology.New(topology.Config{Self: id.Name, Signer: id, Verifier: peer.Ed25519{}, Book: new(peer.Book), Start: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return s.SetLinks([]topology.Link{{To: peer.Name{2, 0xee}, Flags: topology.LinkSession}})
}
