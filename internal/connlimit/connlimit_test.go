package connlimit

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
)

// pipes is a listener of pipes with made-up sources.
type pipes chan net.Conn

type from struct {
	net.Conn
	addr   net.Addr
	closed *atomic.Bool
}

func (f from) Close() error {
	f.closed.Store(true)
	return f.Conn.Close()
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, errors.New("closed")
	}
	return c, nil
}

func (p pipes) Close() error { return nil }

func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// dial returns the near end of a new connection, nil if it was refused.
func dial(t *testing.T, l *Listener, addr string) *Conn {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close() })
	var source net.Addr = &net.UnixAddr{}
	if addr != "" {
		source = &net.TCPAddr{IP: net.ParseIP(addr)}
	}
	if c := l.add(from{b, source, new(atomic.Bool)}); c != nil {
		return c.(*Conn)
	}
	b.Close()
	return nil
}

func isClosed(c net.Conn) bool { return c.(from).closed.Load() }

func TestNewConnectionsTakeThePlaceOfTheOldest(t *testing.T) {
	p := make(pipes)
	l := New(p, 3, 0)
	var near []*Conn
	for range 3 {
		near = append(near, dial(t, l, ""))
	}
	done := near[0].Use()
	if n := dial(t, l, ""); n == nil || isClosed(near[0].Conn) || !isClosed(near[1].Conn) || isClosed(near[2].Conn) {
		t.Error("not the oldest connection without use made room")
	}
	near[2].Use()
	dial(t, l, "") // takes the place of the fourth
	if l.open.Len() != 3 {
		t.Errorf("%d connections are open", l.open.Len())
	}
	for at := l.open.Front(); at != nil; at = at.Next() {
		at.Value.(*Conn).Use()
	}
	if n := dial(t, l, ""); n != nil {
		t.Error("a connection is accepted although all are in use")
	}
	done()
	done() // does nothing more
	if n := dial(t, l, ""); n != nil {
		t.Error("the connection has two uses, and made room after one")
	}
	near[2].Close()
	near[2].Close()
	if n := dial(t, l, ""); n == nil || l.open.Len() != 3 {
		t.Errorf("after a connection was closed there is no space; %d are open", l.open.Len())
	}
}

func TestEachSourceHasItsShare(t *testing.T) {
	p := make(pipes)
	l := New(p, 10, 2)
	victim := dial(t, l, "10.0.0.1")
	var flood []*Conn
	for range 50 {
		n := dial(t, l, "10.0.0.66")
		flood = append(flood, n)
	}
	if isClosed(victim.Conn) || l.open.Len() != 3 || isClosed(flood[49].Conn) || isClosed(flood[48].Conn) || !isClosed(flood[47].Conn) {
		t.Errorf("%d connections are open, that of another source closed: %v", l.open.Len(), isClosed(victim.Conn))
	}
	for _, n := range append(flood, victim) {
		n.Close()
	}
	if l.open.Len() != 0 || len(l.source) != 0 {
		t.Errorf("%d connections and %d sources are left", l.open.Len(), len(l.source))
	}
}

func TestAcceptGoesOnAfterARefusal(t *testing.T) {
	p := make(pipes, 2)
	l := New(p, 1, 0)
	first := dial(t, l, "")
	done := first.Use()
	a, b := net.Pipe()
	defer a.Close()
	p <- b
	go func() {
		buf := make([]byte, 1)
		if _, err := a.Read(buf); err == nil {
			t.Error("a refused client gets data")
		}
		done()
		c, d := net.Pipe()
		defer c.Close()
		p <- d
		close(p)
	}()
	if _, err := l.Accept(); err != nil {
		t.Errorf("accept: %v", err)
	}
}
