package link

import (
	"bytes"
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/liveness"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// world joins two machines by a session that loses nothing and a path that
// loses, delays and refuses as the test says. Its clock jumps from event to
// event. Data packets are sealed and opened as a router would.
type world struct {
	t      *testing.T
	now    time.Time
	rng    *rand.Rand
	queue  events
	ends   [2]*end
	loss   float64
	delay  time.Duration
	spread time.Duration // of the delay: reordering
	mtu    int           // of the path; larger packets vanish
	iface  int           // of the interface; larger ones are refused, if not 0
	cut    [2]bool       // whether what end i sends is lost
	// sessionCut holds back the session's messages.
	sessionCut bool

	// elsewhere counts packets to addresses that neither end has.
	elsewhere map[netip.AddrPort]int

	sent, opened, unopened int
	probes                 int
	silent                 int // Silent effects
	offBeat                int // probes at another time than all links of a router beat
}

type end struct {
	m      *Machine
	addr   netip.AddrPort
	tx     *seal.Tx
	rx     map[uint32]*seal.Rx
	used   map[uint32]bool
	states []State
	offers int
	// indexes is how many receiver indexes are taken.
	indexes int
	nonce   seal.Nonce
}

type event struct {
	at  time.Time
	seq int
	run func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

var (
	low, high = peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}
	start     = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	epoch     = start.Add(-1234 * time.Millisecond)
)

func newWorld(t *testing.T, change func(i int, c *Config)) *world {
	w := &world{t: t, now: start, elsewhere: make(map[netip.AddrPort]int), rng: seed.Rand(t), delay: 5 * time.Millisecond, mtu: 1500}
	addrs := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("192.0.2.2:6783")}
	index := uint32(100)
	var begin [2][]Effect
	for i := range w.ends {
		w.ends[i] = &end{addr: addrs[i], rx: map[uint32]*seal.Rx{}, used: map[uint32]bool{}}
		c := Config{Self: low, Peer: high, Suites: 3, Addr: addrs[1-i], Lanes: 2, MaxMTU: 9000, Secret: [32]byte{9},
			Entropy: rand.NewChaCha8([32]byte{byte(i)}), Jitter: w.rng, Epoch: epoch, NewIndex: func() uint32 { index++; w.ends[i].indexes++; return index }}
		if i == 1 {
			c.Self, c.Peer = high, low
		}
		if change != nil {
			change(i, &c)
		}
		w.ends[i].m, begin[i] = New(c, w.now)
	}
	for i := range w.ends {
		w.do(i, begin[i])
	}
	return w
}

func (w *world) after(d time.Duration, run func()) {
	heap.Push(&w.queue, event{w.now.Add(d), len(w.queue) + int(w.rng.Uint32()>>8), run})
}

func (w *world) do(i int, effects []Effect) {
	e := w.ends[i]
	for _, f := range effects {
		switch f := f.(type) {
		case SendControl:
			if f.Msg[0] == byte(wire.Offer) {
				e.offers++
			}
			if !w.sessionCut {
				w.after(w.delay, func() {
					out, err := w.ends[1-i].m.Control(w.now, f.Msg)
					if err != nil {
						w.t.Error(err)
					}
					w.do(1-i, out)
				})
			}
		case SendProbe:
			size := max(int(f.Body.Size), 100)
			if w.iface > 0 && size > w.iface {
				w.do(i, e.m.TooBig(w.now, size))
				continue
			}
			w.probes++
			if w.now.Sub(epoch)%Beat > time.Millisecond {
				w.offBeat++
			}
			b := make([]byte, wire.ProbeLen)
			f.Body.Put(b)
			w.packet(i, f.To, wire.Probe, b, size)
		case InstallRx:
			e.rx[f.Index] = f.Rx
		case RemoveRx:
			delete(e.rx, f.Index)
			e.indexes--
		case Silent:
			w.silent++
		case UseTx:
			e.tx = f.Tx
		}
	}
	if s, _ := e.m.State(); len(e.states) == 0 || e.states[len(e.states)-1] != s {
		e.states = append(e.states, s)
	}
}

