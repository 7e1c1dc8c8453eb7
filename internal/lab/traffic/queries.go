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

// QueryTimeout is how long an answer to a DNS query is waited for.
const QueryTimeout = time.Second

// Answers is what a DNS server did with queries.
type Answers struct {
	PerSecond   float64 // that were answered
	Median, P99 time.Duration
	Lost        uint64 // queries that were not answered in time
}

// Load is how a DNS server is asked at each socket.
type Load struct {
	Window    int     // the most queries that are under way at once
	PerSecond float64 // that are sent at most, 0 for as many as the window lets
}

// Queries asks a DNS server over connected IPv4 UDP sockets for as long as d.
// Queries, each a message, are sent in turns; the id is put in. An answer counts if
// there is no error in it, and at least one record.
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

// asker keeps queries under way at one socket.
type querier struct {
	sock *net.UDPConn
	conn *ipv4.PacketConn
	Load
	queries [][]byte
	next    int // of queries

	id      uint16
	sent    [1 << 16]time.Time // by id, while under way
	oldest  uint16             // of the ids that may be under way
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
			// Whether the next one is due is looked at once a millisecond.
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

// maxDNS is the most bytes of a message.
const maxDNS = 1500

// send sends so many queries.
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

// receive takes an answer in. Those to queries that were given up are none.
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
		return fmt.Errorf("a DNS server answers with code %d and %d records", code, records)
	}
	q.took = append(q.took, now.Sub(q.sent[id]))
	q.sent[id] = time.Time{}
	q.pending--
	return nil
}

// giveUp makes room in the window where no answer has come.
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
