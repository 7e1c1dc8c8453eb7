package testbed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/weft-net/weft/internal/netdev"
)

// pingInterval is how long Ping waits for an answer before it sends the next request.
const pingInterval = 200 * time.Millisecond

// Pinger sends ICMP echo requests from a namespace to one address. It is not safe for
// concurrent use.
type Pinger struct {
	conn *icmp.PacketConn
	to   netip.Addr
	id   int
	seq  int
	buf  [1500]byte
}

// NewPinger opens a pinger in the network namespace at path.
func NewPinger(path string, to netip.Addr) (*Pinger, error) {
	network, any := "ip4:icmp", "0.0.0.0"
	if to.Is6() {
		network, any = "ip6:ipv6-icmp", "::"
	}
	p := &Pinger{to: to, id: rand.IntN(1 << 16)}
	err := netdev.Do(path, func() (err error) {
		p.conn, err = icmp.ListenPacket(network, any)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to, err)
	}
	return p, nil
}

// Close closes the pinger's socket.
func (p *Pinger) Close() error { return p.conn.Close() }

// Once sends one request with size bytes of data, at least 8, and waits for its answer. It
// returns the round-trip time.
func (p *Pinger) Once(size int, timeout time.Duration) (time.Duration, error) {
	p.seq = (p.seq + 1) & 0xffff
	data := make([]byte, max(size, 8))
	nonce := rand.Uint64()
	binary.BigEndian.PutUint64(data, nonce)
	request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: p.seq, Data: data}}
	protocol, answer := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if p.to.Is6() {
		request.Type = ipv6.ICMPTypeEchoRequest
		protocol, answer = 58, ipv6.ICMPTypeEchoReply
	}
	b, err := request.Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", p.to, err)
	}
	start := time.Now()
	if err := p.conn.SetReadDeadline(start.Add(timeout)); err != nil {
		return 0, fmt.Errorf("ping %s: %w", p.to, err)
	}
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.to.AsSlice()}); err != nil {
		return 0, fmt.Errorf("ping %s: %w", p.to, err)
	}
	for {
		n, _, err := p.conn.ReadFrom(p.buf[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("ping %s: no answer in %v: %w", p.to, timeout, err)
		}
		if err != nil {
			return 0, fmt.Errorf("ping %s: %w", p.to, err)
		}
		m, err := icmp.ParseMessage(protocol, p.buf[:n])
		if err != nil || m.Type != answer {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if ok && echo.ID == p.id && echo.Seq == p.seq && len(echo.Data) >= 8 && binary.BigEndian.Uint64(echo.Data) == nonce {
			return time.Since(start), nil
		}
	}
}

// Ping sends requests from a namespace until an answer comes or ctx ends. It returns the
// round-trip time of the answered one.
func Ping(ctx context.Context, path string, to netip.Addr) (time.Duration, error) {
	p, err := NewPinger(path, to)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	for {
		rtt, err := p.Once(8, pingInterval)
		if err == nil {
			return rtt, nil
		}
		if ctx.Err() != nil {
			return 0, err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) { // for example, no route yet
			select {
			case <-ctx.Done():
				return 0, err
			case <-time.After(pollInterval):
			}
		}
	}
}
