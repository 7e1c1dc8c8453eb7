// Package connlimit bounds the connections of a listener so that silent clients keep nobody out.
//
// A listener that refuses connections beyond a limit can be taken by whoever opens that many
// and sends nothing. Here a new connection takes the place of the oldest one that is not in
// use, first of those from the same address if that has more than its share.
//
// All functions are safe for concurrent use.
package connlimit

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// Listener is a net.Listener with a bounded number of connections. Make it with New.
type Listener struct {
	net.Listener
	most, each int

	mu     sync.Mutex
	open   *list.List         // of *Conn, the oldest first
	source map[netip.Addr]int // the number of open connections by source
}

// New returns a listener with at most most connections at once, and at most each from one
// address; each 0 is for no such limit. Connections of unix sockets have no address.
func New(l net.Listener, most, each int) *Listener {
	return &Listener{Listener: l, most: most, each: each, open: list.New(), source: make(map[netip.Addr]int)}
}

// Accept implements net.Listener. The result is a *Conn. If all connections are in use it
// closes the new one and waits for another.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if made := l.add(c); made != nil {
			return made, nil
		}
		c.Close()
	}
}

// add takes in a connection. It returns nil if there is no space for it.
func (l *Listener) add(c net.Conn) net.Conn {
	made := &Conn{Conn: c, listener: l, from: sourceOf(c)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.each > 0 && made.from.IsValid() && l.source[made.from] >= l.each && !l.makeRoom(made.from) {
		return nil
	}
	if l.open.Len() >= l.most && !l.makeRoom(netip.Addr{}) {
		return nil
	}
	made.place = l.open.PushBack(made)
	l.source[made.from]++
	return made
}

// makeRoom closes the oldest connection that is not in use, from one address or, given the zero
// Addr, from any. It is called with mu held.
func (l *Listener) makeRoom(from netip.Addr) bool {
	for at := l.open.Front(); at != nil; at = at.Next() {
		if c := at.Value.(*Conn); c.uses == 0 && (!from.IsValid() || c.from == from) {
			l.remove(c)
			c.Conn.Close()
			return true
		}
	}
	return false
}

// remove forgets a connection. It is called with mu held.
func (l *Listener) remove(c *Conn) {
	if c.place == nil {
		return
	}
	l.open.Remove(c.place)
	c.place = nil
	if l.source[c.from]--; l.source[c.from] == 0 {
		delete(l.source, c.from)
	}
}

func sourceOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// Conn is a connection of a Listener.
type Conn struct {
	net.Conn
	listener *Listener
	from     netip.Addr

	// Guarded by listener.mu.
	place *list.Element // nil: closed
	uses  int
}

// Use keeps the connection open until done is called: a request is being answered, or the client
// has proved itself.
func (c *Conn) Use() (done func()) {
	add := func(n int) {
		c.listener.mu.Lock()
		defer c.listener.mu.Unlock()
		c.uses += n
	}
	add(1)
	return sync.OnceFunc(func() { add(-1) })
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite closes the direction to the client, if the connection has two.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
