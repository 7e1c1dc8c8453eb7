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
			k := asker{sock: sock, conn: ipv4.NewPacketConn(sock), Load: load, queries: queries, next: i * len(queries) / len(socks)}
			err := k.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			took, a.Lost, failed = append(took, k.took...), a.Lost+k.lost, errors.Join(failed, err)
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
type asker struct {
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
func (k *asker) run(ctx context.Context) error {
	out, in := messages(k.Window, maxDNS), messages(k.Window, maxDNS)
	start := time.Now()
	for asked := 0; ctx.Err() == nil; {
		n, timeout := k.Window-k.pending, QueryTimeout
		if k.PerSecond > 0 {
			// Whether the next one is due is looked at once a millisecond.
			due := int(time.Since(start).Seconds()*k.PerSecond) + 1
			n, timeout = min(n, due-asked), time.Millisecond
		}
		if err := k.send(out[:n]); err != nil {
			return fmt.Errorf("send DNS queries: %w", err)
		}
		asked += n
		if err := k.sock.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return fmt.Errorf("receive DNS answers: %w", err)
		}
		n, err := k.conn.ReadBatch(in, 0)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("receive DNS answers: %w", err)
		}
		now := time.Now()
		for _, m := range in[:max(n, 0)] {
			if err := k.receive(m.Buffers[0][:m.N], now); err != nil {
				return err
			}
		}
		k.giveUp(now)
	}
	return nil
}

// maxDNS is the most bytes of a message.
const maxDNS = 1500

// send sends so many queries.
func (k *asker) send(out []ipv4.Message) error {
	now := time.Now()
	for i := range out {
		q := append(out[i].Buffers[0][:0], k.queries[k.next]...)
		k.next = (k.next + 1) % len(k.queries)
		binary.BigEndian.PutUint16(q, k.id)
		k.sent[k.id] = now
		k.id++
		k.pending++
		out[i].Buffers[0] = q
	}
	for len(out) > 0 {
		sent, err := k.conn.WriteBatch(out, 0)
		if err != nil {
			return err
		}
		out = out[sent:]
	}
	return nil
}

// receive takes an answer in. Those to queries that were given up are none.
func (k *asker) receive(b []byte, now time.Time) error {
	const header = 12
	if len(b) < header {
		return nil
	}
	id := binary.BigEndian.Uint16(b)
	if k.sent[id].IsZero() {
		return nil
	}
	if code, records := b[3]&15, binary.BigEndian.Uint16(b[6:]); code != 0 || records == 0 {
		return fmt.Errorf("a DNS server answers with code %d and %d records", code, records)
	}
	k.took = append(k.took, now.Sub(k.sent[id]))
	k.sent[id] = time.Time{}
	k.pending--
	return nil
}

// giveUp makes room in the window where no answer has come.
func (k *asker) giveUp(now time.Time) {
	for ; k.oldest != k.id; k.oldest++ {
		switch at := k.sent[k.oldest]; {
		case at.IsZero():
		case now.Sub(at) < QueryTimeout:
			return
		default:
			k.sent[k.oldest] = time.Time{}
			k.pending--
			k.lost++
		}
	}
}
