package traffic

import (
	"net"
	"testing"
	"time"
)

// answerer starts a DNS server that answers with those flags, except every nth query. It
// returns a socket that is connected to the server.
func answerer(t *testing.T, nth int, flags byte) *net.UDPConn {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { server.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for i := 1; ; i++ {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if i%nth == 0 {
				continue
			}
			b[2], b[3], b[7] = 0x80, flags, 1
			server.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	client, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

var someQueries = [][]byte{make([]byte, 20), make([]byte, 30)}

func TestQueries(t *testing.T) {
	a, err := Queries(t.Context(), []*net.UDPConn{answerer(t, 1<<30, 0), answerer(t, 1<<30, 0)}, Load{Window: 8}, someQueries, 200*time.Millisecond)
	if err != nil || a.PerSecond <= 0 || a.Median <= 0 || a.P99 < a.Median || a.Lost != 0 {
		t.Errorf("%+v, %v", a, err)
	}
	const each = 500.0
	a, err = Queries(t.Context(), []*net.UDPConn{answerer(t, 1<<30, 0), answerer(t, 1<<30, 0)}, Load{Window: 8, PerSecond: each}, someQueries, 500*time.Millisecond)
	if err != nil || a.PerSecond > 2.2*each {
		t.Errorf("paced at %v a second: %+v, %v", 2*each, a, err)
	}
	// Unanswered queries do not stop the others.
	a, err = Queries(t.Context(), []*net.UDPConn{answerer(t, 5, 0)}, Load{Window: 4}, someQueries, 2500*time.Millisecond)
	if err != nil || a.Lost < 4 || a.Lost > 20 || a.P99 >= QueryTimeout {
		t.Errorf("with one of five lost: %+v, %v", a, err)
	}
	if a, err := Queries(t.Context(), []*net.UDPConn{answerer(t, 1<<30, 2)}, Load{Window: 1}, someQueries, 200*time.Millisecond); err == nil {
		t.Errorf("with errors for answers: %+v", a)
	}
}
