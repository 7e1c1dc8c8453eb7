package stream

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/weft-net/weft/mesh/peer"
)

var (
	near = peer.Name{2, 1}
	far  = peer.Name{2, 2}
)

// pair connects two Muxes; pass reports for each message whether it arrives.
func pair(t *testing.T, pass func(msg []byte) bool) (a *Mux, accepted chan net.Conn) {
	t.Helper()
	accepted = make(chan net.Conn, 8)
	var b *Mux
	toB, toA := make(chan []byte, 1024), make(chan []byte, 1024)
	a = New(func(_ peer.Name, msg []byte) error {
		if pass(msg) {
			toB <- slices.Clone(msg)
		}
		return nil
	}, func(peer.Name, net.Conn) { t.Error("a accepts a stream") })
	b = New(func(_ peer.Name, msg []byte) error {
		toA <- slices.Clone(msg)
		return nil
	}, func(from peer.Name, c net.Conn) {
		if from != near || c.RemoteAddr() != net.Addr(Addr(near)) {
			t.Errorf("a stream from %s at %s", from, c.RemoteAddr())
		}
		accepted <- c
	})
	done := make(chan struct{})
	for _, p := range []struct {
		in   chan []byte
		to   *Mux
		from peer.Name
	}{{toB, b, near}, {toA, a, far}} {
		go func() {
			for {
				select {
				case msg := <-p.in:
					if err := p.to.Receive(p.from, msg); err != nil {
						t.Error(err)
					}
				case <-done:
					return
				}
			}
		}()
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
		close(done)
	})
	return a, accepted
}

func all([]byte) bool { return true }

func TestBothDirectionsAndClose(t *testing.T) {
	m, accepted := pair(t, all)
	c, err := m.Dial(far)
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("weft"), 50<<10)
	go func() {
		c.Write(big)
		c.Write([]byte("."))
	}()
	d := <-accepted
	got := make([]byte, len(big)+1)
	if _, err := io.ReadFull(d, got); err != nil || !bytes.Equal(got[:len(big)], big) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	go func() {
		d.Write([]byte("answer"))
		d.Close()
	}()
	if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestLostMessageEndsTheStream(t *testing.T) {
	n := 0
	m, accepted := pair(t, func(msg []byte) bool {
		if msg[0] == kindData {
			n++
		}
		return msg[0] != kindData || n != 2
	})
	c, err := m.Dial(far)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 4 {
			c.Write([]byte("x"))
		}
	}()
	if b, err := io.ReadAll(<-accepted); err != nil || string(b) != "x" {
		t.Errorf("%q, %v; want the bytes before the loss, and the end", b, err)
	}
}

func TestCloseEndsAllAndTwiceIsSafe(t *testing.T) {
	m, accepted := pair(t, all)
	c, err := m.Dial(far)
	if err != nil {
		t.Fatal(err)
	}
	<-accepted
	m.Close()
	m.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a read succeeds after Close")
	}
	if _, err := m.Dial(far); err == nil {
		t.Error("a dial succeeds after Close")
	}
}

// One peer opens few streams, and all others together leave some to this peer.
func TestStreamsAreBoundedForEachPeer(t *testing.T) {
	m := New(func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { t.Cleanup(func() { c.Close() }) })
	t.Cleanup(m.Close)
	open := func(from peer.Name, n uint32) {
		for i := range n {
			if err := m.Receive(from, message(kindOpen, i, 0, nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
	open(far, 2*maxStreams)
	if len(m.streams) != maxFromPeer {
		t.Errorf("one peer opened %d streams, want %d", len(m.streams), maxFromPeer)
	}
	open(near, 1)
	if len(m.streams) != maxFromPeer+1 {
		t.Error("another peer cannot open a stream")
	}
	for i := range 200 {
		open(peer.Name{2, 3, byte(i)}, 2*maxFromPeer)
	}
	if len(m.streams) != maxAccepted {
		t.Errorf("others opened %d streams, want %d", len(m.streams), maxAccepted)
	}
	for range maxStreams - maxAccepted {
		if _, err := m.Dial(far); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Dial(far); err == nil {
		t.Error("there is no limit to the streams of this peer")
	}
	for i := range uint32(maxFromPeer) {
		if err := m.Receive(far, message(kindClose, i, 1, nil)); err != nil {
			t.Fatal(err)
		}
	}
	if m.accepted[far] != 0 {
		t.Errorf("%d streams of a peer are counted after it closed all", m.accepted[far])
	}
}

// What waits for a slow reader is bounded in bytes, too.
func TestLargeMessageEndsTheStream(t *testing.T) {
	m, accepted := pair(t, all)
	c, err := m.Dial(far)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d := <-accepted
	for k := range m.streams {
		if err := m.Receive(far, message(kindReply, k.id, 0, make([]byte, maxChunk+1))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a message above the limit is passed on")
	}
	d.Close()
}

func FuzzReceive(f *testing.F) {
	f.Add(message(kindOpen, 1, 0, nil), message(kindData, 1, 1, []byte("x")))
	f.Add(message(kindOpen, 1, 0, nil), message(kindClose, 1, 1, nil))
	f.Add([]byte{kindReply}, message(kindHangup, 9, 0, nil))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		m := New(func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { c.Close() })
		m.Receive(far, a)
		m.Receive(far, b)
		m.Close()
	})
}
