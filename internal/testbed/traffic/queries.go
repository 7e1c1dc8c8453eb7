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
	"sync/atomic"
	"time"
)

// QueryPatience is how long an answer to a DNS query is waited for.
const QueryPatience = time.Second

// Answers is what a DNS server did with queries.
type Answers struct {
	PerSecond   float64 // that were answered
	Median, P99 time.Duration
	Lost        uint64 // queries that were not answered in time
}

// Queries asks a DNS server over connected UDP sockets, from each one after the
// other, for as long as d. A query is a message without its id; they are sent in
// turns. An answer counts if it has the id of the query, no error and at least
// one record.
func Queries(ctx context.Context, socks []net.Conn, queries [][]byte, d time.Duration) (Answers, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var a Answers
	var mu sync.Mutex // of a, took and failed
	var took []time.Duration
	var failed error
	var next atomic.Uint32
	var wg sync.WaitGroup
	start := time.Now()
	for _, sock := range socks {
		wg.Go(func() {
			times, lost, err := ask(ctx, sock, queries, &next)
			mu.Lock()
			defer mu.Unlock()
			took, a.Lost, failed = append(took, times...), a.Lost+lost, errors.Join(failed, err)
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

// ask sends one query after the other until ctx ends.
func ask(ctx context.Context, sock net.Conn, queries [][]byte, next *atomic.Uint32) (took []time.Duration, lost uint64, err error) {
	out, in := make([]byte, 512), make([]byte, 4096)
	for ctx.Err() == nil {
		n := next.Add(1)
		id := uint16(n)
		out = append(binary.BigEndian.AppendUint16(out[:0], id), queries[int(n)%len(queries)][2:]...)
		start := time.Now()
		if err := sock.SetReadDeadline(start.Add(QueryPatience)); err != nil {
			return took, lost, fmt.Errorf("send DNS queries: %w", err)
		}
		if _, err := sock.Write(out); err != nil {
			return took, lost, fmt.Errorf("send DNS queries: %w", err)
		}
		for answered := false; !answered; {
			n, err := sock.Read(in)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				lost++
				break
			}
			if err != nil {
				return took, lost, fmt.Errorf("receive DNS answers: %w", err)
			}
			if n < 12 || binary.BigEndian.Uint16(in) != id {
				continue // an answer that came late
			}
			if in[3]&15 != 0 || binary.BigEndian.Uint16(in[6:]) == 0 {
				return took, lost, fmt.Errorf("a DNS server answers with code %d and %d records", in[3]&15, binary.BigEndian.Uint16(in[6:]))
			}
			took, answered = append(took, time.Since(start)), true
		}
	}
	return took, lost, nil
}
