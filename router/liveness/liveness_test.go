package liveness

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
)

// world is one path, and the drivers of its two ends. The far end answers at once when its
// driver runs.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Time
	d      *Detector
	loss   float64       // in each direction
	rtt    time.Duration // and a random part up to spread
	spread time.Duration
	cut    [2]bool // requests, answers
	busy   bool
	late   func() time.Duration // of the driver, each time it runs
	// stalledUntil: this process does not run until then, farUntil: the far end.
	stalledUntil, farUntil time.Time

	answers []answer
	sent    int
	deaths  int
}

type answer struct{ at, sent time.Time }

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const idle = 2 * time.Second

func newWorld(t *testing.T) *world {
	w := &world{t: t, rng: seed.Rand(t), now: start.Add(7 * time.Millisecond), rtt: time.Millisecond, busy: true}
	w.d = New(Config{Epoch: start, Rest: func() time.Duration { return idle }, Unread: func() bool {
		return slices.ContainsFunc(w.answers, func(a answer) bool { return !a.at.After(w.now) })
	}})
	w.begin()
	return w
}

// begin reports a first answer.
func (w *world) begin() { w.d.Answered(w.now, w.now.Add(-w.rtt)) }

func (w *world) request() {
	w.sent++
	w.d.Sent(w.now)
	if w.cut[0] || w.cut[1] || w.rng.Float64() < w.loss || w.rng.Float64() < w.loss {
		return
	}
	at := w.now
	if at.Before(w.farUntil) {
		at = w.farUntil
	}
	w.answers = append(w.answers, answer{at.Add(w.rtt + time.Duration(w.rng.Int64N(int64(w.spread)+1))), w.now})
}

// run lets time pass in steps of a millisecond. It returns when the path was called dead
// first, 0 for never.
func (w *world) run(d time.Duration) (dead time.Duration) {
	begun := w.now
	var wake time.Time
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(time.Millisecond) {
		if w.now.Before(w.stalledUntil) {
			continue
		}
		if w.busy {
			w.d.Used(w.now)
		}
		next := w.d.Next()
		if next.IsZero() {
			if dead == 0 {
				dead = w.now.Sub(begun)
				w.deaths++
			}
			break
		}
		if wake.IsZero() && !w.now.Before(next) {
			wake = w.now
			if w.late != nil {
				wake = wake.Add(w.late())
			}
		}
		if !wake.IsZero() && !w.now.Before(wake) {
			wake = time.Time{}
			w.d.Tick(w.now)
			if w.d.Due(w.now) {
				w.request()
			}
		}
		// The reader of the socket runs after the timer.
		w.answers = slices.DeleteFunc(w.answers, func(a answer) bool {
			if a.at.After(w.now) {
				return false
			}
			w.d.Answered(w.now, a.sent)
			return true
		})
	}
	return dead
}

func (w *world) stays(d time.Duration) {
	w.t.Helper()
	if after := w.run(d); after != 0 {
		w.t.Fatalf("a path that works was called dead after %v, round trip %v", after, w.d.RTT())
	}
}

// A cut in either direction, or in both, is found in the time that the package's comment
// promises.
func TestCut(t *testing.T) {
	for _, cut := range [][2]bool{{true, true}, {true, false}, {false, true}} {
		for range 20 {
			w := newWorld(t)
			w.stays(5*time.Second + time.Duration(w.rng.IntN(200))*time.Millisecond)
			w.cut = cut
			// The answer under way still comes.
			if after := w.run(10 * time.Second); after == 0 || after > 605*time.Millisecond {
				t.Fatalf("%v: dead after %v", cut, after)
			}
		}
	}
}

func TestIdlePathIsCut(t *testing.T) {
	w := newWorld(t)
	w.busy = false
	w.stays(time.Minute)
	if w.sent > 31 {
		t.Errorf("%d requests in a minute without traffic", w.sent)
	}
	w.cut = [2]bool{true, true}
	if after := w.run(10 * time.Second); after == 0 || after > idle+550*time.Millisecond {
		t.Errorf("dead after %v", after)
	}
	// Frames come after the cut, long before the next request.
	w = newWorld(t)
	w.busy = false
	w.stays(10*time.Second + 10*time.Millisecond)
	w.cut, w.busy = [2]bool{true, true}, true
	if after := w.run(10 * time.Second); after == 0 || after > 605*time.Millisecond {
		t.Errorf("dead %v after the first frame", after)
	}
}

func TestBusyPathBecomesIdle(t *testing.T) {
	w := newWorld(t)
	w.stays(10 * time.Second)
	if w.sent < 95 || w.sent > 105 {
		t.Errorf("%d requests in ten seconds with traffic", w.sent)
	}
	w.busy = false
	w.stays(Recent + idle)
	w.sent = 0
	w.stays(20 * time.Second)
	if w.sent > 10 {
		t.Errorf("%d requests in 20 s without traffic", w.sent)
	}
}

