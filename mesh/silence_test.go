package mesh

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// valve passes TCP connections on to a peer until it is shut; then what comes
// is neither passed on nor refused.
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

// TestASilentPeerIsMissed: sessions whose links are up say little; once its link
// is down, a peer that does not speak is dropped before the silence is over that
// is granted to one without a link, so that its loss is noticed in ten seconds
// either way.
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
	if d := time.Since(cut); d >= sessionTimeout {
		t.Errorf("it took %v", d)
	}
}

// TestAPeerWithoutALinkSpeaksOften enough for its session to stay, whatever the
// other end has of links.
func TestPeerWithoutALinkIsPingedOften(t *testing.T) {
	t.Parallel()
	b := start(t, noDiscovery)
	a := start(t, noDiscovery, to(b))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	b.SetData(a.Self(), true, time.Millisecond)
	n := (*a.neighbours.Load())[b.Self()]
	heard := n.lastHeard.Load()
	eventually(t, "a hears of b within its timeout", func() bool {
		return n.lastHeard.Load() > heard+int64(pingEvery) || n.err() != nil
	})
	if err := n.err(); err != nil {
		t.Errorf("the session ended: %v", err)
	}
}
