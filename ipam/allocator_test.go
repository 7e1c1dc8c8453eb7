package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// testMesh is the Mesh of Allocators in one process. Messages are queued and
// delivered by one goroutine for each peer.
type testMesh struct {
	self  peer.Name
	peers map[peer.Name]*testMesh
	queue chan func()
	alloc *Allocator
}

func (l *testMesh) Reachable(n peer.Name) bool  { return l.peers[n] != nil }
func (l *testMesh) Nickname(n peer.Name) string { return fmt.Sprintf("host%d", n[5]) }
func (l *testMesh) Peers() (out []peer.Name) {
	for n := range l.peers {
		if n != l.self {
			out = append(out, n)
		}
	}
	return out
}

func (l *testMesh) Key(n peer.Name) (peer.Key, bool) { return peer.Key{n[5]}, l.peers[n] != nil }
func (l *testMesh) Place(n peer.Name) (netip.Addr, bool) {
	return netip.AddrFrom4([4]byte{192, 0, 2, n[5]}), l.peers[n] != nil
}
func (l *testMesh) Target(peer.Name) bool   { return true }
func (l *testMesh) AwaitsTarget() bool      { return false }
func (l *testMesh) Collides() bool          { return false }
func (l *testMesh) Banned() bool            { return false }
func (l *testMesh) SetBanned([]ring.Holder) {}
func (l *testMesh) ForgetName(peer.Name)    {}

func (l *testMesh) post(f func()) {
	select {
	case l.queue <- f:
	default: // full: lost
	}
}

func (l *testMesh) Send(to peer.Name, msg []byte) error {
	p := l.peers[to]
	if p == nil {
		return errors.New("no such peer")
	}
	p.post(func() { _ = p.alloc.Receive(l.self, msg) })
	return nil
}

func (l *testMesh) Announce(delta []byte) {
	for _, p := range l.peers {
		if p != l {
			p.post(func() { _, _ = p.alloc.Channel().Merge(l.self, delta) })
		}
	}
}

// startMesh runs n Allocators until the test ends.
func startMesh(t *testing.T, n int, disk func(i int) Disk) []*Allocator {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	peers := map[peer.Name]*testMesh{}
	var out []*Allocator
	for i := range n {
		l := &testMesh{self: peer.Name{2, 5: byte(i + 1)}, peers: peers, queue: make(chan func(), 1000)}
		peers[l.self] = l
	}
	for i := range n {
		l := peers[peer.Name{2, 5: byte(i + 1)}]
		a, notes, err := New(Config{Self: l.self, Signer: peer.Cheap{ID: peer.Key{byte(i + 1)}}, Verifier: peer.Cheap{},
			Range: pfx(addrRange), Init: Init{Mode: Consensus, Expect: n}}, l, disk(i), slog.New(slog.DiscardHandler))
		if err != nil || len(notes) > 0 {
			t.Fatal(err, notes)
		}
		l.alloc = a
		out = append(out, a)
	}
	for _, l := range peers {
		wg.Go(func() { _ = l.alloc.Run(ctx) })
		wg.Go(func() {
			for {
				select {
				case f := <-l.queue:
					f()
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return out
}

func memDisks(int) Disk { return newDisk() }

func TestManyAllocateAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := startMesh(t, 5, memDisks)
		var mu sync.Mutex
		seen := map[netip.Prefix]bool{}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				p, err := as[i%5].Allocate(context.Background(), fmt.Sprint("c", i), netip.Prefix{})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || seen[p] {
					t.Errorf("c%d: %v, %v", i, p, err)
				}
				seen[p] = true
			})
		}
		wg.Wait()
		if st := as[0].Status(); st.State != "ready" || st.Used != 20 || st.Owners[0].Nickname != "host1" {
			t.Errorf("status %+v", st)
		}
		got := as[0].Lookup("c5")
		if len(got) != 1 || as[0].Release("c5", got[0].Addr()) != nil || as[0].Release("c5", got[0].Addr()) == nil {
			t.Errorf("release of %v", got)
		}
		if n := len(as[0].ReleaseAll("c0")) + len(as[0].ReleaseAll("c0")); n != 1 || len(as[0].Owners()) != 18 {
			t.Errorf("released %d", n)
		}
	})
}

func TestDeadlineSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := startMesh(t, 1, memDisks)
		as[0].mu.Lock()
		as[0].core.cfg.Init.Expect = 3
		as[0].core.election, _ = as[0].core.newElection(nil, nil)
		as[0].mu.Unlock()
		start := time.Now()
		_, err := as[0].Allocate(context.Background(), "x", netip.Prefix{})
		want := "allocate an address of 10.32.0.0/20 for x: deadline exceeded: consensus not reached: 1 of 2 needed peers answered"
		if !errors.Is(err, ErrDeadline) || err.Error() != want {
			t.Errorf("error %q", err)
		}
		if d := time.Since(start); d != DefaultDeadline {
			t.Errorf("after %v", d)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := as[0].Prime(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("after the context was canceled: %v", err)
		}
	})
}

// While the disk fails no address is given. Afterwards the allocator continues.
func TestNothingIsGivenWhileTheDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk()
		as := startMesh(t, 1, func(int) Disk { return disk })
		if err := as[0].Prime(context.Background()); err != nil {
			t.Fatal(err)
		}
		as[0].mu.Lock()
		disk.err = errors.New("no space left on device")
		as[0].mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if p, err := as[0].Allocate(ctx, "x", netip.Prefix{}); err == nil || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%v, %v", p, err)
		}
		if as[0].Status().DiskErr == nil {
			t.Error("status does not show it")
		}
		if _, err := as[0].Channel().Merge(peer.Name{2}, []byte{deltaRing}); err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("merged: %v", err)
		}
		as[0].mu.Lock()
		disk.err = nil
		as[0].mu.Unlock()
		if _, err := as[0].Allocate(context.Background(), "x", netip.Prefix{}); err != nil {
			t.Error(err)
		}
		if len(disk.data[bucketAddresses]) != 1 {
			t.Errorf("on disk: %v", disk.data[bucketAddresses])
		}
	})
}

func TestHandoverEndsTheAllocator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := startMesh(t, 2, memDisks)
		for i, a := range as {
			if _, err := a.Allocate(context.Background(), fmt.Sprint(i), netip.Prefix{}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := as[0].Handover(context.Background())
		if err != nil || got.Heir != (peer.Name{2, 5: 2}) || !got.Unreachable.IsZero() || got.Addresses.IsZero() {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := as[0].Allocate(context.Background(), "x", netip.Prefix{}); !errors.Is(err, ErrLeft) {
			t.Errorf("allocates after it left: %v", err)
		}
		if o := as[1].Status().Owners; len(o) != 1 || o[0].Percent != 100 {
			t.Errorf("owners %+v", o)
		}
	})
}

// An error names what was tried once, and the peer once.
func TestErrorsSayEachThingOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		as := startMesh(t, 4, memDisks)
		one, two := peer.Name{2, 5: 1}, peer.Name{2, 5: 2}
		check := func(err error, want string) {
			t.Helper()
			if got, _, _ := strings.Cut(fmt.Sprint(err), "; 02:"); got != want { // what follows depends on the time
				t.Errorf("error %q, want %q", err, want)
			}
		}
		_, err := as[0].Refound([]peer.Name{two})
		as[0].mu.Lock()
		none := as[0].core.noRing().Error()
		as[0].mu.Unlock()
		check(err, "remove peers by force: there is no ring: "+none)
		for i, a := range as {
			if _, err := a.Allocate(ctx, fmt.Sprint(i), netip.Prefix{}); err != nil {
				t.Fatal(err)
			}
		}
		_, err = as[0].RemovePeers(ctx, []peer.Name{one}, ByOperator)
		check(err, "remove peers: 02:00:00:00:00:01(host1) is this peer; reset it instead")
		_, err = as[0].RemovePeers(ctx, []peer.Name{two}, ByOperator)
		check(err, "remove peers: 02:00:00:00:00:02(host2) can be reached; reset it there instead")
		_, err = as[0].Refound([]peer.Name{two})
		check(err, "remove peers by force: 02:00:00:00:00:02(host2) can be reached; reset it there instead")
		for _, a := range as {
			a.mu.Lock()
		}
		for _, gone := range []peer.Name{{2, 5: 3}, {2, 5: 4}} {
			delete(as[0].mesh.(*testMesh).peers, gone)
		}
		for _, a := range as {
			a.mu.Unlock()
		}
		const undecided = "2 of 4 voters can be reached, 3 must agree; away: 02:00:00:00:00:03(host3), 02:00:00:00:00:04(host4)"
		_, err = as[0].RemovePeers(ctx, []peer.Name{{2, 5: 3}}, ByOperator)
		check(err, "remove peers: deadline exceeded: 02:00:00:00:00:03(host3): "+undecided)
		_, err = as[0].Handover(ctx)
		check(err, "hand over the addresses of 10.32.0.0/20: deadline exceeded: the voters have not decided that 02:00:00:00:00:02(host2) gets them: "+undecided)
	})
}

