package mesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	unicastHeader = 2*peer.NameLen + 2
	// maxHops bounds how often a message is relayed while the routes of different
	// peers do not agree.
	maxHops = 64
)

// ErrUnreachable is the cause when no path leads to a peer.
var ErrUnreachable = errors.New("no path leads to the peer")

// Send sends msg to another peer over any number of hops. It does not block, and the
// message may be lost. Messages between neighbours stay in order. Send does not keep
// msg.
func (m *Mesh) Send(to peer.Name, k Kind, msg []byte) error {
	if len(msg) > MaxUnicast {
		return fmt.Errorf("send %d bytes to peer %s: at most %d", len(msg), to, MaxUnicast)
	}
	rec := make([]byte, 0, 1+unicastHeader+len(msg))
	rec = append(rec, recUnicast)
	rec = append(rec, to[:]...)
	rec = append(rec, m.self[:]...)
	rec = append(rec, maxHops, byte(k))
	rec = append(rec, msg...)
	if err := m.forward(to, rec, k); err != nil {
		m.counters.unicastDrops.Add(1)
		return fmt.Errorf("send to peer %s: %w", to, err)
	}
	return nil
}

// sender returns Send for one kind.
func (m *Mesh) sender(k Kind) func(peer.Name, []byte) error {
	return func(to peer.Name, msg []byte) error { return m.Send(to, k, msg) }
}

// handleStreams passes messages of a kind to a stream.Mux.
func (m *Mesh) handleStreams(k Kind, receive func(peer.Name, []byte) error) {
	m.Handle(k, func(from peer.Name, msg []byte) {
		if err := receive(from, msg); err != nil {
			m.counters.unicastDrops.Add(1)
			m.log.Debug("stream message refused", "from", from, "err", err) // anybody could fill the log
		}
	})
}

// relayable reports whether other peers may relay messages of this kind.
func (k Kind) relayable() bool { return k != KindLink && k != KindPunch && k != KindPassword }

// forward queues a record for the next hop towards a peer.
func (m *Mesh) forward(to peer.Name, rec []byte, k Kind) error {
	n := m.nextHop(to, k)
	if n == nil {
		return ErrUnreachable
	}
	return n.push(rec)
}

// nextHop returns the neighbour that gets a message for a peer, nil if there is none.
func (m *Mesh) nextHop(to peer.Name, k Kind) *neighbour {
	n := m.direct(to)
	switch {
	case n != nil:
	case k.relayable():
		n = m.direct(m.view.Load().control.Unicast[to])
	case k == KindLink: // the one kind that a relayed session carries
		n = (*m.neighbours.Load())[to]
	}
	return n
}

// unicast handles a message from a neighbour, for this peer or for another one. body is
// borrowed. An error ends the session.
func (m *Mesh) unicast(n *neighbour, body []byte) error {
	if len(body) < unicastHeader {
		return fmt.Errorf("message of %d bytes: %w", len(body), errShortMessage)
	}
	to, from := peer.NameFromBytes(body), peer.NameFromBytes(body[peer.NameLen:])
	hops, kind := body[2*peer.NameLen], Kind(body[2*peer.NameLen+1])
	if !m.plausible(n, from, hops, kind) || from != n.name && !n.limits.allow(from, time.Now()) {
		m.counters.unicastDrops.Add(1)
		return nil
	}
	if to != m.self {
		m.relay(n, to, kind, body)
		return nil
	}
	msg := slices.Clone(body[unicastHeader:])
	switch {
	case kind == KindLink: // in order with NeighbourUp and NeighbourDown
		m.linkMessage(n, msg)
		return nil
	case kind == KindPunch:
		m.punch(n, msg)
		return nil
	case n.relayed:
		m.counters.unicastDrops.Add(1) // a relayed session is only for the link
		return nil
	}
	f := m.handlers[kind]
	if f == nil {
		return nil
	}
	if m.signed.kinds[kind] {
		payload, err := m.receiveSigned(n, from, kind, msg)
		if err != nil {
			m.counters.unproved.Add(1)
			m.log.Debug("signed message refused", "peer", from, "from", n.name, "err", err)
			return nil
		}
		msg = payload
	}
	f(from, msg)
	return nil
}

var errShortMessage = errors.New("shorter than its header")

// plausible reports whether a neighbour may have a message of that source. This is no proof:
// a relay can put any source that it may have into a message.
func (m *Mesh) plausible(n *neighbour, from peer.Name, hops byte, kind Kind) bool {
	switch {
	case from == n.name:
		return hops <= maxHops
	case !kind.relayable() || from == m.self || hops > maxHops || n.relayed:
		return false
	}
	return m.view.Load().Reachable(from)
}

// relay passes a message of a neighbour on towards a peer.
func (m *Mesh) relay(n *neighbour, to peer.Name, kind Kind, body []byte) {
	hop := m.nextHop(to, kind)
	if body[2*peer.NameLen] <= 1 || !kind.relayable() || n.relayed || hop == nil || hop == n || hop.crowded() {
		m.counters.unicastDrops.Add(1)
		return
	}
	rec := append([]byte{recUnicast}, body...)
	rec[1+2*peer.NameLen]--
	if hop.push(rec) != nil {
		m.counters.unicastDrops.Add(1)
		return
	}
	m.counters.relayed.Add(1)
}

const (
	// maxEvents bounds how many events neighbours can queue for the loop.
	maxEvents = 1 << 14
	// maxLinkMessages and maxLinkBytes bound the link messages of one neighbour that wait
	// for the loop. More are dropped, which the link repairs.
	maxLinkMessages = 256
	maxLinkBytes    = 256 << 10
)

// linkMessage passes a message of KindLink to the Observer.
func (m *Mesh) linkMessage(n *neighbour, msg []byte) {
	size := int64(len(msg))
	count, bytes := n.linkMessages.Add(1), n.linkBytes.Add(size)
	taken := func() {
		n.linkMessages.Add(-1)
		n.linkBytes.Add(-size)
	}
	if count > maxLinkMessages || bytes > maxLinkBytes || !m.event(func(o Observer) {
		taken()
		o.LinkMessage(n.name, msg)
	}) {
		taken()
		m.counters.unicastDrops.Add(1)
	}
}

// event makes the loop call f, and reports whether there was space in its queue.
func (m *Mesh) event(f func(Observer)) bool {
	m.mu.Lock()
	space := len(m.events) < maxEvents
	if space {
		m.events = append(m.events, f)
	}
	m.mu.Unlock()
	m.wakeLoop()
	return space
}

// printable makes text of another peer safe for one line of a log.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, string(b))
}
