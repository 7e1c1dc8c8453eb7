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

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/mesh/gossip"
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
	recProofs   // see passwords.go
	recCloneAsk // see clone.go
	recCloneProof
)

const (
	// pingEvery is how often a neighbour gets a sign of life. All neighbours get it at
	// the same time and, if clocks agree, all peers send it at the same time, so that
	// a router with many neighbours is rarely woken.
	pingEvery = 2 * time.Second
	// A neighbour with which the router has a working link gets only one in
	// linkedPingFactor signs of life: the heartbeats of the link show that the peer
	// is alive, and TCP shows whether it receives.
	linkedPingFactor = 5
	// sessionTimeout is how long a neighbour may be silent before it counts as lost.
	// If it is shorter, a busy host counts as lost; if it is longer, a loss is
	// noticed later than the ten seconds that weft promises.
	sessionTimeout = 8 * time.Second
	// linkDownTimeout is how long a neighbour may be silent after its link went down, which
	// the router notices within a second. It is longer than a short cut of the path, after
	// which TCP needs a while to repeat what was lost: frames use other paths meanwhile.
	linkDownTimeout = 5 * time.Second
	// MaxControl is the largest number of records that wait for one neighbour, ahead
	// of gossip, and maxControlBytes their largest total size. A full queue drops
	// the newest record and counts the drop.
	MaxControl = 1024
	// maxReason is how many bytes of a neighbour's reason are shown.
	maxReason       = 512
	maxControlBytes = 4 << 20
)

// neighbour is an established session with a peer.
type neighbour struct {
	// Constant.

	*session.Conn
	name    peer.Name
	since   time.Time
	local   netip.Addr // of this end; invalid if the session is not over TCP
	relayed bool       // other peers carry the session; see relayed.go
	// signedLimit bounds the signed messages that it may bring.
	signedLimit *rate.Limiter
	limits      *inLimits     // of its reader
	asks        *rate.Limiter // for addresses of others; see punch.go
	cloneAsks   *rate.Limiter // for signatures; see clone.go

	// Guarded by Mesh.mu.

	addrAskedAt time.Time // of a relayed session: when its address was last asked for

	// Safe for concurrent use.

	control       chan []byte           // records ready to send
	gossip        map[uint8]chan []byte // by channel, the next message; constant
	writerWake    chan struct{}
	pings         chan byte     // a record type: recPing or recAlive, which is not answered
	done          chan struct{} // closed by terminate
	terminateOnce sync.Once
	end           atomic.Pointer[ended]
	sendErr       atomic.Pointer[sendError]
	lastHeard     atomic.Int64 // nanoseconds after since: steps of the clock do not count
	rttNano       atomic.Int64 // smoothed
	dropped       atomic.Uint64
	queued        atomic.Int64             // bytes in control
	linkMessages  atomic.Int64             // of KindLink that wait for the loop
	linkBytes     atomic.Int64             // of them
	saidGoodbye   atomic.Bool              // it said goodbye
	linked        atomic.Bool              // the router's link with it is up
	proofs        atomic.Pointer[[]byte]   // the last of its recProofs
	cloneAsk      atomic.Pointer[cloneAsk] // that waits for its answer
	// punchedAddr is the address of a relayed neighbour that the router got.
	punchedAddr atomic.Pointer[netip.AddrPort]
}

// ended reports whether the session has ended.
func (n *neighbour) ended() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

func newNeighbour(c *session.Conn) *neighbour {
	n := &neighbour{
		Conn: c, name: c.Peer.Name, since: time.Now(), local: addrPortOf(c.LocalAddr()).Addr(), signedLimit: newSignedLimit(), limits: newInLimits(), asks: rate.NewLimiter(asksPerSecond, asksBurst),
		cloneAsks:  rate.NewLimiter(clonesPerSecond, clonesBurst),
		control:    make(chan []byte, MaxControl),
		writerWake: make(chan struct{}, 1),
		pings:      make(chan byte, 1),
		done:       make(chan struct{}),
	}
	return n
}

func (n *neighbour) rtt() time.Duration { return time.Duration(n.rttNano.Load()) }

