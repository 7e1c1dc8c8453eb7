package mesh

import (
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

func newIdentity(t *testing.T, name peer.Name) *peer.Identity {
	t.Helper()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if !name.IsZero() {
		id.Name = name
	}
	return id
}

func withIdentity(id *peer.Identity) option { return func(c *Config) { c.Identity = id } }

// disk keeps the bindings of a peer over its restart.
type disk struct {
	mu   sync.Mutex
	list []peer.Binding
	err  error
}

func (d *disk) use(c *Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.Bindings = d.list
	c.SaveBindings = func(l []peer.Binding) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.err == nil {
			d.list = l
		}
		return d.err
	}
}

func (d *disk) has(n peer.Name, k peer.Key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.list, func(b peer.Binding) bool { return b.Name == n && b.Key == k })
}

// While a host with a name given by a user is away, another one launches with that name.
// It gets no session, also after the peer it asks was restarted. The host gets its name
// back at once. Only an operator can give it to another key.
func TestNameOfAHostThatIsAwayIsNotTaken(t *testing.T) {
	t.Parallel()
	name := peer.Name{0, 0, 0, 0, 0, 9}
	owner, squatter, self := newIdentity(t, name), newIdentity(t, name), newIdentity(t, peer.Name{})
	var d disk
	a := start(t, withIdentity(self), d.use)
	x := start(t, withIdentity(owner), to(a))
	eventually(t, "the host is in the mesh", func() bool { return a.sees(x) })
	x.stop()
	eventually(t, "the host is away", func() bool { return a.sessions() == 0 })
	eventually(t, "its key is on disk", func() bool { return d.has(name, owner.Key()) })
	a.stop()
	a = start(t, withIdentity(self), d.use)
	s := start(t, withIdentity(squatter), to(a))
	eventually(t, "the squatter is refused", s.hasProblem("name collision"))
	if a.sessions() != 0 {
		t.Error("the squatter has a session")
	}
	s.stop()
	x = start(t, withIdentity(owner), to(a))
	eventually(t, "the host is in the mesh again", func() bool { return a.sees(x) })
	x.stop()
	a.ForgetName(name)
	eventually(t, "its key is not on disk any more", func() bool { return !d.has(name, owner.Key()) })
	s = start(t, withIdentity(squatter), to(a))
	eventually(t, "the new host is in the mesh", func() bool { return a.sees(s) && d.has(name, squatter.Key()) })
}

// Bindings that cannot be true are not believed, wherever they come from.
func TestStoredKeyOfADerivedNameIsNotBelieved(t *testing.T) {
	t.Parallel()
	id := newIdentity(t, peer.Name{})
	a := start(t, func(c *Config) { c.Bindings = []peer.Binding{{Name: id.Name, Key: peer.Key{1}}} })
	b := start(t, withIdentity(id), to(a))
	eventually(t, "the true key is in the mesh", func() bool { return a.sees(b) })
}

// testChannel is a channel whose merges a test can block.
type testChannel struct {
	mu    sync.Mutex
	got   []string
	merge func(string) error
}

func (c *testChannel) Digest() []byte                         { return []byte{} }
func (c *testChannel) Missing([]byte) ([][]byte, bool, error) { return nil, false, nil }
func (c *testChannel) Join(_, _ []byte) []byte                { return nil }
func (c *testChannel) Merge(_ peer.Name, d []byte) ([]byte, error) {
	if c.merge != nil {
		if err := c.merge(string(d)); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, string(d))
	return nil, nil
}

func (c *testChannel) has(s string) func() bool {
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.got, s)
	}
}

// A merge that never ends delays neither pings, nor other channels, nor messages, nor
// other neighbours.
func TestSlowMergeBlocksNothingElse(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	slow := &testChannel{merge: func(string) error { <-release; return nil }}
	other := &testChannel{}
	channels := func(x, y *testChannel) []func(*node) { return []func(*node){register(200, x), register(201, y)} }
	a := startWith(t, channels(slow, other))
	b := startWith(t, channels(&testChannel{}, &testChannel{}), to(a))
	c := startWith(t, channels(&testChannel{}, &testChannel{}), to(a))
	eventually(t, "a mesh", func() bool { return a.sees(b, c) && b.sees(a, c) && c.sees(a, b) })
	defer close(release)
	big := make([]byte, gossip.MaxDelta)
	for range 20 { // more than the inbox holds, so the reader of b waits
		b.Announce(200, big)
		c.Announce(200, []byte("little"))
	}
	begun := time.Now()
	b.Announce(201, []byte("from b"))
	c.Announce(201, []byte("from c"))
	eventually(t, "the other channel goes on for c", other.has("from c"))
	eventually(t, "the other channel goes on for b", other.has("from b"))
	for _, n := range []*node{b, c} {
		if err := n.Send(a.Self(), KindIPAM, []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "messages arrive", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.got) == 2
	})
	d := start(t, to(a))
	eventually(t, "a newcomer gets in", func() bool { return a.sees(b, c, d) })
	// All the while the mesh answers, and no session ends.
	eventually(t, "more time than a session may be silent", func() bool {
		a.Status()
		return time.Since(begun) > sessionTimeout+pingEvery
	})
	if n := a.sessions(); n != 3 {
		t.Errorf("%d sessions, want 3", n)
	}
	if a.Status().Terminations != 0 {
		t.Error("a session ended")
	}
}