// Paths that work badly stay up, for ten minutes each.
func TestNoFalseAlarm(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"20 % loss":         func(w *world) { w.loss = 0.2 },
		"300 ms round trip": func(w *world) { w.rtt = 300 * time.Millisecond },
		"jitter":            func(w *world) { w.spread = 200 * time.Millisecond },
		"all of it":         func(w *world) { w.loss, w.rtt, w.spread = 0.15, 300*time.Millisecond, 200*time.Millisecond },
		"a late driver": func(w *world) {
			w.late = func() time.Duration { return time.Duration(w.rng.IntN(300)) * time.Millisecond }
		},
		"late and 20 % loss": func(w *world) {
			w.loss = 0.2
			w.late = func() time.Duration { return time.Duration(w.rng.IntN(60)) * time.Millisecond }
		},
		"no traffic, loss": func(w *world) { w.busy, w.loss = false, 0.2 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			change(w)
			w.d.Reset()
			w.begin()
			w.stays(10 * time.Minute)
		})
	}
}

// The process of this end is stopped, or the far end's for less than the detection time.
func TestStalls(t *testing.T) {
	w := newWorld(t)
	for range 300 {
		w.stays(time.Duration(w.rng.IntN(5000)) * time.Millisecond)
		w.stalledUntil = w.now.Add(time.Duration(w.rng.IntN(20_000)) * time.Millisecond)
		w.stays(w.stalledUntil.Sub(w.now))
	}
	for range 300 {
		w.stays(time.Duration(w.rng.IntN(5000)) * time.Millisecond)
		w.farUntil = w.now.Add(time.Duration(w.rng.IntN(400)) * time.Millisecond)
	}
	// Such stalls do not hide a far end that is silent.
	w.cut = [2]bool{true, true}
	w.late = func() time.Duration { return 30 * time.Millisecond }
	if after := w.run(10 * time.Second); after == 0 || after > 2*time.Second {
		t.Errorf("dead after %v", after)
	}
	w = newWorld(t)
	w.stays(5 * time.Second)
	w.cut = [2]bool{true, true}
	w.late = func() time.Duration { return 3 * time.Second }
	if after := w.run(5 * time.Minute); after == 0 {
		t.Error("a driver that is always late never finds a dead path")
	}
}

func TestLongRoundTripIsCut(t *testing.T) {
	w := newWorld(t)
	w.rtt = 300 * time.Millisecond
	w.stays(10 * time.Second)
	w.cut = [2]bool{true, true}
	if after := w.run(10 * time.Second); after == 0 || after > 1600*time.Millisecond {
		t.Errorf("dead after %v", after)
	}
}

// A check that something else asked for takes no longer than one of a busy path.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	w.busy = false
	w.stays(10*time.Second + 300*time.Millisecond)
	w.d.Check(w.now)
	w.stays(time.Second)
	if w.d.Suspect() {
		t.Error("suspect after an answer")
	}
	w.sent = 0
	w.stays(10 * time.Second)
	if w.sent > 5 {
		t.Errorf("%d requests in ten seconds after a check", w.sent)
	}
	w.cut = [2]bool{true, true}
	w.d.Check(w.now)
	if after := w.run(10 * time.Second); after == 0 || after > 500*time.Millisecond {
		t.Errorf("dead %v after a check", after)
	}
}

func TestPace(t *testing.T) {
	for n, want := range map[int]time.Duration{0: Interval, 1: Interval, 64: Interval, 128: 200 * time.Millisecond, 6400: 10 * time.Second} {
		if got := Pace(n); got != want {
			t.Errorf("%d paths: %v, want %v", n, got, want)
		}
	}
}

// All paths without frames share their requests, and still send them at the same moments.
func TestRest(t *testing.T) {
	for n, want := range map[int]time.Duration{0: time.Second, 16: time.Second, 17: 2 * time.Second, 32: 2 * time.Second, 33: MaxRest, 1000: MaxRest} {
		if got := Rest(n, time.Second); got != want {
			t.Errorf("%d paths: %v, want %v", n, got, want)
		}
	}
}

// Next is never in the past after a request was sent, so a driver does not spin.
func TestNextIsInTheFuture(t *testing.T) {
	w := newWorld(t)
	for range 100_000 {
		if next := w.d.Next(); next.IsZero() {
			w.d.Answered(w.now, w.now)
		} else if next.After(w.now) {
			w.now = next
		}
		w.now = w.now.Add(time.Duration(w.rng.Int64N(int64(5 * time.Millisecond))))
		switch w.rng.IntN(4) {
		case 0:
			w.d.Answered(w.now, w.now.Add(-time.Duration(w.rng.IntN(100))*time.Millisecond))
		case 1:
			w.d.Check(w.now)
		}
		w.d.Tick(w.now)
		if w.d.Due(w.now) {
			w.d.Sent(w.now)
		}
		if next := w.d.Next(); !next.IsZero() && !next.After(w.now) {
			t.Fatalf("Next is %v before now", w.now.Sub(next))
		}
		if len(w.d.pending) > maxPending {
			t.Fatalf("%d requests under way", len(w.d.pending))
		}
	}
}