// packet seals and sends; the other end opens it when it comes.
func (w *world) packet(i int, to netip.AddrPort, typ wire.Type, body []byte, size int) []byte {
	e, o := w.ends[i], w.ends[1-i]
	p := make([]byte, wire.HeaderLen, wire.Overhead+len(body))
	p, err := e.tx.Seal(typ, uint8(w.rng.IntN(2)), append(p, body...), &e.nonce)
	if err != nil {
		w.t.Fatal(err)
	}
	keep := bytes.Clone(p)
	if to != o.addr {
		w.elsewhere[to]++
	}
	if w.cut[i] || size > w.mtu || to != o.addr || w.rng.Float64() < w.loss {
		return keep
	}
	from := e.addr
	if typ == wire.Data {
		w.sent++
	}
	w.after(w.delay+time.Duration(w.rng.Int64N(int64(w.spread)+1)), func() { w.arrive(1-i, from, p) })
	return keep
}

func (w *world) arrive(i int, from netip.AddrPort, p []byte) (ok bool) {
	e := w.ends[i]
	h, err := wire.ParseHeader(p)
	if err != nil {
		w.t.Fatal(err)
	}
	rx := e.rx[h.Index]
	if rx == nil {
		w.unopened++
		return false
	}
	body, newest, err := rx.Open(h, p, &e.nonce)
	if err != nil {
		w.unopened++
		return false
	}
	canAnswer := e.tx != nil // a lane does not wait until the machine has heard of the packet
	if !e.used[h.Index] {
		e.used[h.Index] = true
		w.do(i, e.m.FirstUse(w.now, h.Index))
	}
	if newest && from != e.m.Addr() {
		w.do(i, e.m.Moved(w.now, from))
	}
	if h.Type == wire.Probe {
		b, err := wire.ParseProbe(body)
		if err != nil {
			w.t.Fatal(err)
		}
		if b.Answer {
			w.do(i, e.m.Answered(w.now, b))
			return true
		}
		w.do(i, e.m.Asked(w.now))
		b.Answer = true
		answer := make([]byte, wire.ProbeLen)
		b.Put(answer)
		if canAnswer {
			w.packet(i, from, wire.Probe, answer, 100)
		}
		return true
	}
	w.opened++
	return true
}

func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for steps := 0; ; steps++ {
		if steps > 5_000_000 {
			w.t.Fatal("the machines do not come to rest")
		}
		next, who := end, -1
		for i, e := range w.ends {
			if t := e.m.Next(); !t.IsZero() && t.Before(next) {
				next, who = t, i
			}
		}
		if len(w.queue) > 0 && !w.queue[0].at.After(next) {
			ev := heap.Pop(&w.queue).(event)
			w.now = ev.at
			ev.run()
			continue
		}
		if who < 0 {
			w.now = end
			return
		}
		if next.After(w.now) {
			w.now = next
		} else {
			w.now = w.now.Add(time.Microsecond) // a driver is never in time
		}
		w.do(who, w.ends[who].m.Tick(w.now))
	}
}

func (w *world) want(what string, s State, reason string) {
	w.t.Helper()
	for i, e := range w.ends {
		got, why := e.m.State()
		if got != s || !strings.Contains(why, reason) {
			w.t.Errorf("%s: end %d is %s (%s), want %s (%s)", what, i, got, why, s, reason)
		}
	}
}

func (w *world) wantMTU(what string, mtu int) {
	w.t.Helper()
	for i, e := range w.ends {
		if got := e.m.MTU(); got != mtu {
			w.t.Errorf("%s: end %d has mtu %d, want %d", what, i, got, mtu)
		}
	}
}

func TestComesUp(t *testing.T) {
	w := newWorld(t, nil)
	w.want("at first", Pending, "keys")
	w.run(2 * time.Second)
	w.want("after 2 s", Established, "")
	for i, e := range w.ends {
		if s, ok := e.m.Suite(); !ok || s != seal.AES256GCM || e.m.RTT() != 10*time.Millisecond {
			t.Errorf("end %d: %v, round trip %v", i, s, e.m.RTT())
		}
	}
	w.run(30 * time.Second)
	w.wantMTU("1500 path, 9000 interface", 1500)
}

