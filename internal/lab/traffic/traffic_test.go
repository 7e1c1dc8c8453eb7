package traffic

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

func serve(t *testing.T) Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	var d net.Dialer
	return Client{Dial: d.DialContext, Addr: l.Addr().String()}
}

func TestMeasureLoopback(t *testing.T) {
	c := serve(t)
	for _, streams := range []int{1, 4} {
		rate, err := c.Bulk(t.Context(), streams, 50*time.Millisecond)
		if err != nil || rate <= 0 {
			t.Errorf("%d streams: %.0f bit/s, %v", streams, rate, err)
		}
		if rate, err = c.PinnedBulk(t.Context(), streams, 50*time.Millisecond); err != nil || rate <= 0 {
			t.Errorf("%d streams on two CPUs: %.0f bit/s, %v", streams, rate, err)
		}
	}
	if rate, err := c.Bulk(t.Context(), 1, 0); err != nil || rate <= 0 {
		t.Errorf("in no time: %.0f bit/s, %v", rate, err)
	}
	median, p99, err := c.Latency(t.Context(), 20*time.Millisecond)
	if err != nil || median <= 0 || p99 < median {
		t.Errorf("round trip: median %v, 99th %v, %v", median, p99, err)
	}
	if median, p99, err = c.Trips(t.Context(), 20*time.Millisecond); err != nil || median <= 0 || p99 < median {
		t.Errorf("round trip on one CPU: median %v, 99th %v, %v", median, p99, err)
	}
	if median, p99, err = c.Connects(t.Context(), 20*time.Millisecond); err != nil || median <= 0 || p99 < median {
		t.Errorf("connect: median %v, 99th %v, %v", median, p99, err)
	}
	rate, lost, err := c.Packets(t.Context(), 64, 0, 200*time.Millisecond)
	if err != nil || rate <= 0 || lost < 0 || lost > 1 {
		t.Errorf("packets: %.0f/s, lost %.2f, %v", rate, lost, err)
	}
}

// The end of the context interrupts a blocking call.
func TestTripsEndWithTheirContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var d net.Dialer
	c := Client{Dial: d.DialContext, Addr: l.Addr().String()}
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			_, _ = io.ReadFull(conn, make([]byte, 2)) // the kind, and the first byte
		}
		cancel()
		<-t.Context().Done()
	}()
	if _, _, err = c.Trips(ctx, time.Hour); err == nil {
		t.Error("no error")
	}
}

func TestPacketsArePaced(t *testing.T) {
	rate, lost, err := serve(t).Packets(t.Context(), 64, 1000, 200*time.Millisecond)
	if err != nil || rate > 1100 || lost > 0 {
		t.Errorf("%.0f/s, lost %.3f, %v; want at most 1000/s and no loss", rate, lost, err)
	}
}

// The simulated networks lose everything above a rate, and now and then at any rate.
func TestRateSearch(t *testing.T) {
	for _, limit := range []float64{3, 700, 5000, 48_000, 1.3e6} {
		var s rateSearch
		tries := 0
		for {
			rate, ok := s.next()
			if !ok {
				break
			}
			if tries++; tries > 60 {
				t.Fatalf("limit %.0f: no end after %d tries", limit, tries)
			}
			hiccup := tries%7 == 3 // never two tries in a row
			s.tried(rate, min(rate, limit), rate <= limit && !hiccup)
		}
		if s.best > limit || s.best < limit*0.9 {
			t.Errorf("limit %.0f: found %.0f", limit, s.best)
		}
	}
	var s rateSearch
	for rate, ok := s.next(); ok; rate, ok = s.next() {
		s.tried(rate, 0, false)
	}
	if s.best != 0 {
		t.Errorf("found a rate of %.0f in a network that loses everything", s.best)
	}
}

func TestServerSurvivesDisconnects(t *testing.T) {
	c := serve(t)
	for _, first := range []string{"", "?", "B", "L", "U", "Bxyz"} {
		conn, err := c.Dial(t.Context(), "tcp", c.Addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(first))
		conn.Close()
	}
	if _, _, err := c.Latency(t.Context(), time.Millisecond); err != nil {
		t.Error(err)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	c := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Bulk(ctx, 2, time.Hour); err == nil {
		t.Error("bulk did not stop")
	}
}

// counted counts what is written to a connection.
type counted struct {
	*net.TCPConn
	bytes *atomic.Uint64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.bytes.Add(uint64(n))
	return n, err
}

// The rate is the number of bytes that arrived, divided by the time until the last arrived.
func TestBulkCountsReceivedBytes(t *testing.T) {
	c := serve(t)
	var sent atomic.Uint64
	dial := c.Dial
	c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return counted{conn.(*net.TCPConn), &sent}, nil
	}
	for _, streams := range []int{1, 4} {
		sent.Store(0)
		start := time.Now()
		rate, err := c.Bulk(t.Context(), streams, 50*time.Millisecond)
		took := time.Since(start).Seconds()
		if err != nil {
			t.Fatal(err)
		}
		// One byte of each stream is the kind.
		if arrived, bytes := rate/8*took, float64(sent.Load()); arrived < bytes*0.99 || rate/8*0.05 > bytes {
			t.Errorf("%d streams: %.0f bytes were sent in %.3f s, and the rate is %.0f bit/s", streams, bytes, took, rate)
		}
	}
}
