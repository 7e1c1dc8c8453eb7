package member

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/stream"
)

// port is the port of the synthetic addresses. Nobody connects to it.
const port = 6783

// addrPrefix is the prefix of the synthetic IPv6 addresses, because memberlist wants each
// node to have an address: fd77:6566:7400::/80 and the six bytes of the name.
var addrPrefix = [10]byte{0xfd, 0x77, 0x65, 0x66, 0x74}

// Limits of memberlist's streams. It uses few at a time, for a moment, and sends the state
// of all members at once.
const (
	maxOpened   = 64
	maxAccepted = 192
	maxFromPeer = 8
)

var streamLimits = stream.Limits{Opened: maxOpened, Accepted: maxAccepted, FromPeer: maxFromPeer, Waiting: 1 << 20}

func addrOf(n peer.Name) netip.Addr {
	var b [16]byte
	copy(b[:], addrPrefix[:])
	copy(b[10:], n[:])
	return netip.AddrFrom16(b)
}

func nameOf(a netip.Addr) (peer.Name, error) {
	b := a.As16()
	if [10]byte(b[:10]) != addrPrefix {
		return peer.Name{}, fmt.Errorf("address %s does not stand for a peer", a)
	}
	return peer.NameFromBytes(b[10:]), nil
}

// transport carries memberlist's packets and streams inside sessions.
type transport struct {
	self    peer.Name
	send    func(peer.Name, []byte) error
	streams *stream.Mux
	packets chan *memberlist.Packet
	conns   chan net.Conn
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(self peer.Name, behind func(peer.Name) []peer.Name, sendPacket, sendStream func(peer.Name, []byte) error) *transport {
	t := &transport{
		self: self, send: sendPacket,
		packets: make(chan *memberlist.Packet, 512),
		conns:   make(chan net.Conn, 16),
	}
	t.streams = stream.New(streamLimits, behind, sendStream, func(from peer.Name, c net.Conn) {
		select {
		case t.conns <- withAddr(c, from):
		default:
			c.Close()
		}
	})
	return t
}

// addressed is a stream with an address that memberlist understands.
type addressed struct {
	net.Conn
	remote net.Addr
}

func (c addressed) RemoteAddr() net.Addr { return c.remote }

func withAddr(c net.Conn, far peer.Name) net.Conn {
	return addressed{guard(c), &net.TCPAddr{IP: addrOf(far).AsSlice(), Port: port}}
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
	// To memberlist an unreachable peer is not an error but a lost packet.
	_ = t.send(to, b)
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

func (t *transport) DialAddressTimeout(a memberlist.Address, _ time.Duration) (net.Conn, error) {
	to, err := resolve(a)
	if err != nil {
		return nil, err
	}
	c, err := t.streams.Dial(to)
	if err != nil {
		return nil, err
	}
	return withAddr(c, to), nil
}

// packet handles a packet of a member. It keeps b.
func (t *transport) packet(from peer.Name, b []byte) {
	if checkPacket(b) != nil {
		return
	}
	p := &memberlist.Packet{Buf: b, From: &net.UDPAddr{IP: addrOf(from).AsSlice(), Port: port}, Timestamp: time.Now()}
	select {
	case t.packets <- p:
	default: // lost, as with a full socket; memberlist repeats important messages
	}
}

// Shutdown ends all streams and waits for their goroutines.
func (t *transport) Shutdown() error {
	t.streams.Close()
	return nil
}

func addrString(n peer.Name) string { return net.JoinHostPort(addrOf(n).String(), strconv.Itoa(port)) }