// The first heartbeat arrives before the other end may send, so nobody answers it.
func TestComesUpAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.iface = 1500 // or the search for the path MTU waits for sizes that are lost
	w.run(150 * time.Millisecond)
	w.want("after 150 ms", Established, "")
}

func TestPathMTU(t *testing.T) {
	for _, c := range []struct{ path, iface, want int }{
		{1500, 1500, 1500}, {1400, 1500, 1400}, {1234, 1500, 1234}, {8951, 9000, 8951},
		{65535, 0, 9000}, {600, 1500, 600}, {500, 1500, MinMTU},
	} {
		w := newWorld(t, nil)
		w.mtu, w.iface = c.path, c.iface
		w.run(3 * time.Second)
		w.want("3 s", Established, "")
		w.run(30 * time.Second)
		w.wantMTU("30 s", c.want)
	}
}

// On most paths the largest packet passes, and the search takes no other probe.
func TestSearchOfAnOrdinaryPathIsCheap(t *testing.T) {
	w := newWorld(t, func(_ int, c *Config) { c.MaxMTU = 1500 })
	w.run(time.Second)
	w.wantMTU("1 s", 1500)
	if w.probes > 2*4 {
		t.Errorf("two ends sent %d probes in the first second", w.probes)
	}
}

// Links of a large mesh that carry nothing send few heartbeats.
func TestIdleLinkAmongMany(t *testing.T) {
	w := newWorld(t, func(_ int, c *Config) { c.MaxMTU, c.Links = 1500, func() int { return 200 } })
	w.run(time.Minute)
	w.probes, w.offBeat = 0, 0
	w.run(time.Minute)
	if most := 2*int(time.Minute/liveness.MaxRest) + 2; w.probes > most {
		t.Errorf("%d heartbeats of two ends in a minute, want %d at most", w.probes, most)
	}
	if w.offBeat > 0 {
		t.Errorf("%d heartbeats not at the moment of the others", w.offBeat)
	}
}

// TestFirstMTUIsNotTooLow: a link that reports the floor for a moment would
// make containers keep it for minutes.
func TestFirstMTUIsNotTooLow(t *testing.T) {
	w := newWorld(t, busy)
	w.iface = 1500
	for range 3000 {
		w.run(time.Millisecond)
		for i, e := range w.ends {
			if s, _ := e.m.State(); s == Established && e.m.MTU() < 1500 {
				t.Fatalf("end %d is established with mtu %d", i, e.m.MTU())
			}
		}
	}
	w.want("then", Established, "")
}

func TestPathShrinksAndGrows(t *testing.T) {
	w := newWorld(t, busy)
	w.iface = 1500
	w.run(5 * time.Second)
	w.wantMTU("before", 1500)
	w.mtu = 1300
	w.run(5 * time.Second)
	w.want("shrunk", Established, "")
	for i, e := range w.ends {
		if e.m.MTU() > 1300 {
			t.Errorf("end %d still uses %d after 5 s", i, e.m.MTU())
		}
	}
	w.run(10 * time.Second)
	w.wantMTU("shrunk", 1300)
	w.mtu = 1500
	w.run(11 * time.Minute)
	w.wantMTU("grown", 1500)
	w.iface = 1420
	w.do(0, w.ends[0].m.TooBig(w.now, 1500))
	w.do(1, w.ends[1].m.TooBig(w.now, 1500))
	w.run(time.Second)
	w.wantMTU("interface shrunk", 1420)
}

// TestIdlePathShrinks: a path without traffic is looked at too, in time for the
// next frames.
func TestIdlePathShrinks(t *testing.T) {
	w := newWorld(t, nil)
	w.run(time.Minute)
	w.mtu = 1300
	w.run(20 * time.Second)
	w.want("shrunk", Established, "")
	w.wantMTU("shrunk", 1300)
}

