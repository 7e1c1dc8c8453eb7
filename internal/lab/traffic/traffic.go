// Package traffic measures a network between two processes: TCP throughput, TCP round trips
// and the rate of small UDP packets. Both ends are weft, so nothing else must be installed.
// The server has no authentication; it is for labs.
//
// Each measurement opens TCP connections to the server. The first byte is the kind of
// measurement; integers are big-endian:
//
//	'B' bulk    data follows until the client closes its direction; the server
//	            answers with the number of data bytes (8 bytes)
//	'P' pinned  the same, see Client.PinnedBulk
//	'L' latency single bytes follow, each is sent back at once
//	'T' trips   the same, see Client.Trips
//	'U' packets the server answers with a UDP port (2 bytes) and counts the
//	            datagrams that arrive there; after a byte from the client, or
//	            EOF, it answers with their number (8 bytes)
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
			serveOne(ctx, c) // an error concerns only this client
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
		return fmt.Errorf("unknown kind of measurement %q", kind[0])
	}
}

// count counts the received bytes and sends their number at the end.
func count(c io.ReadWriter) error {
	n, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, bulkChunk))
	if err != nil {
		return err
	}
	return binary.Write(c, binary.BigEndian, uint64(n))
}

// sendBack sends each received byte back.
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

// onlyWriter and onlyReader hide ReadFrom and WriteTo, with which io.CopyBuffer would bypass
// the buffer. So each read is of up to bulkChunk bytes.
type onlyWriter struct{ io.Writer }

type onlyReader struct{ io.Reader }

// Client takes measurements with one server.
type Client struct {
	// Dial opens a connection of network "tcp" or "udp".
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Addr string // HOST:PORT of the server
}

// open connects to the server and sends the kind of measurement. The connection closes when
// ctx ends.
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

// Bulk sends data over concurrent TCP connections for d. It returns the rate at which the
// server received, in bits per second.
func (c Client) Bulk(ctx context.Context, streams int, d time.Duration) (float64, error) {
	return c.bulkStreams(ctx, forBulk, streams, d, func(conn net.Conn, send func(io.Writer) error) error { return send(conn) })
}

// bulkStreams implements Bulk for a kind. Each must call its send with a writer to the
// connection.
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
			// At least one write: on a busy machine the time may be over already.
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

// Latency returns the median and the 99th percentile of round trips of one byte over TCP.
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

// trips measures round trips of one byte.
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

// Connects returns the median and the 99th percentile of the time to open a TCP connection:
// the first packet of a flow and its answer.
func (c Client) Connects(ctx context.Context, d time.Duration) (median, p99 time.Duration, err error) {
	median, p99, err = times(d, func() error {
		conn, err := c.Dial(ctx, "tcp", c.Addr)
		if err != nil {
			return err
		}
		if reset, ok := conn.(*net.TCPConn); ok {
			_ = reset.SetLinger(0) // closed ports would stay in TIME_WAIT until none is left
		}
		return conn.Close()
	})
	if err != nil {
		return 0, 0, fmt.Errorf("connect to %s: %w", c.Addr, err)
	}
	return median, p99, nil
}

// times calls what repeatedly for d, at least once, and returns how long the calls took.
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