// silentFor returns how long the neighbour has been silent.
func (n *neighbour) silentFor(now time.Time) time.Duration {
	return now.Sub(n.since) - time.Duration(n.lastHeard.Load())
}

// timeout returns how long the neighbour may be silent.
func (n *neighbour) timeout() time.Duration {
	if n.linked.Load() {
		return 3 * linkedPingFactor * pingEvery
	}
	return sessionTimeout
}

// setLinked records whether the router's link with the neighbour is up.
func (n *neighbour) setLinked(up bool) {
	switch was := n.linked.Swap(up); {
	case up && !was:
		n.expectWithin(n.timeout())
	case was && !up:
		n.doubt()
	}
}

// doubt asks the neighbour for an answer, and ends the session if none comes within
// linkDownTimeout.
func (n *neighbour) doubt() {
	select {
	case n.pings <- recPing:
	default: // the last one was not sent yet, because the session is stuck
	}
	n.expectWithin(linkDownTimeout)
}

// ping sends a sign of life. It asks for no answer if there is a link, because the
// router measures the round trip of the link.
func (n *neighbour) ping() {
	typ := byte(recPing)
	if n.linked.Load() {
		typ = recAlive
	}
	select {
	case n.pings <- typ:
	default: // the last one was not sent yet
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

// crowded reports whether half of the queue is full. The rest is for this peer's own
// messages.
func (n *neighbour) crowded() bool {
	return len(n.control) >= MaxControl/2 || n.queued.Load() >= maxControlBytes/2
}

// ended is how and why a session ended. There is none without the other, so that whoever
// ends a session has to say what follows for the paths to the peer.
type ended struct {
	how   Ending
	cause error
}

// away and reject return how a session ended; see Ending.
func away(cause error) ended   { return ended{Away, cause} }
func reject(cause error) ended { return ended{Rejected, cause} }

// conclude records how the session ended, before it is closed. The first call decides; its
// value is returned.
func (n *neighbour) conclude(e ended) ended {
	n.end.CompareAndSwap(nil, &e)
	return *n.end.Load()
}

// terminate concludes the session and closes it.
func (n *neighbour) terminate(e ended) {
	n.conclude(e)
	n.terminateOnce.Do(func() {
		close(n.done)
		n.Close()
	})
}

func (n *neighbour) err() error {
	if e := n.end.Load(); e != nil {
		return e.cause
	}
	return nil
}

// goodbye ends the session and tells the far end the reason. With CodeOK the peer is away,
// with each other code rejected, at both ends.
func (n *neighbour) goodbye(code session.Code, reason string) {
	e := reject(errors.New(reason))
	if code == session.CodeOK {
		e = away(e.cause)
	}
	n.conclude(e)
	_ = n.SetWriteDeadline(time.Now().Add(time.Second))
	_ = n.WriteRecord(append([]byte{recBye, byte(code)}, reason...))
	n.terminate(e)
}

// dismiss is goodbye, but does not wait until the far end is told. The caller holds m.mu,
// and the mesh is not closing.
func (m *Mesh) dismiss(n *neighbour, code session.Code, cause error) {
	n.conclude(reject(cause))
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		n.goodbye(code, cause.Error())
	}()
}

// A session whose writer failed is read for lastWords longer: if the far end closed the
// connection, its goodbye may have arrived before.
const lastWords = 2 * time.Second

// sendError is why the writer failed, and until when the session is read.
type sendError struct {
	cause error
	until time.Time
}

// sendFailed ends the session, but lets its reader handle what has arrived.
func (n *neighbour) sendFailed(cause error) {
	n.sendErr.CompareAndSwap(nil, &sendError{cause, time.Now().Add(lastWords)})
	n.expectWithin(lastWords)
}

// expectWithin sets how long the neighbour may take until its next record.
func (n *neighbour) expectWithin(d time.Duration) {
	_ = n.SetReadDeadline(time.Now().Add(d))
	// After that, so that no deadline set at the same time is later.
	if e := n.sendErr.Load(); e != nil {
		_ = n.SetReadDeadline(e.until)
	}
}

// addr returns the probable address of the neighbour's UDP port.
func (n *neighbour) addr() netip.AddrPort {
	a, ok := n.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), n.Peer.Port)
}