func TestSilenceIsSeenWithinTenSeconds(t *testing.T) {
	for _, cut := range [][2]bool{{true, true}, {true, false}, {false, true}} {
		w := newWorld(t, nil)
		w.run(time.Minute)
		w.want("before", Established, "")
		w.cut = cut
		w.run(10 * time.Second)
		w.want("cut", Failed, "no answer on UDP from 192.0.2.")
		before := w.probes
		w.run(10 * time.Minute)
		if n := w.probes - before; n > 2500 {
			t.Errorf("%d probes towards a dead peer in ten minutes", n)
		}
		w.cut = [2]bool{}
		w.run(3 * time.Second)
		w.want("healed", Established, "")
		w.wantMTU("healed", 1500)
	}
}

// busy makes both ends carry frames all the time.
func busy(_ int, c *Config) {
	frames := uint64(0)
	c.Traffic = func() uint64 { frames++; return frames }
}

// deadAfter cuts the path and returns how long each end takes to find out.
func (w *world) deadAfter(cut [2]bool) (after [2]time.Duration) {
	w.cut = cut
	begun := w.now
	for w.now.Sub(begun) < time.Minute && (after[0] == 0 || after[1] == 0) {
		w.run(time.Millisecond)
		for i, e := range w.ends {
			if s, _ := e.m.State(); s == Failed && after[i] == 0 {
				after[i] = w.now.Sub(begun)
			}
		}
	}
	return after
}

// A link that carries frames fails in 0.6 s, also if one direction is cut, and is used
// again a second after the path is back; later, if it fails again and again.
func TestBusyLinkFailsSoon(t *testing.T) {
	for _, cut := range [][2]bool{{true, true}, {true, false}, {false, true}} {
		w := newWorld(t, busy)
		w.run(time.Minute)
		for _, hold := range []time.Duration{firstHold, 2 * firstHold, 4 * firstHold} {
			for i, d := range w.deadAfter(cut) {
				if d == 0 || d > 610*time.Millisecond {
					t.Fatalf("%v: end %d takes %v", cut, i, d)
				}
			}
			w.want("cut", Failed, "no answer on UDP from 192.0.2.")
			w.cut = [2]bool{}
			w.run(hold)
			w.want("answered again", Failed, "watched for "+hold.String())
			w.run(FastBeat + 20*time.Millisecond)
			w.want("healed", Established, "")
			w.run(2 * time.Second)
		}
	}
}

// While the fast path works, silence says that the peer's router is away. When the fast
// path ends, the link fails at once.
func TestFastPathHoldsTheLink(t *testing.T) {
	w := newWorld(t, nil)
	w.run(time.Minute)
	for i, e := range w.ends {
		w.do(i, e.m.SetFast(w.now, true))
	}
	w.cut = [2]bool{true, true}
	w.run(Beat + 600*time.Millisecond)
	if w.silent != 2 {
		t.Errorf("%d ends say that the peer is silent", w.silent)
	}
	w.run(Silence - 3*Beat)
	w.want("with the fast path", Established, "")
	for i, e := range w.ends {
		w.do(i, e.m.SetFast(w.now, false))
	}
	w.want("without it", Failed, "no answer")

	w = newWorld(t, nil)
	w.run(time.Minute)
	for i, e := range w.ends {
		w.do(i, e.m.SetFast(w.now, true))
	}
	w.cut = [2]bool{true, true}
	w.run(Silence + Beat)
	w.want("too long", Failed, "no answer")
}

// The fast path reports that echoes are late: an idle link finds out whether the path is
// dead as soon as a busy one.
func TestCheckOfAnIdleLink(t *testing.T) {
	w := newWorld(t, nil)
	w.run(time.Minute)
	for i, e := range w.ends {
		w.do(i, e.m.Check(w.now))
	}
	w.run(time.Minute)
	w.want("checked", Established, "")
	before := w.probes
	w.run(time.Minute)
	if n := w.probes - before; n > 2*30+2 {
		t.Errorf("%d probes in a minute after a check", n)
	}
	w.cut = [2]bool{true, true}
	for i, e := range w.ends {
		w.do(i, e.m.Check(w.now))
	}
	w.run(500 * time.Millisecond)
	w.want("cut", Failed, "no answer")
}

