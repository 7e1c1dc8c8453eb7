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
	a = New(limits, nil, func(_ peer.Name, msg []byte) error {
		if pass(msg) {
			toB <- slices.Clone(msg)
		}
		return nil
	}, func(peer.Name, net.Conn) { t.Error("a accepts a stream") })
	b = New(limits, nil, func(_ peer.Name, msg []byte) error {
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

// limits are those of the tests.
var limits = Limits{Opened: 40, Accepted: 20, FromPeer: 8, Waiting: 1 << 20}

// newMux returns a Mux that drops what it sends, and closes no stream.
func newMux(t *testing.T) *Mux {
	m := New(limits, nil, func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { t.Cleanup(func() { c.Close() }) })
	t.Cleanup(m.Close)
	return m
}

// open makes a peer open streams.
func (m *Mux) open(t *testing.T, from peer.Name, n int) {
	t.Helper()
	for range n {
		m.mu.Lock()
		m.last++
		id := m.last
		m.mu.Unlock()
		if err := m.Receive(from, message(kindOpen, id, 0, nil)); err != nil {
			t.Fatal(err)
		}
	}
}

// from returns how many streams a peer opened that have not ended.
func (m *Mux) from(n peer.Name) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.accepted[n])
}

// One peer opens few streams, and all others together leave those of this peer alone.
func TestStreamsAreBoundedForEachPeer(t *testing.T) {
	m := newMux(t)
	m.open(t, far, 2*limits.Accepted)
	if n := m.from(far); n != limits.FromPeer {
		t.Errorf("one peer opened %d streams, want %d", n, limits.FromPeer)
	}
	m.open(t, near, 1)
	if m.from(near) != 1 {
		t.Error("another peer cannot open a stream")
	}
	for i := range 200 {
		m.open(t, peer.Name{2, 3, byte(i)}, 2*limits.FromPeer)
	}
	if len(m.streams) != limits.Accepted {
		t.Errorf("others opened %d streams, want %d", len(m.streams), limits.Accepted)
	}
	for range limits.Opened {
		if _, err := m.Dial(far); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Dial(far); err == nil {
		t.Error("there is no limit to the streams of this peer")
	}
}

// One member opens all streams that others may, under several names. Each of the honest
// peers still gets one.
func TestNobodyTakesTheStreamsOfOthers(t *testing.T) {
	m := newMux(t)
	evil := []peer.Name{{2, 6, 1}, {2, 6, 2}, {2, 6, 3}}
	for _, n := range evil {
		m.open(t, n, limits.FromPeer)
	}
	var honest []peer.Name
	for i := range limits.Accepted - len(evil) {
		honest = append(honest, peer.Name{2, 5, byte(i)})
		m.open(t, honest[i], 1)
	}
	for _, n := range evil {
		m.open(t, n, limits.FromPeer) // they try again
	}
	for _, n := range append(honest, evil...) {
		if got := m.from(n); got != 1 {
			t.Errorf("peer %s has %d streams, want 1", n, got)
		}
	}
	m.open(t, far, 1)
	if m.from(far) != 0 || len(m.streams) != limits.Accepted {
		t.Error("a peer takes the only stream of another one")
	}
}

// One member opens all streams that others may, under the names of peers that it made up, in
// rows behind each other. That counts as one peer, and peers behind one relay are not
// treated as if they were the relay.
func TestMadeUpPeersTakeNoStreamsOfOthers(t *testing.T) {
	relay, evil := peer.Name{2, 8}, peer.Name{2, 6}
	madeUp := func(i int) peer.Name { return peer.Name{2, 7, byte(i)} }
	behind := func(n peer.Name) []peer.Name {
		switch n[1] {
		case 7:
			path := []peer.Name{relay, evil}
			for i := range int(n[2]) {
				path = append(path, madeUp(i))
			}
			return append(path, n)
		case 5, 6:
			return []peer.Name{relay, n}
		}
		return []peer.Name{n}
	}
	m := New(limits, behind, func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { t.Cleanup(func() { c.Close() }) })
	t.Cleanup(m.Close)
	for i := range limits.Accepted {
		m.open(t, madeUp(i), 1)
	}
	for i := range limits.Accepted / 2 {
		m.open(t, peer.Name{2, 5, byte(i)}, 1) // behind the relay, as evil is
		for j := range limits.Accepted {
			m.open(t, madeUp(j), 1)
		}
	}
	for i := range limits.Accepted / 4 {
		m.open(t, peer.Name{2, 4, byte(i)}, 1)
	}
	m.open(t, far, limits.FromPeer)
	for i := range limits.Accepted {
		m.open(t, madeUp(i), 1)
	}
	alone := 0
	for i := range limits.Accepted / 4 {
		alone += m.from(peer.Name{2, 4, byte(i)})
	}
	spokes, all := 0, 0
	for i := range limits.Accepted / 2 {
		spokes += m.from(peer.Name{2, 5, byte(i)})
	}
	for i := range limits.Accepted {
		all += m.from(madeUp(i))
	}
	if alone != limits.Accepted/4 || spokes < limits.Accepted/2-4 || all > 4 || len(m.streams) > limits.Accepted {
		t.Errorf("%d streams of peers of their own, %d of those behind the relay, %d of made-up ones", alone, spokes, all)
	}
}

// The oldest stream makes room, as its peer may have forgotten it.
func TestOldestStreamMakesRoom(t *testing.T) {
	l := limits
	l.Accepted, l.FromPeer = 3, 3
	accepted := make(chan net.Conn, 8)
	m := New(l, nil, func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { accepted <- c })
	t.Cleanup(m.Close)
	m.open(t, far, 3)
	oldest := <-accepted
	m.open(t, near, 1)
	if _, err := oldest.Read(make([]byte, 1)); err == nil {
		t.Error("the oldest stream did not end")
	}
	if a, b := m.from(far), m.from(near); a != 2 || b != 1 {
		t.Errorf("%d streams of the one peer, %d of the other, want 2 and 1", a, b)
	}
}

func TestEndedStreamsAreNotCounted(t *testing.T) {
	m := newMux(t)
	c, err := m.Dial(far)
	if err != nil {
		t.Fatal(err)
	}
	m.open(t, far, limits.FromPeer)
	for id := uint32(2); id <= m.last; id++ {
		if err := m.Receive(far, message(kindClose, id, 1, nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Receive(far, message(kindHangup, 1, 0, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the stream did not end")
	}
	if m.from(far) != 0 || m.own != 0 || len(m.streams) != 0 {
		t.Errorf("%d and %d streams are counted after all ended", m.from(far), m.own)
	}
}

// What waits for a reader that does not read is bounded in bytes.
func TestSlowReaderEndsTheStream(t *testing.T) {
	l := limits
	l.Waiting = 4 * maxChunk
	accepted := make(chan net.Conn, 1)
	m := New(l, nil, func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { accepted <- c })
	t.Cleanup(m.Close)
	m.open(t, far, 1)
	for seq := range uint32(maxInFlight / 2) {
		if err := m.Receive(far, message(kindData, m.last, 1+seq, make([]byte, maxChunk))); err != nil {
			t.Fatal(err)
		}
	}
	b, err := io.ReadAll(<-accepted)
	if err != nil || len(b) > l.Waiting+maxChunk || len(b) < l.Waiting {
		t.Errorf("%d bytes were kept, %v; the limit is %d", len(b), err, l.Waiting)
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
		m := New(limits, nil, func(peer.Name, []byte) error { return nil }, func(_ peer.Name, c net.Conn) { c.Close() })
		m.Receive(far, a)
		m.Receive(far, b)
		m.Close()
	})
}
