package member

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/weft-net/weft/mesh/peer"
)

// A message between two members, carried by Config.Send:
//
//	kind u8 | body
//
//	0 packet   body: one packet of memberlist
//	1 open     body: stream u32, chosen by the sender; the far end gets a stream
//	2 data     body: stream u32, bytes; from the end that opened the stream
//	3 reply    body: stream u32, bytes; from the other end
//	4 close    body: stream u32; from the end that opened it
//	5 hang up  body: stream u32; from the other end
//
// Numbers are big endian and append only; unknown kinds are ignored.
const (
	msgPacket = iota
	msgOpen
	msgData
	msgReply
	msgClose
	msgHangup
)

const (
	chunk      = 16 << 10 // most bytes of a stream in one message
	inFlight   = 256      // messages that wait for one stream's reader
	maxStreams = 128      // at once
	port       = 6783     // in the made-up addresses; not used to reach anybody
)

// addrPrefix makes an IPv6 address of a name, as memberlist wants each node to
// have one: fd77:6566:7400::/80 and the six bytes of the name.
var addrPrefix = [10]byte{0xfd, 0x77, 0x65, 0x66, 0x74}

func addrOf(n peer.Name) netip.Addr {
	var b [16]byte
	copy(b[:], addrPrefix[:])
	copy(b[10:], n[:])
	return netip.AddrFrom16(b)
}

func nameOf(a netip.Addr) (peer.Name, error) {
	b := a.As16()
	if [10]byte(b[:10]) != addrPrefix {
		return peer.Name{}, fmt.Errorf("address %s stands for no peer", a)
	}
	return peer.NameFromBytes(b[10:]), nil
}

type streamKey struct {
	far peer.Name
	id  uint32
	// opened is set at the end that opened the stream.
	opened bool
}

// transport carries memberlist's packets and streams inside sessions.
type transport struct {
	self    peer.Name
	send    func(peer.Name, []byte) error
	packets chan *memberlist.Packet
	conns   chan net.Conn
	done    chan struct{}

	mu      sync.Mutex // guards what follows; nothing is sent while it is held
	streams map[streamKey]*stream
	lastID  uint32
	closed  bool
	wg      sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(self peer.Name, send func(peer.Name, []byte) error) *transport {
	return &transport{
		self: self, send: send,
		packets: make(chan *memberlist.Packet, 512),
		conns:   make(chan net.Conn, 16),
		done:    make(chan struct{}),
		streams: make(map[streamKey]*stream),
	}
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(addrOf(t.self).AsSlice()), port, nil
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.conns }

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := resolve(a)
	if err != nil {
		return time.Time{}, err
	}
	// A peer that no path leads to is no error: to memberlist it is a packet lost.
	_ = t.send(to, append([]byte{msgPacket}, b...))
	return time.Now(), nil
}

func resolve(a memberlist.Address) (peer.Name, error) {
	ap, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return peer.Name{}, fmt.Errorf("member %q at %q: %w", a.Name, a.Addr, err)
	}
	return nameOf(ap.Addr())
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

var (
	errClosed  = errors.New("the member list is shut down")
	errStreams = errors.New("too many streams at once")
)

func (t *transport) DialAddressTimeout(a memberlist.Address, _ time.Duration) (net.Conn, error) {
	to, err := resolve(a)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.lastID++
	k := streamKey{to, t.lastID, true}
	conn, err := t.startLocked(k)
	t.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("stream to member %s: %w", to, err)
	}
	if err := t.send(to, streamMsg(msgOpen, k.id, nil)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("stream to member %s: %w", to, err)
	}
	return conn, nil
}

func streamMsg(kind byte, id uint32, b []byte) []byte {
	m := binary.BigEndian.AppendUint32([]byte{kind}, id)
	return append(m, b...)
}

// stream is the near end of a net.Pipe, whose far end memberlist holds.
type stream struct {
	net.Conn
	in chan []byte // closed when the far peer has hung up; nil element never
}

// pipeConn is what memberlist gets.
type pipeConn struct {
	net.Conn
	remote net.Addr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.remote }

// startLocked makes a stream and the two goroutines that pump it.
func (t *transport) startLocked(k streamKey) (net.Conn, error) {
	if t.closed {
		return nil, errClosed
	}
	if len(t.streams) >= maxStreams {
		return nil, errStreams
	}
	near, far := net.Pipe()
	s := &stream{Conn: near, in: make(chan []byte, inFlight)}
	t.streams[k] = s
	t.wg.Add(2)
	go t.pumpOut(k, s)
	go t.pumpIn(s)
	return pipeConn{far, &net.TCPAddr{IP: addrOf(k.far).AsSlice(), Port: port}}, nil
}

// pumpOut sends what memberlist writes, and tells the far end when it closes.
func (t *transport) pumpOut(k streamKey, s *stream) {
	defer t.wg.Done()
	data, end := byte(msgReply), byte(msgHangup)
	if k.opened {
		data, end = msgData, msgClose
	}
	buf := make([]byte, chunk)
	for {
		n, err := s.Read(buf)
		if n > 0 && t.send(k.far, streamMsg(data, k.id, buf[:n])) != nil {
			break
		}
		if err != nil {
			break
		}
	}
	_ = t.send(k.far, streamMsg(end, k.id, nil))
	t.hangup(k, s)
}

// pumpIn hands memberlist what the far peer sent.
func (t *transport) pumpIn(s *stream) {
	defer t.wg.Done()
	for b := range s.in {
		if _, err := s.Write(b); err != nil {
			break
		}
	}
	s.Close()
}

// hangup removes a stream. What has been received is still read.
func (t *transport) hangup(k streamKey, s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[k] == s {
		delete(t.streams, k)
		close(s.in)
	}
}

// receive takes in a message of a member. It keeps b.
func (t *transport) receive(from peer.Name, b []byte) error {
	if len(b) < 1 {
		return fmt.Errorf("member message from %s is empty", from)
	}
	kind, body := b[0], b[1:]
	if kind == msgPacket {
		p := &memberlist.Packet{Buf: body, From: &net.UDPAddr{IP: addrOf(from).AsSlice(), Port: port}, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		default: // as a full socket would, memberlist repeats what matters
		}
		return nil
	}
	if kind > msgHangup {
		return nil
	}
	if len(body) < 4 {
		return fmt.Errorf("member message %d of %d bytes from %s is cut short", kind, len(b), from)
	}
	k := streamKey{from, binary.BigEndian.Uint32(body), kind == msgReply || kind == msgHangup}
	body = body[4:]
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.streams[k]
	switch {
	case kind == msgOpen && s == nil:
		conn, err := t.startLocked(k)
		if err != nil {
			return nil // the far end's deadline tells it
		}
		select {
		case t.conns <- conn:
		default:
			conn.Close()
		}
	case s == nil:
	case kind == msgData || kind == msgReply:
		select {
		case s.in <- body:
			return nil
		default: // a reader so slow that its stream is of no use
		}
		fallthrough
	case kind == msgClose || kind == msgHangup:
		delete(t.streams, k)
		close(s.in)
	}
	return nil
}

// Shutdown ends all streams and waits for their goroutines.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.done)
		for k, s := range t.streams {
			delete(t.streams, k)
			close(s.in)
			s.Close()
		}
	}
	t.mu.Unlock()
	t.wg.Wait()
	return nil
}

func addrString(n peer.Name) string { return net.JoinHostPort(addrOf(n).String(), strconv.Itoa(port)) }