// A path that narrows under traffic is found in three seconds.
func TestBusyPathNarrows(t *testing.T) {
	w := newWorld(t, busy)
	w.run(time.Minute)
	w.mtu = 1300
	w.run(3 * time.Second)
	w.want("narrowed", Established, "")
	for i, e := range w.ends {
		if e.m.MTU() > 1300 {
			t.Errorf("end %d still uses %d", i, e.m.MTU())
		}
	}
}

// TestAPeerThatNeverAnswered is asked seldom, and linked with soon after it can
// be, also when only one end's probes went through first.
func TestAPeerThatNeverAnswered(t *testing.T) {
	w := newWorld(t, nil)
	w.cut = [2]bool{true, true}
	w.run(5 * time.Minute)
	before := w.probes
	w.run(10 * time.Minute)
	if n := w.probes - before; n > 100 {
		t.Errorf("%d probes in ten minutes towards peers that never answered", n)
	}
	w.cut = [2]bool{}
	w.run(SlowBeat + 2*time.Second)
	w.want("healed", Established, "")
}

// TestIdleLinkIsQuiet: a link at rest asks once a Beat each way, and both links
// of a router at the same moments.
func TestIdleLinkIsQuiet(t *testing.T) {
	w := newWorld(t, func(_ int, c *Config) { c.MaxMTU = 1500 })
	w.run(time.Minute)
	before, off := w.probes, w.offBeat
	w.run(20 * Beat)
	if n, o := w.probes-before, w.offBeat-off; n != 2*20 || o != 0 {
		t.Errorf("%d probes of two ends in 20 beats, %d of them off the beat; want 40 and none", n, o)
	}
}

func TestStaysUpUnderLoss(t *testing.T) {
	w := newWorld(t, busy)
	w.loss, w.spread = 0.2, 30*time.Millisecond
	w.run(10 * time.Minute)
	w.want("20 % loss", Established, "")
	for i, e := range w.ends {
		if len(e.states) != 2 {
			t.Errorf("end %d went through %v", i, e.states)
		}
	}
	w.loss = 0
	w.run(2 * time.Minute)
	w.wantMTU("after the loss", 1500)
}

// TestRenewalLosesNothing sends 200 packets a second each way, reordered, over
// twenty minutes in which keys are renewed at least every two.
func TestRenewalLosesNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.spread = 40 * time.Millisecond
	w.run(2 * time.Second)
	lastChange, tx := w.now, w.ends[0].tx
	for range 20 * 60 * 200 {
		for i, e := range w.ends {
			w.packet(i, w.ends[1-i].addr, wire.Data, []byte("x"), 100)
			if i == 0 && e.tx != tx {
				tx, lastChange = e.tx, w.now
			}
		}
		if w.now.Sub(lastChange) > 2*time.Minute {
			t.Fatalf("one key for %v", w.now.Sub(lastChange))
		}
		w.run(5 * time.Millisecond)
	}
	w.run(time.Second)
	if w.unopened != 0 || w.opened != w.sent {
		t.Errorf("%d of %d opened, %d packets could not be", w.opened, w.sent, w.unopened)
	}
	for i, e := range w.ends {
		if len(e.rx) > 2 {
			t.Errorf("end %d holds %d receive keys", i, len(e.rx))
		}
	}
	if w.ends[0].offers < 13 || w.ends[1].offers != 0 {
		t.Errorf("%d and %d offers", w.ends[0].offers, w.ends[1].offers)
	}
}

func TestPacketCountRenews(t *testing.T) {
	for i := range 2 {
		w := newWorld(t, func(_ int, c *Config) { c.RenewPackets = 1000 })
		w.run(2 * time.Second)
		tx := w.ends[i].tx
		for range 1000 {
			w.packet(i, w.ends[1-i].addr, wire.Data, []byte("x"), 100)
		}
		w.run(5 * time.Second)
		if w.ends[i].tx == tx {
			t.Errorf("end %d goes on under its key after 1000 packets", i)
		}
	}
}

func TestReplayIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	w.run(2 * time.Second)
	p := w.packet(0, w.ends[1].addr, wire.Data, []byte("x"), 100)
	w.run(time.Second)
	if w.opened != 1 {
		t.Fatal("the packet did not arrive")
	}
	if w.arrive(1, netip.MustParseAddrPort("203.0.113.9:1"), bytes.Clone(p)) {
		t.Error("a replayed packet was opened")
	}
	if w.ends[1].m.Addr() != w.ends[0].addr {
		t.Error("a replayed packet moved the link")
	}
	w.run(3 * time.Minute) // beyond the life of its key
	if w.arrive(1, w.ends[0].addr, bytes.Clone(p)) {
		t.Error("a packet of an old key was opened")
	}
}

func TestFollowsNATRebinding(t *testing.T) {
	w := newWorld(t, nil)
	w.run(5 * time.Second)
	w.ends[0].addr = netip.MustParseAddrPort("198.51.100.7:40001")
	w.run(5 * time.Second)
	if got := w.ends[1].m.Addr(); got != w.ends[0].addr {
		t.Errorf("the other end sends to %s", got)
	}
	w.want("moved", Established, "")
	if len(w.ends[1].states) != 2 {
		t.Errorf("the link went through %v", w.ends[1].states)
	}
}

// spoof makes end i send one heartbeat, as if it came from an address.
func (w *world) spoof(i int, from netip.AddrPort) {
	e := w.ends[i]
	b := make([]byte, wire.ProbeLen)
	p, err := e.tx.Seal(wire.Probe, 0, append(make([]byte, wire.HeaderLen, wire.Overhead+len(b)), b...), &e.nonce)
	if err != nil {
		w.t.Fatal(err)
	}
	w.arrive(1-i, from, p)
}

// A peer that writes the address of a third host on its packets cannot lead the link
// there, also if it answers what was not asked.
func TestAddressMustAnswer(t *testing.T) {
	w := newWorld(t, nil)
	w.run(5 * time.Second)
	third := netip.MustParseAddrPort("198.51.100.7:53")
	const packets = 10_000
	for i := range packets {
		w.spoof(0, third)
		w.do(1, w.ends[1].m.Answered(w.now, wire.ProbeBody{Answer: true, ID: uint64(i)}))
		if got := w.ends[1].m.Addr(); got != w.ends[0].addr {
			t.Fatalf("the link moved to %s", got)
		}
		w.run(time.Millisecond)
	}
	w.want("during", Established, "")
	// Each spoofed heartbeat is answered to where it seems to come from.
	if n := w.elsewhere[third] - packets; n > 15*challenges {
		t.Errorf("%d challenges in ten seconds", n)
	}
	w.run(2 * time.Second)
	before := w.elsewhere[third]
	w.run(time.Minute)
	if n := w.elsewhere[third] - before; n != 0 {
		t.Errorf("%d packets a while after the last spoofed one", n)
	}
}

// Packets with ever other addresses cause no more challenges than those with one.
func TestManyAddressesCauseFewChallenges(t *testing.T) {
	w := newWorld(t, nil)
	w.run(5 * time.Second)
	const packets = 5000
	for i := range packets {
		w.spoof(0, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 53))
		w.run(time.Millisecond)
	}
	sum := 0
	for _, n := range w.elsewhere {
		sum += n
	}
	if n := sum - packets; n > 5*4*challenges {
		t.Errorf("%d challenges in five seconds", n)
	}
	w.want("during", Established, "")
}

