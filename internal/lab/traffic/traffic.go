// Package traffic measures a network between two processes: TCP throughput,
// TCP round trips and the rate of small UDP packets. Both ends are weft, so
// that nothing needs to be installed. The server trusts whoever reaches it; it
// is for labs.
//
// Each measurement opens TCP connections to the server. The first byte says
// what for; integers are big-endian:
//
//	'B' bulk    then data until the client closes its half; the server
//	            answers with the number of data bytes (8 bytes)
//	'P' pinned  the same, but see Client.PinnedBulk
//	'L' latency then single bytes, each sent back as it comes
//	'T' trips   the same, but see Client.Trips
//	'U' packets the server answers with a UDP port (2 bytes) that counts what
//	            the client sends there; at a byte from the client, or its end,
//	            it answers with the number of datagrams (8 bytes)
package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	forBulk    = 'B'
	forLatency = 'L'
	forTrips   = 'T'
	forPinned  = 'P'
	forPackets = 'U'

	bulkChunk = 128 << 10
)

// Serve answers clients on l until ctx ends, and closes l.
func Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve traffic on %s: %w", l.Addr(), err)
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			serveOne(ctx, c) // a client that breaks off is no concern of the server
		})
	}
}

func serveOne(ctx context.Context, c net.Conn) error {
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return err
	}
	switch kind[0] {
	case forBulk:
		return count(c)
	case forPinned:
		return blocking(ctx, c, lastCPU, count)
	case forLatency:
		return sendBack(c)
	case forTrips:
		return blocking(ctx, c, firstCPU, sendBack)
	case forPackets:
		return servePackets(c)
	default:
		return fmt.Errorf("a client asked for %q", kind[0])
	}
}

// count counts what comes, and says it at the end.
func count(c io.ReadWriter) error {
	n, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, bulkChunk))
	if err != nil {
		return err
	}
	return binary.Write(c, binary.BigEndian, uint64(n))
}

// sendBack sends back what comes, byte for byte.
func sendBack(c io.ReadWriter) error {
	var b [1]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return err
		}
		if _, err := c.Write(b[:]); err != nil {
			return err
		}
	}
}

// onlyWriter and onlyReader keep io.CopyBuffer from taking a way round the
// buffer, so that each read is of bulkChunk bytes.
type onlyWriter struct{ io.Writer }

type onlyReader struct{ io.Reader }

// Client measures towards one server.
type Client struct {
	// Dial opens a connection of network "tcp" or "udp".
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Addr string // of the server, host:port
}

// open dials and says what for. The connection closes when ctx ends.
func (c Client) open(ctx context.Context, kind byte) (net.Conn, func(), error) {
	conn, err := c.Dial(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	closeAll := func() { stop(); conn.Close() }
	if _, err := conn.Write([]byte{kind}); err != nil {
		closeAll()
		return nil, nil, err
	}
	return conn, closeAll, nil
}

// Bulk sends over the given number of TCP connections at once and returns the
// bits a second that the server has read.
func (c Client) Bulk(ctx context.Context, streams int, d time.Duration) (float64, error) {
	return c.bulkStreams(ctx, forBulk, streams, d, func(conn net.Conn, send func(io.Writer) error) error { return send(conn) })
}

// bulks is Bulk of a kind; each calls send with what to write to.
func (c Client) bulkStreams(ctx context.Context, kind byte, streams int, d time.Duration, each func(net.Conn, func(io.Writer) error) error) (float64, error) {
	start := time.Now()
	var total, last = make([]uint64, streams), make([]time.Time, streams)
	errs := make([]error, streams)
	var wg sync.WaitGroup
	for i := range streams {
		wg.Go(func() {
			total[i], errs[i] = c.bulk(ctx, kind, start.Add(d), each)
			last[i] = time.Now()
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, fmt.Errorf("send to %s: %w", c.Addr, err)
	}
	var sum uint64
	for _, n := range total {
		sum += n
	}
	return float64(sum) * 8 / slices.MaxFunc(last, time.Time.Compare).Sub(start).Seconds(), nil
}

func (c Client) bulk(ctx context.Context, kind byte, until time.Time, each func(net.Conn, func(io.Writer) error) error) (uint64, error) {
	conn, closeAll, err := c.open(ctx, kind)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	err = each(conn, func(w io.Writer) error {
		b := make([]byte, bulkChunk)
		for {
			// At least once: on a busy machine the time may be over by now.
			if _, err := w.Write(b); err != nil || !time.Now().Before(until) {
				return err
			}
		}
	})
	if err != nil {
		return 0, err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return 0, err
		}
	}
	var n uint64
	err = binary.Read(conn, binary.BigEndian, &n)
	return n, err
}

// Latency returns the median and the 99th percentile of round trips of one
// byte over TCP.
func (c Client) Latency(ctx context.Context, d time.Duration) (median, p99 time.Duration, err error) {
	conn, closeAll, err := c.open(ctx, forLatency)
	if err != nil {
		return 0, 0, fmt.Errorf("round trips to %s: %w", c.Addr, err)
	}
	defer closeAll()
	if median, p99, err = trips(conn, d); err != nil {
		return 0, 0, fmt.Errorf("round trips to %s: %w", c.Addr, err)
	}
	return median, p99, nil
}

// trips times how long a byte takes there and back.
func trips(conn io.ReadWriter, d time.Duration) (median, p99 time.Duration, err error) {
	var b [1]byte
	return times(d, func() error {
		if _, err := conn.Write(b[:]); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, b[:])
		return err
	})
}

// Connects returns the median and the 99th percentile of the time in which a TCP
// connection is made: the first packet of a flow, and its answer.
func (c Client) Connects(ctx context.Context, d time.Duration) (median, p99 time.Duration, err error) {
	median, p99, err = times(d, func() error {
		conn, err := c.Dial(ctx, "tcp", c.Addr)
		if err != nil {
			return err
		}
		if reset, ok := conn.(*net.TCPConn); ok {
			_ = reset.SetLinger(0) // or the ports of a machine are used up
		}
		return conn.Close()
	})
	if err != nil {
		return 0, 0, fmt.Errorf("connect to %s: %w", c.Addr, err)
	}
	return median, p99, nil
}

// times does something at least once and for as long as d, and returns how long it
// took.
func times(d time.Duration, what func() error) (median, p99 time.Duration, err error) {
	var took []time.Duration
	for end := time.Now().Add(d); len(took) == 0 || time.Now().Before(end); {
		start := time.Now()
		if err := what(); err != nil {
			return 0, 0, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}