// up describes the neighbour for the observer.
func (n *neighbour) up(addr netip.AddrPort) Neighbour {
	return Neighbour{Name: n.name, Nickname: n.Peer.Nickname, Addr: addr, Secret: n.Secret, Dialled: n.Dialled, Instance: n.Peer.Instance, Key: n.Peer.Key}
}

// write sends queued records, control before gossip, and pings.
func (m *Mesh) write(n *neighbour) {
	defer m.wg.Done()
	send := func(rec []byte) bool {
		_ = n.SetWriteDeadline(time.Now().Add(sessionTimeout))
		if err := n.WriteRecord(rec); err != nil {
			n.sendFailed(fmt.Errorf("send: %w", err))
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
			g, msg := m.nextGossip(n)
			if msg == nil {
				continue
			}
			if !send(append([]byte{recGossip}, msg...)) {
				return
			}
			g.taken(n.name)
			n.wakeWriter()
		}
	}
}

// nextGossip returns the next gossip message for a neighbour and its channel, nil if there
// is none now. A relayed session has none: the sessions that carry it gossip already.
func (m *Mesh) nextGossip(n *neighbour) (*gossipChannel, []byte) {
	for _, g := range m.order {
		select {
		case msg := <-n.gossip[g.id]:
			return g, msg
		default:
		}
	}
	return nil, nil
}

// read handles the records of the neighbour until the session ends.
func (m *Mesh) read(n *neighbour) {
	defer m.wg.Done()
	for {
		n.expectWithin(n.timeout())
		rec, err := n.ReadRecord()
		if err != nil {
			var timeout net.Error
			failed := n.sendErr.Load()
			switch {
			case failed != nil:
				err = failed.cause
			case errors.As(err, &timeout) && timeout.Timeout():
				err = fmt.Errorf("the peer has been silent for %v", n.silentFor(time.Now()).Round(time.Second))
			case errors.Is(err, io.EOF):
				err = errors.New("the peer closed the connection")
			}
			n.terminate(away(err))
			break
		}
		now := time.Now()
		n.lastHeard.Store(int64(now.Sub(n.since)))
		if pause := n.limits.pause(now); pause > 0 {
			select {
			case <-time.After(pause):
			case <-n.done:
			}
		}
		if err := m.receive(n, rec); err != nil {
			malformed := errors.Is(err, errShortMessage) || errors.Is(err, gossip.ErrMalformed)
			switch {
			case n.saidGoodbye.Load():
				n.terminate(away(err))
			case malformed:
				m.misbehaved(n, err.Error())
			default:
				n.terminate(reject(err))
			}
			break
		}
	}
	m.drop(n)
}

// receive handles one record. An error ends the session.
func (m *Mesh) receive(n *neighbour, rec []byte) error {
	if len(rec) == 0 {
		return fmt.Errorf("empty record: %w", errShortMessage)
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
		return m.receiveGossip(n, body)
	case recUnicast:
		return m.unicast(n, body)
	case recProofs:
		return n.receiveProofs(body)
	case recCloneAsk:
		return m.answerCloneAsk(n, body)
	case recCloneProof:
		return n.receiveCloneProof(body)
	case recBye:
		if len(body) == 0 {
			return errors.New("the peer ended the session without a reason")
		}
		code, reason := session.Code(body[0]), printable(body[1:min(len(body), 1+maxReason)])
		if code == session.CodeOK {
			n.saidGoodbye.Store(true)
		} else {
			m.counters.handshakeFail[min(code, session.CodeOther)].Add(1)
			if code == session.CodeBanned {
				m.noteBannedBy(n.name, n.Peer.Nickname)
			} else {
				m.recordProblem(Problem{Text: fmt.Sprintf("peer %s ended the session: %s", m.displayName(n.name), reason), peer: n.name})
			}
		}
		return fmt.Errorf("the peer ended the session: %s", reason)
	}
	return nil
}