func TestAddressesThatALinkNeverHas(t *testing.T) {
	for _, a := range []string{"127.0.0.1:53", "[::1]:53", "[::ffff:127.0.0.1]:53", "224.0.0.1:53", "[ff02::1]:53", "169.254.1.1:53", "[fe80::1]:53",
		"0.0.0.0:53", "[::]:53", "255.255.255.255:53", "198.51.100.7:0"} {
		w := newWorld(t, nil)
		w.run(5 * time.Second)
		w.spoof(0, netip.MustParseAddrPort(a))
		w.run(5 * time.Second)
		if n := w.elsewhere[netip.MustParseAddrPort(a)]; n > 1 {
			t.Errorf("%d packets to %s", n-1, a)
		}
	}
	// Unless it began with such an address.
	for _, c := range []struct {
		to, begun string
		want      bool
	}{
		{"127.0.0.1:2", "127.0.0.1", true}, {"127.0.0.1:2", "::1", true}, {"127.0.0.1:2", "192.0.2.1", false},
		{"169.254.1.1:2", "169.254.7.7", true}, {"[fe80::1]:2", "fe80::7", true}, {"[fe80::1]:2", "2001:db8::1", false},
		{"192.0.2.1:2", "127.0.0.1", true}, {"10.0.0.1:2", "192.0.2.1", true}, {"224.0.0.1:2", "224.0.0.1", false},
	} {
		if got := MayMove(netip.MustParseAddrPort(c.to), netip.MustParseAddr(c.begun)); got != c.want {
			t.Errorf("from %s to %s: %v", c.begun, c.to, got)
		}
	}
	if MayMove(netip.MustParseAddrPort("127.0.0.1:2"), netip.Addr{}) || !MayMove(netip.MustParseAddrPort("192.0.2.1:2"), netip.Addr{}) {
		t.Error("a link that began without an address")
	}
}

// A host that moves is followed although most packets are lost.
func TestFollowsOverALossyPath(t *testing.T) {
	w := newWorld(t, nil)
	w.run(5 * time.Second)
	w.loss = 0.3
	w.ends[0].addr = netip.MustParseAddrPort("198.51.100.7:40001")
	w.run(30 * time.Second)
	if got := w.ends[1].m.Addr(); got != w.ends[0].addr {
		t.Errorf("the other end sends to %s", got)
	}
}

// TestOneEndKnowsTheAddress: the other is behind a NAT.
func TestOneEndKnowsTheAddress(t *testing.T) {
	w := newWorld(t, func(i int, c *Config) {
		if i == 0 {
			c.Addr = netip.AddrPort{}
		}
	})
	w.run(3 * time.Second)
	w.want("3 s", Established, "")
}

func TestSuites(t *testing.T) {
	w := newWorld(t, func(i int, c *Config) { c.Suites = seal.Suites(1 + 2*i) })
	w.run(2 * time.Second)
	if s, _ := w.ends[0].m.Suite(); s != seal.ChaCha20Poly1305 {
		t.Errorf("chose %s", s)
	}
}

func TestDifferentSecretsNeverMeet(t *testing.T) {
	w := newWorld(t, func(i int, c *Config) { c.Secret[0] = byte(i) })
	w.run(time.Minute)
	w.want("1 min", Pending, "no answer on UDP")
}

func TestKeysDoNotOutliveTheSession(t *testing.T) {
	w := newWorld(t, nil)
	w.run(2 * time.Second)
	w.sessionCut = true
	w.run(MaxAge)
	w.want("old", Pending, "keys could not be renewed")
	if w.ends[0].tx != nil || w.ends[1].tx != nil {
		t.Error("an old key is still used")
	}
	w.sessionCut = false
	w.run(5 * time.Second)
	w.want("session back", Established, "")
}

