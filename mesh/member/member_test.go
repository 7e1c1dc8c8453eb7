package member

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// world carries messages between lists at once and in order, except those of members that
// are cut off.
type world struct {
	mu    sync.Mutex
	lists map[peer.Name]*List
	cut   map[peer.Name]bool
	// unknown are the members that know only peers whose second byte is 0.
	unknown map[peer.Name]bool
	seen    map[peer.Name]map[peer.Name]Event // by observer, then subject
	inbox   map[peer.Name]chan func()
	done    chan struct{}
}

func (w *world) start(t *testing.T, n peer.Name) *List {
	t.Helper()
	in := make(chan func(), 4096)
	send := func(take func(l *List, msg []byte)) func(peer.Name, []byte) error {
		return func(to peer.Name, msg []byte) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if dst := w.lists[to]; dst != nil && !w.cut[n] && !w.cut[to] {
				msg := slices.Clone(msg)
				select {
				case w.inbox[to] <- func() { take(dst, msg) }:
				default:
				}
			}
			return nil
		}
	}
	l, err := Start(Config{Self: n, Known: func(p peer.Name) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.unknown[n] || p[1] == 0
	},
		SendPacket: send(func(l *List, msg []byte) { l.Packet(n, msg) }),
		SendStream: send(func(l *List, msg []byte) { l.Stream(n, msg) }),
		Notify: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seen[n][e.Peer] = e
		}})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.lists[n], w.inbox[n] = l, in
	if w.seen[n] == nil {
		w.seen[n] = make(map[peer.Name]Event)
	}
	w.mu.Unlock()
	go func() {
		for {
			select {
			case f := <-in:
				f()
			case <-w.done:
				return
			}
		}
	}()
	return l
}

func (w *world) event(observer, subject peer.Name) Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[observer][subject]
}

func TestListsMergeAndNoticeLostMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{lists: map[peer.Name]*List{}, cut: map[peer.Name]bool{}, seen: map[peer.Name]map[peer.Name]Event{}, inbox: map[peer.Name]chan func(){}, done: make(chan struct{})}
		const n = 12
		name := func(i int) peer.Name { return peer.Name{2, 0, 0, 0, 0, byte(i + 1)} }
		var lists []*List
		for i := range n {
			lists = append(lists, w.start(t, name(i)))
		}
		for i := range n - 1 {
			lists[i].Join(name(i + 1))
		}
		time.Sleep(time.Minute)
		if e := w.event(name(0), name(n-1)); !e.Alive {
			t.Errorf("the first sees the last as %+v", e)
		}
		lists[1].Leave()
		time.Sleep(time.Minute)
		if e := w.event(name(0), name(1)); e.Alive {
			t.Errorf("a member that left is seen as %+v", e)
		}
		w.mu.Lock()
		w.cut[name(2)] = true
		w.mu.Unlock()
		time.Sleep(5 * time.Minute)
		if e := w.event(name(0), name(2)); e.Alive || lists[0].Alive(name(2)) {
			t.Errorf("a member that was cut off is seen as %+v", e)
		}
		for i, l := range lists {
			if i != 1 {
				l.Close()
			}
		}
		time.Sleep(2 * time.Minute) // memberlist's goroutines end after Shutdown has returned: a probe may take 80 s
		close(w.done)
	})
}

// A member tells of others that do not exist. They do not become members where the mesh does
// not know them.
func TestMadeUpMembersAreNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, evil := peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}
		w := &world{lists: map[peer.Name]*List{}, cut: map[peer.Name]bool{}, unknown: map[peer.Name]bool{a: true},
			seen: map[peer.Name]map[peer.Name]Event{}, inbox: map[peer.Name]chan func(){}, done: make(chan struct{})}
		lists := []*List{w.start(t, a), w.start(t, evil)}
		for i := range 20 {
			fake := w.start(t, peer.Name{2, 1, 0, 0, 0, byte(i)})
			lists = append(lists, fake)
			fake.Join(evil)
		}
		time.Sleep(time.Minute)
		lists[0].Join(evil)
		time.Sleep(2 * time.Minute)
		if got := len(lists[1].ml.Members()); got != 22 {
			t.Errorf("the liar has %d members, want 22", got)
		}
		if got := len(lists[0].ml.Members()); got != 2 {
			t.Errorf("the honest peer has %d members, want 2", got)
		}
		if !lists[0].Alive(evil) {
			t.Error("the honest peer does not see the one that exists")
		}
		for _, l := range lists {
			l.Close()
		}
		time.Sleep(2 * time.Minute)
		close(w.done)
	})
}

func TestMessagesThatCostMemoryAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty": {}, "compressed": {9, 1}, "user": {8, 1}, "encrypted": {10}, "label": {244, 1, 1}, "state": {6},
		"compressed with sum": {12, 0, 0, 0, 0, 9, 1}, "compressed in a list": {7, 1, 0, 2, 9, 1}, "list in a list": {7, 1, 0, 2, 7, 0},
		"short list": {7, 200, 0}, "long message": {7, 1, 1, 0, 4},
	} {
		if checkPacket(b) == nil {
			t.Errorf("%s: packet %x is passed on", name, b)
		}
	}
	for _, b := range [][]byte{{0, 1}, {4, 1}, {12, 1, 2, 3, 4, 4}, {7, 2, 0, 1, 0, 1, 4, 5}} {
		if err := checkPacket(b); err != nil {
			t.Errorf("packet %x: %v", b, err)
		}
	}
	state := func(nodes, user []byte) []byte {
		return slices.Concat([]byte{6, 0x83, 0xa5}, []byte("Nodes"), nodes, []byte{0xac}, []byte("UserStateLen"), user, []byte{0xa4}, []byte("Join"), []byte{0xc3})
	}
	for name, b := range map[string][]byte{
		"compressed": {9, 1}, "user": {8}, "million nodes": state([]byte{0xce, 0, 0x10, 0, 0}, []byte{0}), "negative": state([]byte{0xd3, 255, 255, 255, 255, 255, 255, 255, 255}, []byte{0}),
		"user state": state([]byte{1}, []byte{0xcd, 1, 0}), "no map": {6, 1}, "no number": state([]byte{0xa1, 1}, []byte{0}), "short": {6, 0x83},
	} {
		if _, err := readHead(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: stream %x is passed on", name, b)
		}
	}
	for _, b := range [][]byte{state([]byte{5}, []byte{0}), state([]byte{0xcd, 2, 0}, []byte{0xd0, 0}), {0}, {2}, {13}} {
		if got, err := readHead(bytes.NewReader(b)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("stream %x is read as %x, %v", b, got, err)
		}
	}
	near, far := net.Pipe()
	go func() {
		far.Write(state([]byte{5}, []byte{0}))
		for {
			if _, err := far.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, guard(near))
	if n > maxState+100 || !errors.Is(err, errRefused) {
		t.Errorf("%d bytes of a state without end, %v", n, err)
	}
	near.Close()
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte{7, 2, 0, 1, 0, 1, 4, 5})
	f.Add([]byte{6, 0x81, 0xa5, 'N', 'o', 'd', 'e', 's', 0xcd, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = checkPacket(b)
		if got, err := readHead(bytes.NewReader(b)); err == nil && !bytes.HasPrefix(b, got) {
			t.Fatalf("%x is read as %x", b, got)
		}
	})
}
