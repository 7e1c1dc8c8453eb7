package member

import (
	"net/netip"
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
	seen  map[peer.Name]map[peer.Name]Event // by observer, then subject
	inbox map[peer.Name]chan func()
	done  chan struct{}
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
	l, err := Start(Config{Self: n,
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
		addr := netip.MustParseAddrPort("10.0.0.7:6783")
		lists[n-1].SetAddrs([]netip.AddrPort{addr})
		for i := range n - 1 {
			lists[i].Join(name(i + 1))
		}
		time.Sleep(time.Minute)
		if e := w.event(name(0), name(n-1)); !e.Alive || !slices.Equal(e.Addrs, []netip.AddrPort{addr}) {
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

func FuzzMeta(f *testing.F) {
	f.Add(appendMeta(nil, []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("[::1]:2")}, 512))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, err := parseMeta(b)
		if err != nil {
			return
		}
		again, err := parseMeta(appendMeta(nil, addrs, 1<<16))
		if err != nil || !slices.Equal(addrs, again) {
			t.Fatalf("%v comes back as %v, %v", addrs, again, err)
		}
	})
}