// TestOffersWithoutEnd: a peer that offers and asks all the time gets an answer
// a second, and the link stays up.
func TestOffersWithoutEnd(t *testing.T) {
	w := newWorld(t, nil)
	w.run(2 * time.Second)
	answers, offers := 0, w.ends[0].offers
	for i := range 5000 {
		c := wire.Control{Type: wire.Offer, Round: uint32(start.Unix()) + uint32(1000+i), Index: 7, Key: [32]byte{9}, Suites: 3}
		effects, err := w.ends[1].m.Control(w.now, c.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		w.do(1, slices.DeleteFunc(effects, func(e Effect) bool {
			m, ok := e.(SendControl)
			if ok && m.Msg[0] == byte(wire.Answer) {
				answers++
			}
			return ok // the peer that lies hears them
		}))
		effects, _ = w.ends[0].m.Control(w.now, []byte{byte(wire.Renew)})
		w.do(0, effects)
		w.run(time.Millisecond)
	}
	if n := w.ends[0].offers - offers; answers > 6 || n > 6 {
		t.Errorf("%d answers and %d offers in five seconds", answers, n)
	}
	w.want("during", Established, "")
}

// A peer that agrees on keys all the time and never uses one, or that never answers, makes
// neither keys nor indexes accumulate.
func TestKeysDoNotAccumulate(t *testing.T) {
	for name, misbehave := range map[string]func(w *world, e *end, round uint32){
		"confirms what it does not use": func(w *world, e *end, round uint32) {
			key, err := curve.GenerateKey(rand.NewChaCha8([32]byte{byte(round)}))
			if err != nil {
				w.t.Fatal(err)
			}
			c := wire.Control{Type: wire.Offer, Round: round, Index: 7, Key: [32]byte(key.PublicKey().Bytes()), Suites: 3}
			for _, m := range []wire.Control{c, {Type: wire.Confirm, Round: round}} {
				effects, err := e.m.Control(w.now, m.Append(nil))
				if err != nil {
					w.t.Fatal(err)
				}
				w.do(1, effects)
			}
		},
		"offers keys that are none": func(w *world, e *end, round uint32) {
			c := wire.Control{Type: wire.Offer, Round: round, Index: 7, Suites: 3} // a point of low order
			effects, _ := e.m.Control(w.now, c.Append(nil))
			w.do(1, effects)
		},
	} {
		w := newWorld(t, nil)
		w.run(2 * time.Second)
		w.cut = [2]bool{true, true}
		w.sessionCut = true
		before := w.ends[1].indexes
		for i := range uint32(1000) {
			misbehave(w, w.ends[1], uint32(start.Unix())+1000+i)
			w.run(2 * time.Second)
		}
		if n := len(w.ends[1].rx); n > maxRx {
			t.Errorf("%s: %d receive keys", name, n)
		}
		if n := w.ends[1].indexes - before; n > maxRx {
			t.Errorf("%s: %d indexes more", name, n)
		}
	}
	// The other end waits for answers all the time.
	w := newWorld(t, nil)
	w.sessionCut = true
	w.run(time.Hour)
	if n := w.ends[0].indexes; n > maxRx {
		t.Errorf("%d indexes of offers that nobody answered", n)
	}
}

// TestClocksAndStartsMayDiffer: the hosts' clocks are an hour apart, or the
// answering end hears of the session later than the other.
func TestClocksAndStartsMayDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, time.Hour, 6 * time.Second} {
		w := newWorld(t, nil)
		for _, e := range w.ends {
			if !e.m.offers() {
				e.m, _ = New(e.m.cfg, w.now.Add(ahead))
			}
		}
		w.run(5 * time.Second)
		w.want("with another start", Established, "")
	}
}

// TestLateWordsOfAnEarlierMachine: an offer of the round that the peer's router
// was in before its session was renewed comes first in the new one.
func TestLateWordsOfAnEarlierMachine(t *testing.T) {
	for _, late := range []int64{-100, 0, 1} {
		w := newWorld(t, nil)
		c := wire.Control{Type: wire.Offer, Round: uint32(start.Unix() + late), Index: 7, Key: [32]byte{9}, Suites: 3}
		effects, err := w.ends[1].m.Control(w.now, c.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		w.do(1, effects)
		w.run(15 * time.Second)
		w.want("after a late offer", Established, "")
	}
}

func FuzzControlMessages(f *testing.F) {
	c := wire.Control{Type: wire.Offer, Round: 2, Index: 5, Suites: 3}
	f.Add(c.Append(nil))
	f.Add([]byte{3, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, msg []byte) {
		w := newWorld(t, nil)
		w.run(time.Second)
		for i := range w.ends {
			effects, _ := w.ends[i].m.Control(w.now, msg)
			w.do(i, effects)
		}
	})
}
