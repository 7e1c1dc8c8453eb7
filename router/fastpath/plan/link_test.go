package plan

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/router/liveness"
	"github.com/weft-net/weft/router/wire"
)

// ends are the two ends of a link over a path that delivers at once, or not.
type ends struct {
	t    *testing.T
	now  time.Time
	l    [2]*Link
	path func(size int) bool // carries a probe of this size
	sent int
	// suspects counts how often links in use were suspected to be dead.
	suspects int
	card     func() bool // makes right checksums
	soft     [2]bool     // they are made in software
}

var (
	start   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	willing = Offer{ShortID: 1, Port: 6784}
)

const mtu = 1376

func at(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

func newEnds(t *testing.T, a, b Offer) *ends { return newEndsAmong(t, 1, a, b) }

// newEndsAmong returns a link between two routers with so many links each.
func newEndsAmong(t *testing.T, links int, a, b Offer) *ends {
	e := &ends{t: t, now: start, path: func(int) bool { return true }, card: func() bool { return true }}
	count := uint64(0)
	nonce := func() (n [NonceLen]byte) {
		count++
		binary.BigEndian.PutUint64(n[:], count)
		return n
	}
	var first [2][]Effect
	for i, o := range []Offer{a, b} {
		e.l[i], first[i] = NewLink(Config{MTU: mtu, Epoch: start, Nonce: nonce, Own: o, Addr: at(1 - i), Links: func() int { return links }}, e.now)
	}
	for i := range 2 {
		e.apply(i, first[i])
	}
	return e
}

func (e *ends) apply(i int, effects []Effect) {
	for _, f := range effects {
		switch f := f.(type) {
		case Send:
			c, known, err := wire.ParseControl(f.Msg.Append(nil))
			if err != nil || !known {
				e.t.Fatalf("%+v: %v", f.Msg, err)
			}
			e.apply(1-i, e.l[1-i].Control(e.now, c))
		case Suspect:
			e.suspects++
		case SumInSoftware:
			if e.soft[i] {
				e.t.Fatal("what is on is switched on again")
			}
			e.soft[i] = true
		case Probe:
			e.sent++
			to := at(1 - i)
			if e.l[i].Encrypted() {
				to = TunnelAddr(e.l[1-i].own.ShortID)
			}
			if f.To != to || f.Src != e.l[i].own.ShortID || f.Dst != e.l[1-i].own.ShortID {
				e.t.Fatalf("probe %+v", f)
			}
			if e.path(f.Size) {
				e.apply(i, e.l[i].Echoed(e.now.Add(time.Millisecond), f.Nonce, e.card() || e.soft[i]))
			}
		}
	}
}

// run lets time pass, and returns when end 0 was up last.
func (e *ends) run(d time.Duration) (lastUp time.Time) {
	for end := e.now.Add(d); e.now.Before(end); e.now = e.now.Add(10 * time.Millisecond) {
		for i, l := range e.l {
			if next := l.Next(); !next.IsZero() && !e.now.Before(next) {
				e.apply(i, l.Tick(e.now))
			}
		}
		if e.l[0].Up() {
			lastUp = e.now
		}
	}
	return lastUp
}

func (e *ends) want(up bool, words ...string) {
	e.t.Helper()
	for i, l := range e.l {
		reason := ""
		if err := l.Reason(e.now); err != nil {
			reason = err.Error()
		}
		if l.Up() != up || (reason == "") != up {
			e.t.Fatalf("end %d: up %v, %q", i, l.Up(), reason)
		}
		if !up && !strings.Contains(reason, words[min(i, len(words)-1)]) {
			e.t.Fatalf("end %d says %q, want %q", i, reason, words)
		}
	}
}

func TestComesUpAtOnce(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.want(true)
	e.run(liveness.Recent)
	e.sent = 0
	e.run(time.Minute)
	if e.sent > 2*60+4 {
		t.Errorf("%d probes of two ends in a minute", e.sent)
	}
}

// A link is watched closely as soon as it comes into use.
func TestBlockedAtOnce(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.run(300 * time.Millisecond)
	blocked := e.now
	e.path = func(int) bool { return false }
	if last := e.run(5 * time.Second); last.Sub(blocked) > 620*time.Millisecond {
		t.Errorf("up for %v after the block", last.Sub(blocked))
	}
}

// A link that comes up and carries nothing costs little from the beginning.
func TestComesUpUnused(t *testing.T) {
	e := newEnds(t, willing, willing)
	for i := range e.l {
		e.l[i].cfg.Carries = func() bool { return false }
	}
	e.path = func(int) bool { return false }
	e.run(5 * time.Second)
	e.path = func(int) bool { return true }
	e.run(firstHold + SlowBeat)
	e.want(true)
	e.sent = 0
	if e.run(10 * time.Second); e.sent > 2*11 {
		t.Errorf("%d probes of two ends in ten seconds", e.sent)
	}
}

// A link of a large mesh that carries nothing costs little, and is watched as closely as
// others as soon as it carries frames.
func TestIdleLinkAmongMany(t *testing.T) {
	for what, path := range map[string]func(int) bool{"blocked": func(int) bool { return false }, "narrow": func(size int) bool { return size <= 1300 }} {
		e := newEndsAmong(t, 200, willing, willing)
		e.want(true)
		e.run(liveness.Recent + liveness.MaxRest)
		e.sent = 0
		e.run(time.Minute)
		if most := 2 * (int(time.Minute/liveness.MaxRest) + 1); e.sent > most {
			t.Errorf("%d probes of two ends in a minute, want %d at most", e.sent, most)
		}
		e.run(100 * time.Millisecond) // long before the next one
		e.path = path
		used := e.now
		for e.now.Sub(used) < 5*time.Second {
			for i, l := range e.l {
				e.apply(i, l.Used(e.now))
			}
			e.run(100 * time.Millisecond)
			if e.l[0].Up() != e.l[1].Up() {
				t.Fatalf("%s: one end is up", what)
			}
			if !e.l[0].Up() {
				break
			}
		}
		most := 620 * time.Millisecond
		if what == "narrow" {
			most = 3 * time.Second
		}
		if d := e.now.Sub(used); d > most {
			t.Errorf("%s: up for %v after frames came", what, d)
		}
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		a, b  Offer
		words []string
	}{
		{Offer{Verdict: wire.FastOff, Why: errors.New("switched off by --no-fastdp"), ShortID: 1, Port: 6784}, willing, []string{"by --no-fastdp", "at the peer"}},
		{Offer{Verdict: wire.FastNoKernel, Why: errors.New("no vxlan"), ShortID: 1, Port: 6784}, willing, []string{"no vxlan", "the peer's kernel lacks"}},
		{Offer{Verdict: wire.FastEncrypted, Why: errors.New("a password is set")}, willing, []string{"a password", "wants encryption"}},
		{Offer{Verdict: 200, Why: errors.New("later")}, willing, []string{"later", "refused"}},
		{Offer{ShortID: 1, Port: 7000}, willing, []string{"UDP port 6784, this host's 7000", "UDP port 7000"}},
		{Offer{Port: 6784}, willing, []string{"more peers than short ids"}},
	} {
		e := newEnds(t, c.a, c.b)
		e.run(5 * time.Second)
		e.want(false, c.words...)
		if e.sent > 0 {
			t.Errorf("%v: %d probes", c.words, e.sent)
		}
	}
}

func TestOldPeer(t *testing.T) {
	l, _ := NewLink(Config{MTU: mtu, Own: willing, Addr: at(1)}, start)
	if l.Up() || !errors.Is(l.Reason(start), ErrPending) {
		t.Error(l.Reason(start))
	}
}

func TestChangedMind(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.apply(0, e.l[0].SetOwn(e.now, Offer{Verdict: wire.FastEncrypted, Why: errors.New("a password is set")}))
	e.want(false, "a password", "wants encryption") // at once, at both ends
	e.apply(0, e.l[0].SetOwn(e.now, willing))
	e.want(true)
}

// Traffic is back on sleeve within 3 s when VXLAN is blocked, up again within
// 30 s after it flows, and not up and down with a path that flaps.
func TestBlockedAndBack(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.run(10*time.Second + 300*time.Millisecond)
	for round := range 6 {
		blocked := e.now
		e.path = func(int) bool { return false }
		if last := e.run(time.Minute); last.Sub(blocked) > 3*time.Second {
			t.Fatalf("round %d: up for %v after the block", round, last.Sub(blocked))
		}
		e.want(false, "UDP 6784 blocked: no echo from 192.0.2.")
		e.path = func(int) bool { return true }
		flows, was := e.now, false
		for !was && e.now.Sub(flows) < 40*time.Second {
			e.run(50 * time.Millisecond)
			was = e.l[0].Up()
		}
		if d := e.now.Sub(flows); d > 30*time.Second {
			t.Fatalf("round %d: up %v after the path is free", round, d)
		}
		if d := e.now.Sub(flows); d < firstHold-time.Second {
			t.Fatalf("round %d: up after %v already", round, d)
		}
		e.run(3 * time.Second)
	}
}

func TestLateWords(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.path = func(int) bool { return false }
	e.run(10 * time.Second)
	e.path = func(int) bool { return true }
	for e.l[0].vxlan.fullEcho.Before(e.now.Add(-time.Second)) {
		e.run(50 * time.Millisecond)
	}
	if r := e.l[0].Reason(e.now); !strings.Contains(r.Error(), "flows again") {
		t.Error(r)
	}
}

func TestTooBig(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.path = func(size int) bool { return size < 1000 }
	e.run(40 * time.Second)
	e.want(false, "MTU 1376 does not fit: packets of 1426 bytes to 192.0.2.")
}

// A blocked path costs little.
func TestSlowWhenBlocked(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.path = func(int) bool { return false }
	e.run(time.Minute)
	e.sent = 0
	e.run(time.Minute)
	if e.sent > 2*2*(60/4+1) {
		t.Errorf("%d probes of two ends in a minute", e.sent)
	}
	if n := len(e.l[0].vxlan.sent); n > 2*(Timeout+1) {
		t.Errorf("%d probes are remembered", n)
	}
}

// A path that loses a fifth of the packets in each direction stays in use, with traffic and
// without.
func TestLossIsNothing(t *testing.T) {
	for _, busy := range []bool{false, true} {
		e := newEnds(t, willing, willing)
		rng := seed.Rand(t)
		e.path = func(int) bool { return rng.Float64() < 0.64 }
		for range 6000 {
			e.run(100 * time.Millisecond)
			for i, l := range e.l {
				if busy {
					e.apply(i, l.Used(e.now))
				}
				if !l.Up() {
					t.Fatalf("busy %v: down after %v: %v", busy, e.now.Sub(start), l.Reason(e.now))
				}
			}
		}
	}
}

// A link that carries frames is given up in 0.6 s, and its driver hears at once that
// echoes are late.
func TestBusyLinkIsBlocked(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.run(10*time.Second + 300*time.Millisecond)
	for i, l := range e.l {
		e.apply(i, l.Used(e.now))
	}
	e.run(time.Second)
	e.suspects = 0
	blocked := e.now
	e.path = func(int) bool { return false }
	if last := e.run(5 * time.Second); last.Sub(blocked) > 620*time.Millisecond {
		t.Errorf("up for %v after the block", last.Sub(blocked))
	}
	e.now = blocked.Add(700 * time.Millisecond)
	e.want(false, "UDP 6784 blocked: no echo from 192.0.2.")
	if e.suspects != 2 {
		t.Errorf("two ends report %d suspicions", e.suspects)
	}
	e.want(false, "UDP 6784 blocked: no echo from 192.0.2.")
}

// A path that narrows is given up in three seconds, whether it carries frames or not.
func TestPathNarrows(t *testing.T) {
	for _, busy := range []bool{false, true} {
		e := newEnds(t, willing, willing)
		e.run(10*time.Second + 300*time.Millisecond)
		if busy {
			for i, l := range e.l {
				e.apply(i, l.Used(e.now))
			}
		}
		narrow := e.now
		e.path = func(size int) bool { return size <= 1300 }
		if last := e.run(5 * time.Second); last.Sub(narrow) > 3*time.Second {
			t.Errorf("up for %v", last.Sub(narrow))
		}
		e.want(false, "MTU 1376 does not fit")
	}
}

// A driver that ran late must not make the peer look silent: each link probes first. A
// peer that is silent is found by a driver that is always late, too.
func TestLateDriver(t *testing.T) {
	tick := func(e *ends, late time.Duration) {
		e.now = e.now.Add(late)
		for i, l := range e.l {
			e.apply(i, l.Tick(e.now))
		}
	}
	e := newEnds(t, willing, willing)
	e.run(10 * time.Second)
	for _, late := range []time.Duration{Silence, 3 * time.Second, time.Minute} {
		tick(e, late)
		e.want(true)
		e.run(5 * time.Second)
		e.want(true)
	}
	n := 0
	e.path = func(int) bool { n++; return n > 2 } // the first probe of each end is lost
	tick(e, 10*time.Second)
	e.run(5 * time.Second)
	e.want(true)
	e.path = func(int) bool { return false }
	for range 3 {
		e.want(true)
		tick(e, 3*time.Second)
	}
	e.run(Silence)
	e.want(false, "no echo")
}

// Next is in the future after each tick, so a driver that follows it does not spin.
func TestNextIsInTheFuture(t *testing.T) {
	e := newEnds(t, willing, willing)
	for _, late := range []time.Duration{0, Silence, time.Minute} {
		e.path = func(int) bool { return true }
		e.run(time.Minute)
		e.path = func(int) bool { return false }
		l := e.l[0]
		for range 40 {
			e.now = l.Next().Add(late)
			l.Tick(e.now)
			if next := l.Next(); !next.After(e.now) {
				t.Fatalf("%v late: Next is %v before now", late, e.now.Sub(next))
			}
		}
		if l.Up() {
			t.Fatalf("%v late: up without an echo", late)
		}
	}
}

func TestMovedPeer(t *testing.T) {
	e := newEnds(t, willing, willing)
	l := e.l[0]
	effects := l.SetAddr(e.now, netip.MustParseAddr("192.0.2.77"))
	if l.Up() {
		t.Error("up at an address that was not tried")
	}
	if p, ok := effects[0].(Probe); !ok || p.To != netip.MustParseAddr("192.0.2.77") {
		t.Errorf("%+v", effects)
	}
	if l.Echoed(e.now, [NonceLen]byte{9}, true) != nil || l.Up() {
		t.Error("a made up echo counts")
	}
}

// A card that makes wrong checksums is found before a packet of a container goes
// that way, and also when it begins to later.
func TestWrongChecksums(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.card = func() bool { return false }
	e.apply(0, e.l[0].SetOwn(e.now, Offer{Verdict: wire.FastOff}))
	e.apply(0, e.l[0].SetOwn(e.now, willing))
	e.run(2 * time.Second)
	e.want(true)
	if e.soft != [2]bool{true, true} {
		t.Errorf("up with wrong checksums, in software: %v", e.soft)
	}

	e = newEnds(t, willing, willing)
	e.run(2 * time.Second)
	e.want(true)
	e.card = func() bool { return false }
	e.run(20 * time.Second)
	e.want(true)
	if e.soft != [2]bool{true, true} {
		t.Errorf("in software: %v", e.soft)
	}
}

// What is wrong for another reason than the card's is not used at all.
func TestWrongChecksumsInSoftwareToo(t *testing.T) {
	e := newEnds(t, willing, willing)
	e.run(2 * time.Second)
	for i, l := range e.l {
		e.now = e.now.Add(time.Hour)
		for range 30 {
			e.now = e.now.Add(RetryBeat)
			for _, f := range l.Tick(e.now) {
				if p, ok := f.(Probe); ok {
					l.Echoed(e.now, p.Nonce, false)
				}
			}
		}
		if r := l.Reason(e.now); !errors.Is(r, ErrChecksums) || !strings.Contains(r.Error(), "wrong checksums, although the kernel computes them") {
			t.Errorf("end %d: up %v, %q", i, l.Up(), r)
		}
	}
}