// A neighbour that sends what cannot be parsed loses its session, is told why, and does
// not get another one at once. One that passes on what the receiver refuses for a reason
// of its own keeps it.
func TestMalformedGossipEndsTheSession(t *testing.T) {
	t.Parallel()
	choosy := &testChannel{merge: func(s string) error {
		if s == "refused" {
			return errors.New("it builds on a record that has not arrived")
		}
		return nil
	}}
	a := startWith(t, []func(*node){register(200, choosy)})
	b := startWith(t, []func(*node){register(200, &testChannel{})}, to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	b.Announce(200, []byte("refused"))
	eventually(t, "a reports the refusal", a.hasProblem("has not arrived"))
	b.Announce(ChannelTopology, []byte("garbage"))
	eventually(t, "b is told", b.hasProblem("malformed"))
	if got := a.Status().Terminations; got > 1 {
		t.Errorf("%d sessions ended, want one", got)
	}
	eventually(t, "b gets no session at once", b.hasProblem("misbehaved"))
	if a.Status().Misbehaved != 1 {
		t.Errorf("%d misbehaved", a.Status().Misbehaved)
	}
}

func TestBansAreBoundedAndGrow(t *testing.T) {
	t.Parallel()
	var b bans
	now := time.Unix(1_700_000_000, 0)
	for i := range 3 * maxBans {
		b.add(peer.Name{2, byte(i >> 8), byte(i)}, now.Add(time.Duration(i)))
	}
	if len(b.all) > maxBans {
		t.Errorf("%d bans, want at most %d", len(b.all), maxBans)
	}
	n := peer.Name{2, 0xff}
	want := banMin
	for range 10 {
		if got := b.add(n, now); got != want {
			t.Errorf("banned for %v, want %v", got, want)
		}
		if b.until(n, now.Add(want-1)).IsZero() || !b.until(n, now.Add(want)).IsZero() {
			t.Error("the ban has another end")
		}
		want = min(2*want, banMax)
	}
	b.expire(now.Add(3 * banMax))
	if len(b.all) != 0 {
		t.Errorf("%d bans are kept for ever", len(b.all))
	}
}

// One neighbour that keeps a channel busy waits; the messages of others are handled.
func TestBusyNeighbourOfAChannelWaits(t *testing.T) {
	t.Parallel()
	a := start(t)
	g := newChannel(a.Mesh, 250, &testChannel{}, nil)
	busy, quiet := &neighbour{name: peer.Name{2, 1}, done: make(chan struct{})}, &neighbour{name: peer.Name{2, 2}, done: make(chan struct{})}
	now := time.Now()
	g.charge(busy.name, mergeBurst+time.Second, now)
	g.put(busy, []byte("busy"))
	if n, _, wait := g.take(now); n != nil || wait.Sub(now) != mergeShare*time.Second {
		t.Errorf("taken from %v, wait %v", n, wait.Sub(now))
	}
	g.put(quiet, []byte("quiet"))
	if n, msg, _ := g.take(now); n != quiet || string(msg) != "quiet" {
		t.Errorf("taken %q", msg)
	}
	if n, _, _ := g.take(now.Add(mergeShare * time.Second)); n != busy {
		t.Error("the busy neighbour waits for too long")
	}
}

func TestMedianOfClocks(t *testing.T) {
	const day = 24 * time.Hour
	if got := median([]time.Duration{0, -day, -day}); got != -day {
		t.Errorf("a host that is ahead of two others corrects itself by %v", got)
	}
	if got := median([]time.Duration{0, 1000 * day, time.Second, -time.Second}); got > time.Minute {
		t.Errorf("one lying neighbour of three moves the clock by %v", got)
	}
}