func TestConfigIsChecked(t *testing.T) {
	for why, cfg := range map[string]Config{
		"no range":        {},
		"default outside": {Range: pfx("10.0.0.0/8"), Default: pfx("11.0.0.0/24")},
		"no seeds":        {Range: pfx("10.0.0.0/8"), Init: Init{Mode: Seed}},
	} {
		cfg.Signer = peer.Cheap{}
		if _, _, err := New(cfg, &testMesh{}, newDisk(), slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: accepted", why)
		}
	}
}

// A real file that is closed and opened again has the same state.
func TestStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses.db")
	self := peer.Name{2, 5: 1}
	var first netip.Prefix
	for run := range 3 {
		disk, notes, err := OpenDisk(path, self, pfx(addrRange))
		if err != nil || len(notes) > 0 {
			t.Fatal(err, notes)
		}
		l := &testMesh{self: self, peers: map[peer.Name]*testMesh{}}
		a, bad, err := New(Config{Self: self, Signer: peer.Cheap{}, Verifier: peer.Cheap{}, Range: pfx(addrRange),
			Grace: time.Nanosecond, Init: Init{Mode: Consensus, Expect: 1}}, l, disk, slog.New(slog.DiscardHandler))
		if err != nil || len(bad) > 0 {
			t.Fatal(err, bad)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		p, err := a.Allocate(context.Background(), "x", netip.Prefix{})
		if err != nil || run > 0 && p != first {
			t.Errorf("run %d: %v, %v; first %v", run, p, err, first)
		}
		if first = p; len(a.Owners()) != 1 {
			t.Errorf("run %d: %v", run, a.Owners())
		}
		cancel()
		if err := errors.Join(<-done, disk.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestSetPicksByFamily(t *testing.T) {
	var set Set
	for _, u := range []string{"fd00::/48", addrRange} {
		a, _, err := New(Config{Self: peer.Name{2, 5: 1}, Signer: peer.Cheap{}, Range: pfx(u)}, &testMesh{}, newDisk(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		set = append(set, a)
	}
	for _, p := range []string{"192.168.0.1/24", "fe80::1/64"} { // outside the address ranges: recorded at once
		p := pfx(p)
		if err := set.For(p.Addr()).Claim(context.Background(), "x", p); err != nil {
			t.Error(err)
		}
	}
	if got := fmt.Sprint(set.Lookup("x"), set.ReleaseAll("x"), set.Lookup("x")); got != "[192.168.0.1/24 fe80::1/64] [192.168.0.1/24 fe80::1/64] []" {
		t.Error(got)
	}
}

func TestParseInit(t *testing.T) {
	for s, want := range map[string]string{
		"consensus":          "{0 0 []}",
		"consensus=7":        "{0 7 []}",
		"observer":           "{1 0 []}",
		"seed=::1,::2":       "{2 0 [00:00:00:00:00:01 00:00:00:00:00:02]}",
		"consensus=0":        "error",
		"consensus=x":        "error",
		"consensus=99999999": "error",
		"":                   "error",
		"seed=::1,::1":       "error",
		"seed=":              "error",
		"seed":               "error",
		"observer=1":         "error",
		"quorum":             "error",
	} {
		in, err := ParseInit(s)
		got := fmt.Sprint(in)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q reads %s (%v), want %s", s, got, err, want)
		}
	}
}

func TestForeignAndDamagedFilesAreSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses.db")
	open := func(self byte, u string) []string {
		t.Helper()
		s, notes, err := OpenDisk(path, peer.Name{2, 5: self}, pfx(u))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return notes
	}
	if got := append(open(1, addrRange), open(1, addrRange)...); len(got) != 0 {
		t.Errorf("notes of a new file: %v", got)
	}
	if got := open(2, addrRange); len(got) != 1 || !strings.Contains(got[0], "peer 02:00:00:00:00:01, not 02:00:00:00:00:02") {
		t.Errorf("another name: %v", got)
	}
	if got := open(2, "10.0.0.0/8"); len(got) != 1 || !strings.Contains(got[0], "address range 10.32.0.0/20, not 10.0.0.0/8") {
		t.Errorf("another address range: %v", got)
	}
	if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := open(2, "10.0.0.0/8"); len(got) != 1 || !strings.Contains(got[0], "damaged") {
		t.Errorf("a damaged file: %v", got)
	}
	kept, _ := filepath.Glob(path + ".*")
	if len(kept) != 3 {
		t.Errorf("kept %v", kept)
	}
}

// Some values of the file are damaged: the allocator starts, reports them, and does
// not give an address again that it can still read.
func TestDamagedValues(t *testing.T) {
	s := newSim(t, seed.New(t))
	n := s.add(addrRange, Init{Mode: Consensus, Expect: 1})
	n.allocate("x", addrRange)
	for bucket, values := range n.disk.data {
		for k := range values {
			n.disk.data[bucket][k] = []byte{1}
			break
		}
	}
	n.core = newCore(n.cfg, n, s.rng)
	if notes := n.core.load(n.disk); len(notes) == 0 {
		t.Error("nothing was reported")
	}
	n.do(func(c *core) { c.tick() })
}

var _ gossip.Channel = channel{}

func FuzzMessage(f *testing.F) {
	for _, m := range []message{
		{kind: msgRecords, body: []byte{1}}, {kind: msgSpaceAsk, prefix: pfx("10.32.0.0/12")},
		{kind: msgSpaceAsk, prefix: pfx("fd00::/64")}, {kind: msgSpaceAnswer, status: 1}, {kind: msgLeave, body: []byte{2}},
		{kind: msgClaimAsk, addr: netip.MustParseAddr("::1")}, {kind: msgClaimAnswer}, {kind: msgWish, body: []byte("p")},
		{kind: msgRound, body: []byte("r")}, {kind: msgBehind, slot: 3},
		{kind: msgStateAsk, slot: 3, body: make([]byte, len(ring.ID{}))}, {kind: msgStateAnswer, status: statusToo, slot: 3, disk: noSlot, body: []byte{0, 1, 1}},
	} {
		f.Add(m.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		again, err := parseMessage(m.encode())
		if err != nil || fmt.Sprint(again) != fmt.Sprint(m) {
			t.Fatalf("%x: %+v, again %+v, %v", b, m, again, err)
		}
		// No message makes a peer that has a ring panic.
		s := newSim(t, 1)
		n := s.add(addrRange, Init{Mode: Seed, Seeds: []peer.Name{{2, 5: 1}}})
		n.do(func(c *core) { c.startSeeds() })
		n.do(func(c *core) { _ = c.receive(peer.Name{2, 5: 9}, b) })
	})
}

func FuzzChannel(f *testing.F) {
	s := newSim(f, 1)
	n := s.add(addrRange, Init{Mode: Consensus, Expect: 1})
	n.do(func(c *core) { c.election.Propose() })
	f.Add(append([]byte{deltaElection}, n.core.election.Delta()...))
	f.Add(n.core.digest())
	n.do(func(c *core) { c.startNamed(c.cfg.Self) })
	f.Add(n.core.digest())
	deltas, _, _ := n.core.missing(append(ring.EncodeRange(n.cfg.Range), ring.New(n.cfg.Range, peer.Cheap{}, nil).Digest()...))
	for _, d := range deltas {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSim(t, 1)
		for _, ready := range []bool{false, true} {
			n := s.add(addrRange, Init{Mode: Consensus, Expect: 3})
			if ready {
				n.do(func(c *core) { c.startNamed(c.cfg.Self) })
			}
			before := fmt.Sprintf("%x", n.core.digest())
			n.do(func(c *core) {
				if _, err := c.merge(peer.Name{2, 5: 9}, b); err != nil && fmt.Sprintf("%x", c.digest()) != before {
					t.Fatalf("changed on error %v", err)
				}
			})
			n.do(func(c *core) { _, _, _ = c.missing(b) })
			if j := joinDeltas(b, b); len(j) > gossip.MaxDelta {
				t.Fatalf("joined to %d bytes", len(j))
			}
		}
	})
}
