// Package stream makes byte streams between peers out of the messages that the mesh
// carries over any number of hops.
//
// It is for few and short exchanges: a stream ends if a message is lost on the way or its
// reader is slow, and its user tries again.
//
//	kind u8 | stream u32 | sequence u32 | bytes
//
//	0 open     the sender has made a stream and chosen its number
//	1 data     from the end that opened it
//	2 reply    from the other end
//	3 close    from the end that opened it; nothing follows
//	4 hang up  from the other end; nothing follows
//
// Sequences count the messages of one direction from 0, including open. Numbers are
// big-endian. Kinds are append-only, and unknown ones are ignored.
package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	kindOpen = iota
	kindData
	kindReply
	kindClose
	kindHangup
)

const (
	headerLen   = 9
	maxChunk    = 16 << 10 // size limit of the bytes of a stream in one message
	maxInFlight = 64       // limit of messages that wait for the reader of one stream
)

// Limits bound the streams of a Mux at a time, and what waits for slow readers. A stream whose
// reader is slower ends.
type Limits struct {
	// Opened is how many this peer may open. Others cannot take from them.
	Opened int
	// Accepted is how many other peers may open together, and FromPeer how many one of
	// them. If all are taken, one more takes the place of the oldest one of the peer that
	// has the most, if the newcomer's peer has fewer even then. A peer and those behind it
	// count as one, and share in the same way: a member can make up peers, but only behind
	// itself.
	Accepted, FromPeer int
	// Waiting is how many bytes wait for the reader of one stream. One message is always
	// taken.
	Waiting int
}

// Addr is the address of the far end of a stream.
type Addr peer.Name

// Network implements net.Addr.
func (Addr) Network() string { return "weft" }

// String implements net.Addr.
func (a Addr) String() string { return peer.Name(a).String() + " (relayed)" }

// Mux holds the streams of one peer. It is safe for concurrent use.
type Mux struct {
	// Constant.
	limits Limits
	behind func(peer.Name) []peer.Name
	send   func(to peer.Name, msg []byte) error
	accept func(from peer.Name, c net.Conn)

	wg sync.WaitGroup // of the pumps

	// mu guards the fields below. Nothing is sent or accepted while it is held.
	mu       sync.Mutex
	streams  map[key]*stream
	own      int                 // streams that this peer opened
	accepted map[peer.Name][]key // those that a peer opened, the oldest first
	last     uint32
	closed   bool
}

type key struct {
	far    peer.Name
	id     uint32
	opened bool // at this end
}

// stream is the near end of a net.Pipe, whose far end the user holds.
type stream struct {
	net.Conn
	in   chan []byte // closed when nothing more will come
	next uint32      // sequence expected, guarded by Mux.mu
	// waiting is how many bytes are in in.
	waiting atomic.Int64
}

// New returns a Mux that sends messages with send, which must neither block nor keep msg,
// and may lose it. behind returns the peers behind which another one is, the nearest one
// first, and that one itself; it is called with a lock held. If it is nil, no peer is behind
// another one. accept is called for each stream that another peer opens. It must not
// block, and owns the stream.
func New(l Limits, behind func(peer.Name) []peer.Name, send func(to peer.Name, msg []byte) error, accept func(from peer.Name, c net.Conn)) *Mux {
	if behind == nil {
		behind = func(n peer.Name) []peer.Name { return []peer.Name{n} }
	}
	return &Mux{limits: l, behind: behind, send: send, accept: accept, streams: make(map[key]*stream), accepted: make(map[peer.Name][]key)}
}

var (
	errClosed  = errors.New("the streams are closed")
	errTooMany = errors.New("too many streams")
)

