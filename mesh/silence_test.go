package mesh

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// valve forwards TCP connections to a peer until it is shut. Then it drops all data,
// but keeps the connections open.
type valve struct {
	net.Listener
	to   string
	shut atomic.Bool
}

func newValve(t *testing.T, to *node) *valve {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &valve{Listener: l, to: to.addr()}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", v.to)
			if err != nil {
				near.Close()
				continue
			}
			context.AfterFunc(ctx, func() { near.Close(); far.Close() })
			go v.pass(near, far)
			go v.pass(far, near)
		}
	}()
	return v
}

func (v *valve) pass(from, to net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if err != nil {
			to.Close()
			return
		}
		if v.shut.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// A session whose link is up carries few pings. After the link went down, a silent
// peer is dropped earlier than one that never had a link. So a loss is noticed within
// ten seconds in both cases.
func TestSilentPeerIsDropped(t *testing.T) {
	t.Parallel()
	b := start(t, noDiscovery)
	v := newValve(t, b)
	a := start(t, noDiscovery, func(c *Config) { c.Targets = []string{v.Addr().String()} })
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	a.SetData(b.Self(), true, time.Millisecond)
	b.SetData(a.Self(), true, time.Millisecond)
	v.shut.Store(true)
	cut := time.Now()
	for _, n := range []*node{a, b} {
		n.SetData(a.Self(), false, 0)
		n.SetData(b.Self(), false, 0)
	}
	for _, n := range []*node{a, b} {
		eventually(t, "the silent peer is dropped", func() bool { return n.sessions() == 0 })
	}
	eventually(t, "the peers are away", func() bool { return a.downAs(b, Away)() && b.downAs(a, Away)() })
	if d := time.Since(cut); d >= sessionTimeout {
		t.Errorf("it took %v", d)
	}
}

// A peer without a link is pinged often enough for its session to stay, even if the
// other end has a link.
func TestPeerWithoutALinkIsPingedOften(t *testing.T) {
	t.Parallel()
	b := start(t, noDiscovery)
	a := start(t, noDiscovery, to(b))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	b.SetData(a.Self(), true, time.Millisecond)
	n := (*a.neighbours.Load())[b.Self()]
	heard := n.lastHeard.Load()
	eventually(t, "a ping of b within the timeout", func() bool {
		return n.lastHeard.Load() > heard+int64(pingEvery) || n.err() != nil
	})
	if err := n.err(); err != nil {
		t.Errorf("the session ended: %v", err)
	}
}
