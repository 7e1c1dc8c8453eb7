package traffic

import (
	"context"
	"net"
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
		if err != nil || rate < 1e6 {
			t.Errorf("%d streams: %.0f bit/s, %v", streams, rate, err)
		}
	}
	median, p99, err := c.Latency(t.Context(), 20*time.Millisecond)
	if err != nil || median <= 0 || p99 < median {
		t.Errorf("round trip: median %v, 99th %v, %v", median, p99, err)
	}
	rate, lost, err := c.Packets(t.Context(), 64, 50*time.Millisecond)
	if err != nil || rate < 100 || lost < 0 || lost > 1 {
		t.Errorf("packets: %.0f/s, lost %.2f, %v", rate, lost, err)
	}
}

func TestServerOutlivesClientsThatBreakOff(t *testing.T) {
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
		t.Error("bulk went on")
	}
}