// Dial opens a stream. It does not wait for the other end.
func (m *Mux) Dial(to peer.Name) (net.Conn, error) {
	m.mu.Lock()
	m.last++
	k := key{to, m.last, true}
	c, err := m.startLocked(k)
	m.mu.Unlock()
	if err == nil {
		// Nothing can overtake the open: the user cannot write before Dial returns.
		if err = m.send(to, message(kindOpen, k.id, 0, nil)); err != nil {
			c.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream to peer %s: %w", to, err)
	}
	return c, nil
}

func message(kind byte, id, seq uint32, b []byte) []byte {
	m := make([]byte, 0, headerLen+len(b))
	m = append(m, kind)
	m = binary.BigEndian.AppendUint32(m, id)
	m = binary.BigEndian.AppendUint32(m, seq)
	return append(m, b...)
}

// conn is the end of a stream that the user holds.
type conn struct {
	net.Conn
	far Addr
}

func (c conn) RemoteAddr() net.Addr { return c.far }

func (m *Mux) startLocked(k key) (net.Conn, error) {
	if m.closed {
		return nil, errClosed
	}
	switch {
	case !k.opened:
		if !m.makeRoomLocked(k.far) {
			return nil, errTooMany
		}
		m.accepted[k.far] = append(m.accepted[k.far], k)
	case m.own >= m.limits.Opened:
		return nil, errTooMany
	default:
		m.own++
	}
	near, far := net.Pipe()
	s := &stream{Conn: near, in: make(chan []byte, maxInFlight)}
	if !k.opened {
		s.next = 1 // the open was 0
	}
	m.streams[k] = s
	m.wg.Add(2)
	go m.pumpOut(k, s)
	go m.pumpIn(s)
	return conn{far, Addr(k.far)}, nil
}

// makeRoomLocked reports whether a peer may open one more stream. It ends that of another
// peer if it has to. It is called with mu held.
func (m *Mux) makeRoomLocked(far peer.Name) bool {
	has := len(m.accepted[far])
	switch {
	case has >= m.limits.FromPeer:
		return false
	case len(m.streams)-m.own < m.limits.Accepted:
		return true
	}
	most, ok := m.givesWayLocked(far)
	if !ok {
		return false
	}
	k := m.accepted[most][0]
	m.endLocked(k, m.streams[k])
	return true
}

// givesWayLocked returns the peer that loses a stream for one more of far. Beginning at this
// peer, it goes from peer to peer to the one that has, with all behind it, most streams. Where
// the way to far is another one, far must have fewer there. It is called with mu held.
func (m *Mux) givesWayLocked(far peer.Name) (most peer.Name, ok bool) {
	at := func(n peer.Name, path []peer.Name, depth int) peer.Name {
		if depth < len(path) {
			return path[depth]
		}
		return n
	}
	paths := make(map[peer.Name][]peer.Name, len(m.accepted))
	for n := range m.accepted {
		paths[n] = m.behind(n)
	}
	farPath, together := m.behind(far), true
	for depth := 0; together || len(paths) > 1; depth++ {
		counts := make(map[peer.Name]int)
		for n, path := range paths {
			counts[at(n, path, depth)] += len(m.accepted[n])
		}
		most = peer.Name{}
		for n, c := range counts {
			if d := c - counts[most]; d > 0 || d == 0 && n.Compare(most) < 0 {
				most = n
			}
		}
		if mine := at(far, farPath, depth); together && mine != most {
			if counts[most] <= counts[mine]+1 {
				return peer.Name{}, false
			}
			together = false
		}
		maps.DeleteFunc(paths, func(n peer.Name, path []peer.Name) bool { return at(n, path, depth) != most })
		if _, itself := paths[far]; itself && len(paths) == 1 {
			return peer.Name{}, false // it has the most itself
		}
	}
	for n := range paths {
		most = n
	}
	return most, true
}

// pumpOut sends the bytes that the user writes, and a last message when the user closes
// the stream.
func (m *Mux) pumpOut(k key, s *stream) {
	defer m.wg.Done()
	data, end, seq := byte(kindReply), byte(kindHangup), uint32(0)
	if k.opened {
		data, end, seq = kindData, kindClose, 1
	}
	buf := make([]byte, maxChunk)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if m.send(k.far, message(data, k.id, seq, buf[:n])) != nil {
				break
			}
			seq++
		}
		if err != nil {
			break
		}
	}
	_ = m.send(k.far, message(end, k.id, seq, nil))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(k, s)
}

// pumpIn passes the bytes of the far end to the user.
func (m *Mux) pumpIn(s *stream) {
	defer m.wg.Done()
	for b := range s.in {
		s.waiting.Add(-int64(len(b)))
		if _, err := s.Write(b); err != nil {
			break
		}
	}
	s.Close()
}

// endLocked ends the input of a stream. Received bytes are still passed to the user. It is
// called with mu held.
func (m *Mux) endLocked(k key, s *stream) {
	if m.streams[k] == s {
		delete(m.streams, k)
		close(s.in)
		if k.opened {
			m.own--
			return
		}
		left := slices.DeleteFunc(m.accepted[k.far], func(x key) bool { return x == k })
		if m.accepted[k.far] = left; len(left) == 0 {
			delete(m.accepted, k.far)
		}
	}
}

// Receive handles a message that the Mux of another peer sent. It keeps msg.
func (m *Mux) Receive(from peer.Name, msg []byte) error {
	if len(msg) < headerLen {
		return fmt.Errorf("stream message of %d bytes from %s is cut short", len(msg), from)
	}
	kind, id, seq := msg[0], binary.BigEndian.Uint32(msg[1:]), binary.BigEndian.Uint32(msg[5:])
	if kind > kindHangup {
		return nil
	}
	if kind == kindOpen {
		m.opened(key{from, id, false})
		return nil
	}
	k := key{from, id, kind == kindReply || kind == kindHangup}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[k]
	if s == nil {
		return nil
	}
	n := int64(len(msg) - headerLen)
	if seq == s.next && (kind == kindData || kind == kindReply) && n <= maxChunk {
		// The reader is too slow if there is no space: end its stream.
		if w := s.waiting.Add(n); w == n || w <= int64(m.limits.Waiting) {
			select {
			case s.in <- msg[headerLen:]:
				s.next++
				return nil
			default:
			}
		}
	}
	m.endLocked(k, s)
	return nil
}

func (m *Mux) opened(k key) {
	m.mu.Lock()
	if m.streams[k] != nil {
		m.mu.Unlock()
		return
	}
	c, err := m.startLocked(k)
	m.mu.Unlock()
	if err == nil { // otherwise the deadline of the far end expires
		m.accept(k.far, c)
	}
}

// Close ends all streams and waits for their goroutines.
func (m *Mux) Close() {
	m.mu.Lock()
	m.closed = true
	for k, s := range m.streams {
		m.endLocked(k, s)
		s.Close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}
