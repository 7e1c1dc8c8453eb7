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
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// pingInterval is how long Ping waits for an answer before it sends the next request.
const pingInterval = 200 * time.Millisecond

// Pinger sends ICMP echo requests from a namespace to one address. It is not safe for
// concurrent use.
type Pinger struct {
	conn *net.IPConn
	to   netip.Addr
	id   int
	seq  int
	buf  [1500]byte
}

// NewPinger opens a pinger in the network namespace at path.
func NewPinger(path string, to netip.Addr) (*Pinger, error) {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	p := &Pinger{to: to, id: rand.IntN(1 << 16)}
	err := netdev.Do(path, func() (err error) {
		p.conn, err = net.ListenIP(network, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to, err)
	}
	if err := HoldMore(p.conn); err != nil {
		return nil, errors.Join(fmt.Errorf("ping %s: %w", to, err), p.conn.Close())
	}
	return p, nil
}

// HoldMore makes the kernel hold some thousand packets for a socket, whose reader may not run for
// seconds on a busy machine. It would drop those beyond 270 by default. It takes root.
func HoldMore(c syscall.Conn) error {
	const size = 8 << 20
	raw, err := c.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) })
		err = errors.Join(err, set)
	}
	if err != nil {
		return fmt.Errorf("set the receive buffer of a socket to %d bytes: %w", size, err)
	}
	return nil
}

// Close closes the pinger's socket.
func (p *Pinger) Close() error { return p.conn.Close() }

// Once sends one request with size bytes of data, at least 8, and waits for its answer. It
// returns the round-trip time.
func (p *Pinger) Once(size int, timeout time.Duration) (time.Duration, error) {
	p.seq = (p.seq + 1) & 0xffff
	nonce := rand.Uint64()
	start := time.Now()
	if err := p.conn.SetReadDeadline(start.Add(timeout)); err != nil {
		return 0, fmt.Errorf("ping %s: %w", p.to, err)
	}
	if err := p.request(p.seq, size, nonce); err != nil {
		return 0, err
	}
	for {
		seq, err := p.answer(nonce)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("ping %s: no answer in %v: %w", p.to, timeout, err)
		}
		if err != nil {
			return 0, err
		}
		if seq == p.seq {
			return time.Since(start), nil
		}
	}
}

// Steady sends a request with size bytes of data, at least 8, at each interval until ctx
// ends, also while others are not answered. It returns how many it sent, and how many of
// them got no answer within the timeout.
func (p *Pinger) Steady(ctx context.Context, size int, interval, timeout time.Duration) (sent, lost int, err error) {
	nonce := rand.Uint64()
	var mu sync.Mutex
	var begun []time.Time // of each request
	fail := make(chan error, 1)
	if err := p.conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, 0, fmt.Errorf("ping %s: %w", p.to, err)
	}
	go func() {
		fail <- func() (err error) {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			// The last answers may come until then.
			defer func() { err = errors.Join(err, p.conn.SetReadDeadline(time.Now().Add(timeout))) }()
			for ctx.Err() == nil {
				mu.Lock()
				n := len(begun)
				begun = append(begun, time.Now())
				mu.Unlock()
				if err := p.request(n&0xffff, size, nonce); err != nil {
					return err
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
			return nil
		}()
	}()
	answered := make(map[int]bool)
	for {
		seq, err := p.answer(nonce)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return 0, 0, errors.Join(err, p.conn.Close(), <-fail)
			}
			break
		}
		mu.Lock()
		n := len(begun) - 1 - (len(begun)-1-seq)&0xffff // the last request with that number
		if n >= 0 && time.Since(begun[n]) <= timeout {
			answered[n] = true
		}
		mu.Unlock()
	}
	return len(begun), len(begun) - len(answered), <-fail
}

func (p *Pinger) types() (protocol int, request, answer icmp.Type) {
	if p.to.Is6() {
		return 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	return 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
}

// request sends an echo request with a number and a nonce.
func (p *Pinger) request(seq, size int, nonce uint64) error {
	data := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(data, nonce)
	_, typ, _ := p.types()
	b, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: data}}).Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err == nil {
		_, err = p.conn.WriteTo(b, &net.IPAddr{IP: p.to.AsSlice()})
	}
	if err != nil {
		return fmt.Errorf("ping %s: %w", p.to, err)
	}
	return nil
}

// answer returns the number of the next answer with a nonce.
func (p *Pinger) answer(nonce uint64) (seq int, err error) {
	protocol, _, typ := p.types()
	for {
		n, _, err := p.conn.ReadFrom(p.buf[:])
		if err != nil {
			return 0, fmt.Errorf("ping %s: %w", p.to, err)
		}
		m, err := icmp.ParseMessage(protocol, p.buf[:n])
		if err != nil || m.Type != typ {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if ok && echo.ID == p.id && len(echo.Data) >= 8 && binary.BigEndian.Uint64(echo.Data) == nonce {
			return echo.Seq, nil
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
