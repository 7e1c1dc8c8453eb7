package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
)

// QueryTimeout is how long a query waits for its answer.
const QueryTimeout = time.Second

// Answers is the result of a measurement of a DNS server.
type Answers struct {
	PerSecond   float64 // answered queries
	Median, P99 time.Duration
	Lost        uint64 // queries without an answer within QueryTimeout
}

// Load is the load that each socket sends to a DNS server.
type Load struct {
	Window    int     // maximum of unanswered queries
	PerSecond float64 // maximum rate of queries; 0 for as many as Window allows
}

// Queries sends queries to a DNS server over connected IPv4 UDP sockets for d. It sends the
// given messages in turn, each with a new id. An answer with an error code or without a
// record fails the measurement.
func Queries(ctx context.Context, socks []*net.UDPConn, load Load, queries [][]byte, d time.Duration) (Answers, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var a Answers
	var mu sync.Mutex // of a, took and failed
	var took []time.Duration
	var failed error
	var wg sync.WaitGroup
	start := time.Now()
	for i, sock := range socks {
		wg.Go(func() {
			q := querier{sock: sock, conn: ipv4.NewPacketConn(sock), Load: load, queries: queries, next: i * len(queries) / len(socks)}
			err := q.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			took, a.Lost, failed = append(took, q.took...), a.Lost+q.lost, errors.Join(failed, err)
		})
	}
	wg.Wait()
	if failed != nil {
		return a, failed
	}
	a.PerSecond = float64(len(took)) / time.Since(start).Seconds()
	if len(took) == 0 {
		return a, fmt.Errorf("no answer to %d DNS queries", a.Lost)
	}
	slices.Sort(took)
	a.Median, a.P99 = took[len(took)/2], took[len(took)*99/100]
	return a, nil
}

// querier sends queries over one socket.
type querier struct {
	sock *net.UDPConn
	conn *ipv4.PacketConn
	Load
	queries [][]byte
	next    int // index in queries

	id      uint16
	sent    [1 << 16]time.Time // by id; zero if not pending
	oldest  uint16             // the oldest id that may be pending
	pending int

	took []time.Duration
	lost uint64
}

// run sends and receives until ctx ends.
func (q *querier) run(ctx context.Context) error {
	out, in := messages(q.Window, maxDNS), messages(q.Window, maxDNS)
	start := time.Now()
	for asked := 0; ctx.Err() == nil; {
		n, timeout := q.Window-q.pending, QueryTimeout
		if q.PerSecond > 0 {
			// The loop checks once per millisecond whether the next query is due.
			due := int(time.Since(start).Seconds()*q.PerSecond) + 1
			n, timeout = min(n, due-asked), time.Millisecond
		}
		if err := q.send(out[:n]); err != nil {
			return fmt.Errorf("send DNS queries: %w", err)
		}
		asked += n
		if err := q.sock.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return fmt.Errorf("receive DNS answers: %w", err)
		}
		n, err := q.conn.ReadBatch(in, 0)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("receive DNS answers: %w", err)
		}
		now := time.Now()
		for _, m := range in[:max(n, 0)] {
			if err := q.receive(m.Buffers[0][:m.N], now); err != nil {
				return err
			}
		}
		q.expire(now)
	}
	return nil
}

// maxDNS bounds a DNS message in bytes.
const maxDNS = 1500

// send sends as many queries as out has messages.
func (q *querier) send(out []ipv4.Message) error {
	now := time.Now()
	for i := range out {
		query := append(out[i].Buffers[0][:0], q.queries[q.next]...)
		q.next = (q.next + 1) % len(q.queries)
		binary.BigEndian.PutUint16(query, q.id)
		q.sent[q.id] = now
		q.id++
		q.pending++
		out[i].Buffers[0] = query
	}
	for len(out) > 0 {
		sent, err := q.conn.WriteBatch(out, 0)
		if err != nil {
			return err
		}
		out = out[sent:]
	}
	return nil
}

// receive processes an answer. It ignores answers to expired queries.
func (q *querier) receive(b []byte, now time.Time) error {
	const header = 12
	if len(b) < header {
		return nil
	}
	id := binary.BigEndian.Uint16(b)
	if q.sent[id].IsZero() {
		return nil
	}
	if code, records := b[3]&15, binary.BigEndian.Uint16(b[6:]); code != 0 || records == 0 {
		return fmt.Errorf("the DNS server answered with code %d and %d records", code, records)
	}
	q.took = append(q.took, now.Sub(q.sent[id]))
	q.sent[id] = time.Time{}
	q.pending--
	return nil
}

// expire counts queries without an answer as lost.
func (q *querier) expire(now time.Time) {
	for ; q.oldest != q.id; q.oldest++ {
		switch at := q.sent[q.oldest]; {
		case at.IsZero():
		case now.Sub(at) < QueryTimeout:
			return
		default:
			q.sent[q.oldest] = time.Time{}
			q.pending--
			q.lost++
		}
	}
}
