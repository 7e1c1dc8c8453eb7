package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

const (
	recPing = iota
	recPong
	recGossip
	recUnicast
	recBye
	recAlive
)

const (
	// pingEvery is how often a neighbour gets a sign of life: all of them at once
	// and, where clocks agree, from all peers at once, so that a router with many
	// neighbours is woken seldom.
	pingEvery = 2 * time.Second
	// calm is in how many of these moments a neighbour gets none but one, while
	// the router's link with it is up: then its heartbeats tell that the peer
	// lives, and TCP reports whether what is sent is taken.
	linkedPingFactor = 5
	// silence is how long a neighbour may say nothing before it counts as gone.
	// With less, a busy host is taken for dead; with more, its loss is noticed
	// later than the ten seconds that weft promises.
	sessionTimeout = 8 * time.Second
	// lastWord is how long a neighbour has to speak after its link went down.
	linkDownTimeout = 1500 * time.Millisecond
	// MaxControl is how many records wait for one neighbour ahead of gossip, and
	// maxControlBytes how large they may be together. A full queue drops the
	// newest and counts it.
	MaxControl      = 1024
	maxControlBytes = 4 << 20
)

// neighbour is a session while it stands.
type neighbour struct {
	// Constant.

	*session.Conn
	name    peer.Name
	since   time.Time
	relayed bool // its session is carried by others; see relayed.go

	// Guarded by Mesh.mu.

	addrAskedAt time.Time // when its address was, if relayed

	// Safe for all.

	control       chan []byte // records ready to send
	writerWake    chan struct{}
	pings         chan byte     // a record type: recPing or recAlive, which is not answered
	done          chan struct{} // closed by shut
	terminateOnce sync.Once
	cause         atomic.Pointer[error]
	lastHeard     atomic.Int64 // Unix time in nanoseconds
	rttNano       atomic.Int64 // smoothed
	dropped       atomic.Uint64
	queued        atomic.Int64 // bytes in control
	saidGoodbye   atomic.Bool  // it said goodbye
	linked        atomic.Bool  // the router's link with it is up
	// punched is where the router was told that a relayed one is.
	punchedAddr atomic.Pointer[netip.AddrPort]
}

func newNeighbour(c *session.Conn) *neighbour {
	n := &neighbour{
		Conn: c, name: c.Peer.Name, since: time.Now(),
		control:    make(chan []byte, MaxControl),
		writerWake: make(chan struct{}, 1),
		pings:      make(chan byte, 1),
		done:       make(chan struct{}),
	}
	n.lastHeard.Store(n.since.UnixNano())
	return n
}

func (n *neighbour) rtt() time.Duration { return time.Duration(n.rttNano.Load()) }

// quiet tells for how long nothing was heard.
func (n *neighbour) silentFor(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, n.lastHeard.Load()))
}

// timeout is how long the neighbour may say nothing.
func (n *neighbour) timeout() time.Duration {
	if n.linked.Load() {
		return 3 * linkedPingFactor * pingEvery
	}
	return sessionTimeout
}

// setLinked takes in that the router's link with the neighbour came up or went
// down.
func (n *neighbour) setLinked(up bool) {
	switch was := n.linked.Swap(up); {
	case up && !was:
		_ = n.SetReadDeadline(time.Now().Add(n.timeout()))
	case was && !up:
		n.ping()
		_ = n.SetReadDeadline(time.Now().Add(linkDownTimeout))
	}
}

// ping has a sign of life sent. With a link, whose round trip the router
// measures, no answer is asked for.
func (n *neighbour) ping() {
	typ := byte(recPing)
	if n.linked.Load() {
		typ = recAlive
	}
	select {
	case n.pings <- typ:
	default: // the last one could not be sent yet
	}
}

func (n *neighbour) wakeWriter() {
	select {
	case n.writerWake <- struct{}{}:
	default:
	}
}

var errQueueFull = errors.New("the queue to the neighbour is full")

// push queues a record ahead of gossip. It keeps rec.
func (n *neighbour) push(rec []byte) error {
	if n.queued.Add(int64(len(rec))) <= maxControlBytes {
		select {
		case n.control <- rec:
			return nil
		default:
		}
	}
	n.queued.Add(-int64(len(rec)))
	n.dropped.Add(1)
	return errQueueFull
}

// shut ends the session for a reason. The first reason stays.
func (n *neighbour) terminate(cause error) {
	n.terminateOnce.Do(func() {
		n.cause.Store(&cause)
		close(n.done)
		n.Close()
	})
}

func (n *neighbour) err() error {
	if p := n.cause.Load(); p != nil {
		return *p
	}
	return nil
}

