package mesh

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

// A message of KindPunch travels between a peer and a neighbour that it has in common
// with another peer:
//
//	kind u8 | name 6 | IP 16 | port u16
//
//	0 ask      At which address do you see the UDP port of name? Tell name mine, too.
//	           IP and port are absent.
//	1 answer   The UDP port of name is seen at this address: send to it now.
//
// IPv4 addresses are in IPv6-mapped form; numbers are big-endian.
const (
	punchAsk    = 0
	punchAnswer = 1
	punchAskLen = 1 + peer.NameLen
	punchLen    = punchAskLen + 16 + 2

	// A neighbour may ask asksPerSecond times a second with a burst of asksBurst. Each
	// question makes this peer send a message to another one.
	asksPerSecond = 10
	asksBurst     = 200
)

// askToPunch asks one of the neighbours with which both peers have a link, a different
// one each time. It is called with mu held, by the end that started the session.
func (m *Mesh) askToPunch(n peer.Name) {
	between := m.view.Load().graph.Common(n, topology.LinkSession|topology.LinkData)
	if len(between) == 0 || !m.cfg.Discover || m.cfg.UDPAddr == nil {
		return
	}
	m.punches++
	_ = m.Send(between[m.punches%len(between)], KindPunch, append([]byte{punchAsk}, n[:]...))
}

// maxPendingAddrs bounds the addresses that wait for a session.
const maxPendingAddrs = 256

// punch handles a message of KindPunch from a neighbour.
func (m *Mesh) punch(n *neighbour, msg []byte) {
	switch {
	case len(msg) >= punchAskLen && msg[0] == punchAsk && m.cfg.UDPAddr != nil:
		about := peer.NameFromBytes(msg[1:])
		a, okA := m.cfg.UDPAddr(n.name)
		b, okB := m.cfg.UDPAddr(about)
		if okA && okB && n.name != about && n.asks.AllowN(time.Now(), 1) {
			_ = m.Send(n.name, KindPunch, appendPunch(about, b))
			_ = m.Send(about, KindPunch, appendPunch(n.name, a))
		}
	case len(msg) >= punchLen && msg[0] == punchAnswer:
		about := peer.NameFromBytes(msg[1:])
		addr := netip.AddrPortFrom(netip.AddrFrom16([16]byte(msg[7:23])).Unmap(), binary.BigEndian.Uint16(msg[23:]))
		m.punchedAt(n, about, addr)
	}
}

// punchedAt handles the address at which a neighbour says that it sees a peer. The
// neighbour must have links with both, as only then it sees packets of the peer; and the
// address must be one at which a peer may be, or the neighbour could direct packets of this
// peer at its own host.
func (m *Mesh) punchedAt(from *neighbour, about peer.Name, addr netip.AddrPort) {
	v := m.view.Load()
	if !m.dialable(addr) || !slices.Contains(v.graph.Common(about, topology.LinkSession|topology.LinkData), from.name) {
		m.counters.unicastDrops.Add(1)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := (*m.neighbours.Load())[about]; n != nil && n.relayed {
		m.setPunchedAddr(n, addr)
		m.wakeLoop()
	} else if n == nil && len(m.pendingAddrs) < maxPendingAddrs {
		m.pendingAddrs[about] = pendingAddr{addr, time.Now()} // so far the session is up only at the far end
	}
}

// pendingAddr is the address of a peer that arrived before the handshake with the peer
// was complete.
type pendingAddr struct {
	addr netip.AddrPort
	at   time.Time
}

// setPunchedAddr tells the router the address of a peer. It is called with mu held.
func (m *Mesh) setPunchedAddr(n *neighbour, addr netip.AddrPort) {
	before := n.punchedAddr.Swap(&addr)
	if m.data[n.name].up || before != nil && *before == addr {
		return // the router already uses it
	}
	up := n.up(addr)
	m.events = append(m.events, func(o Observer) { o.NeighbourUp(up) })
}

func appendPunch(about peer.Name, a netip.AddrPort) []byte {
	b := append([]byte{punchAnswer}, about[:]...)
	ip := a.Addr().As16()
	b = append(b, ip[:]...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}
