package proxy

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"
)

// Clients that send nothing keep nobody out: the oldest make room.
func TestSilentClientsMakeRoom(t *testing.T) {
	p, err := New(Config{Host: "unix:///nowhere", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("tcp://127.0.0.1:0", TLS{}, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	first := dial()
	for range maxConns {
		dial()
	}
	first.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := first.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the oldest silent client is still connected: %v", err)
	}
	last := dial()
	if _, err := last.Write([]byte("GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	last.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 12)
	if n, err := last.Read(b); err != nil || string(b[:n]) != "HTTP/1.1 502" { // there is no engine
		t.Errorf("a client beside them gets %q, %v", b[:n], err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error) //nolint:errorlint // as net returns it
	return ok && e.Timeout()
}