// goodbye tells the far end why, and ends the session.
func (n *neighbour) goodbye(code session.Code, reason string) {
	_ = n.SetWriteDeadline(time.Now().Add(time.Second))
	_ = n.WriteRecord(append([]byte{recBye, byte(code)}, reason...))
	n.terminate(errors.New(reason))
}

// addr is where the neighbour's UDP port should be.
func (n *neighbour) addr() netip.AddrPort {
	a, ok := n.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), n.Peer.Port)
}

// write sends what waits, control before gossip, and pings.
func (m *Mesh) write(n *neighbour) {
	defer m.wg.Done()
	send := func(rec []byte) bool {
		_ = n.SetWriteDeadline(time.Now().Add(sessionTimeout))
		if err := n.WriteRecord(rec); err != nil {
			n.terminate(fmt.Errorf("send: %w", err))
			return false
		}
		return true
	}
	sendControl := func(rec []byte) bool {
		n.queued.Add(-int64(len(rec)))
		return send(rec)
	}
	sendPing := func(typ byte) bool {
		return send(binary.BigEndian.AppendUint64([]byte{typ}, uint64(time.Since(m.start))))
	}
	if !sendPing(recPing) {
		return
	}
	n.wakeWriter()
	for {
		select {
		case <-n.done:
			return
		case rec := <-n.control:
			if !sendControl(rec) {
				return
			}
			continue
		default:
		}
		select {
		case <-n.done:
			return
		case rec := <-n.control:
			if !sendControl(rec) {
				return
			}
		case typ := <-n.pings:
			if !sendPing(typ) {
				return
			}
		case <-n.writerWake:
			if n.relayed {
				continue // no gossip: what carries the session gossips already
			}
			m.mu.Lock()
			msg := m.engine.Next(n.name)
			m.mu.Unlock()
			if msg == nil {
				continue
			}
			if !send(append([]byte{recGossip}, msg...)) {
				return
			}
			n.wakeWriter()
		}
	}
}

// read takes in what the neighbour sends until the session ends.
func (m *Mesh) read(n *neighbour) {
	defer m.wg.Done()
	for {
		_ = n.SetReadDeadline(time.Now().Add(n.timeout()))
		rec, err := n.ReadRecord()
		if err != nil {
			var timeout net.Error
			switch {
			case errors.As(err, &timeout) && timeout.Timeout():
				err = fmt.Errorf("nothing heard for %v", n.silentFor(time.Now()).Round(time.Second))
			case errors.Is(err, io.EOF):
				err = errors.New("the peer closed the connection")
			}
			n.terminate(err)
			break
		}
		n.lastHeard.Store(time.Now().UnixNano())
		if err := m.receive(n, rec); err != nil {
			n.terminate(err)
			break
		}
	}
	m.drop(n)
}

// receive takes in one record. An error ends the session.
func (m *Mesh) receive(n *neighbour, rec []byte) error {
	if len(rec) == 0 {
		return errors.New("an empty record")
	}
	body := rec[1:]
	switch rec[0] {
	case recPing:
		_ = n.push(append([]byte{recPong}, body...))
	case recPong:
		if len(body) >= 8 {
			rtt := time.Since(m.start) - time.Duration(binary.BigEndian.Uint64(body))
			if rtt > 0 && rtt < sessionTimeout {
				if old := n.rtt(); old > 0 {
					rtt = (7*old + rtt) / 8
				}
				n.rttNano.Store(int64(rtt))
			}
		}
	case recGossip:
		if n.relayed {
			return errors.New("gossip in a relayed session")
		}
		m.mu.Lock()
		changed, err := m.engine.Receive(n.name, body)
		dirty := m.engine.Dirty()
		m.mu.Unlock()
		m.wakeWriters(dirty)
		if changed {
			m.wakeLoop()
		}
		if err != nil {
			if m.recordProblem(fmt.Sprintf("gossip refused, from %s: %v", m.displayName(n.name), err)) {
				m.log.Warn("gossip refused", "from", n.name, "err", err)
			}
		}
	case recUnicast:
		m.unicast(n, body)
	case recBye:
		if len(body) == 0 {
			return errors.New("the peer ended the session without a word")
		}
		code, reason := session.Code(body[0]), printable(body[1:])
		if code == session.CodeOK {
			n.saidGoodbye.Store(true)
		} else {
			m.counters.handshakeFail[min(code, session.CodeOther)].Add(1)
			m.recordProblem(fmt.Sprintf("session with %s ended by it: %s", m.displayName(n.name), reason))
		}
		return fmt.Errorf("the peer said: %s", reason)
	}
	return nil
}
