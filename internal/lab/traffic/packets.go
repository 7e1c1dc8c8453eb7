package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/ipv4"
)

const (
	// lateTime is how long the server continues to count after the client has
	// reported that it sent its last datagram.
	lateTime = 100 * time.Millisecond
	// packetBatch bounds the datagrams per system call. Batches make the network the
	// bottleneck for small datagrams, not the sending process.
	packetBatch = 64
	// paceInterval is how often a paced sender sends the datagrams that are due.
	paceInterval = time.Millisecond
)

// servePackets counts datagrams to a new UDP port.
func servePackets(c net.Conn) error {
	local := c.LocalAddr().(*net.TCPAddr)
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: local.IP, Zone: local.Zone})
	if err != nil {
		return err
	}
	defer u.Close()
	u.SetReadBuffer(4 << 20) // the system may limit it
	counted := make(chan uint64)
	go func() {
		var n uint64
		in, batch := ipv4.NewPacketConn(u), messages(packetBatch, 2048)
		for {
			got, err := in.ReadBatch(batch, 0)
			if err != nil {
				counted <- n
				return
			}
			n += uint64(got)
		}
	}()
	port := uint16(u.LocalAddr().(*net.UDPAddr).Port)
	err = binary.Write(c, binary.BigEndian, port)
	if err == nil {
		var b [1]byte
		_, err = io.ReadFull(c, b[:])
	}
	u.SetReadDeadline(time.Now().Add(lateTime))
	n := <-counted
	if err != nil {
		return err
	}
	return binary.Write(c, binary.BigEndian, n)
}

// messages returns n messages of size bytes.
func messages(n, size int) []ipv4.Message {
	m := make([]ipv4.Message, n)
	for i := range m {
		m[i].Buffers = [][]byte{make([]byte, size)}
	}
	return m
}

// Packets sends UDP datagrams of size bytes for d, at most perSecond per second or, if that
// is 0, as fast as possible. It returns the received datagrams per second and the lost
// fraction.
func (c Client) Packets(ctx context.Context, size int, perSecond float64, d time.Duration) (rate, lost float64, err error) {
	rate, lost, err = c.packets(ctx, size, perSecond, d)
	if err != nil {
		err = fmt.Errorf("send packets to %s: %w", c.Addr, err)
	}
	return rate, lost, err
}

func (c Client) packets(ctx context.Context, size int, perSecond float64, d time.Duration) (rate, lost float64, err error) {
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return 0, 0, err
	}
	control, closeAll, err := c.open(ctx, forPackets)
	if err != nil {
		return 0, 0, err
	}
	defer closeAll()
	var port uint16
	if err := binary.Read(control, binary.BigEndian, &port); err != nil {
		return 0, 0, err
	}
	u, err := c.Dial(ctx, "udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		return 0, 0, err
	}
	defer u.Close()
	uc, ok := u.(net.PacketConn)
	if !ok {
		return 0, 0, fmt.Errorf("a %T is not a packet connection", u)
	}
	start := time.Now()
	sent, err := sendPackets(ctx, ipv4.NewPacketConn(uc), size, perSecond, d)
	if err != nil {
		return 0, 0, err
	}
	took := time.Since(start)
	if _, err := control.Write([]byte{0}); err != nil {
		return 0, 0, err
	}
	var got uint64
	if err := binary.Read(control, binary.BigEndian, &got); err != nil {
		return 0, 0, err
	}
	if sent > 0 {
		lost = max(0, 1-float64(got)/float64(sent))
	}
	return float64(got) / took.Seconds(), lost, nil
}

func sendPackets(ctx context.Context, out *ipv4.PacketConn, size int, perSecond float64, d time.Duration) (sent uint64, err error) {
	batch := messages(packetBatch, size)
	start := time.Now()
	var refused error
	for {
		n := len(batch)
		elapsed := time.Since(start)
		if elapsed >= d {
			if sent > 0 {
				refused = nil // the measurement counts it as loss
			}
			return sent, refused
		}
		if perSecond > 0 {
			due := uint64(perSecond*elapsed.Seconds()) + 1
			if due <= sent {
				time.Sleep(paceInterval)
				continue
			}
			n = int(min(uint64(n), due-sent))
		}
		got, err := out.WriteBatch(batch[:n], 0)
		sent += uint64(max(got, 0))
		if err != nil && ctx.Err() != nil {
			return sent, ctx.Err()
		}
		refused = err // a full queue, or an ICMP error for an earlier datagram
	}
}

// Sustained returns the highest received rate of datagrams of size bytes at which the lost
// fraction is less than tolerated. Each rate is tried for d.
func (c Client) Sustained(ctx context.Context, size int, tolerated float64, d time.Duration) (float64, error) {
	var s rateSearch
	for {
		rate, ok := s.next()
		if !ok {
			return s.best, nil
		}
		got, lost, err := c.Packets(ctx, size, rate, d)
		if err != nil {
			return 0, err
		}
		s.tried(rate, got, lost < tolerated)
	}
}

// rateSearch searches for the highest good rate. It goes up in large steps to the first bad
// rate, then bisects. A rate counts as bad only after two failures, because the scheduler
// may delay any process once.
type rateSearch struct {
	good, bad float64 // tried rates; 0 if none yet
	again     bool    // the last try failed for the first time
	best      float64 // highest received rate of all good tries
	last      float64
}

const (
	firstRate = 5_000
	rateStep  = 1.5
	rateClose = 1.05 // ratio of bad to good at which to stop
	maxRate   = 10e6
)

// next returns the rate to try, or false when the search is over.
func (s *rateSearch) next() (rate float64, ok bool) {
	switch {
	case s.again:
		return s.last, true
	case s.bad == 0 && s.good == 0:
		return firstRate, true
	case s.bad == 0:
		return s.good * rateStep, s.good < maxRate
	case s.good == 0:
		return s.bad / 2, s.bad > 2
	}
	return (s.good + s.bad) / 2, s.bad/s.good > rateClose
}

func (s *rateSearch) tried(rate, received float64, good bool) {
	first := !s.again
	s.last, s.again = rate, false
	switch {
	case good:
		s.good, s.best = rate, max(s.best, received)
	case first:
		s.again = true
	default:
		s.bad = rate
	}
}
