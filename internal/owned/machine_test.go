package owned

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
)

// host is a kernel with objects that have faults, and a clock.
type host struct {
	*Machine
	t      *testing.T
	now    time.Time
	faults map[ID]string
	refuse map[ID]error
	waits  map[ID]bool
	tries  map[ID]int // repairs that were tried
	log    []string
}

func newHost(t *testing.T, ids ...ID) *host {
	h := &host{
		Machine: New(), t: t, now: time.Unix(1_000_000, 0), faults: make(map[ID]string), refuse: make(map[ID]error),
		waits: make(map[ID]bool), tries: make(map[ID]int),
	}
	for _, id := range ids {
		if err := h.Declare(id, h.now); err != nil {
			t.Fatal(err)
		}
		h.faults[id] = "it does not exist"
	}
	h.run()
	h.tries = make(map[ID]int)
	h.log = nil
	return h
}

// run does what is due now, as a driver.
func (h *host) run() {
	for _, id := range append(h.Due(h.now, false), h.Due(h.now, true)...) {
		var faults []string
		var err error
		if h.waits[id] {
			err = ErrWaits
		} else if f := h.faults[id]; f != "" {
			faults = []string{f}
		}
		if !h.Seen(id, h.now, h.now, faults, err) {
			continue
		}
		h.tries[id]++
		if err := h.refuse[id]; err != nil {
			h.Repaired(id, h.now, err)
			continue
		}
		h.faults[id] = ""
		h.Repaired(id, h.now, nil)
	}
	for _, r := range h.Reports() {
		h.log = append(h.log, fmt.Sprint([]string{"repaired", "failed", "recovered", "fight", "calm"}[r.Event], " ", r.ID.Name))
	}
}

// pass lets time pass, doing what is due when it is due.
func (h *host) pass(d time.Duration) {
	for end := h.now.Add(d); ; {
		next := h.Next(false)
		if slow := h.Next(true); next.IsZero() || !slow.IsZero() && slow.Before(next) {
			next = slow
		}
		if next.IsZero() || next.After(end) {
			h.now = end
			return
		}
		h.now = later(h.now, next)
		h.run()
	}
}

// damage breaks an object. The kernel reports it.
func (h *host) damage(id ID, fault string) {
	h.faults[id] = fault
	i, _ := InfoOf(id.Kind)
	h.Changed(i.On, h.now)
	h.run()
}

func (h *host) want(log ...string) {
	h.t.Helper()
	if !slices.Equal(h.log, log) {
		h.t.Errorf("log %q, want %q", h.log, log)
	}
	h.log = nil
}

func (h *host) text() string {
	var all []string
	for _, f := range h.Faults() {
		all = append(all, f.Text)
	}
	return strings.Join(all, "\n")
}

var (
	theBridge = ID{Bridge, "weft"}
	thePort   = ID{RouterPort, "vethwe-bridge"}
	theRules  = ID{Rules, "guard"}
	thePin    = ID{Pin, "macs"}
)

// Whatever is declared is made at once, and that is not a repair.
func TestDeclaredObjectsAreMade(t *testing.T) {
	h := newHost(t, theBridge, thePort)
	if len(h.Faults()) > 0 || len(h.Repairs()) > 0 || h.Broken() != nil {
		t.Errorf("faults %v, repairs %v, %v", h.Faults(), h.Repairs(), h.Broken())
	}
	if err := h.Declare(ID{"tunnel", "x"}, h.now); err == nil {
		t.Error("an object was declared whose kind is not in the table")
	}
}

// A change is repaired when the kernel reports it, once, and counted.
func TestRepairedAtOnce(t *testing.T) {
	h := newHost(t, theBridge, theRules)
	h.damage(theBridge, "it is down")
	h.want("repaired weft")
	if h.faults[theBridge] != "" || h.Repairs()[Bridge] != 1 || h.Repairs()[Rules] != 0 {
		t.Errorf("repairs %v, faults %v", h.Repairs(), h.faults)
	}
	h.pass(time.Minute)
	h.want()
}

// A change that nothing reports is found by the sweep, and that of a polled kind within a
// second.
func TestSweep(t *testing.T) {
	h := newHost(t, theBridge, thePin)
	h.pass(PollInterval) // after which it is clear that they last
	h.faults[theBridge], h.faults[thePin] = "it is down", "it does not exist"
	h.pass(PollInterval)
	h.want("repaired macs")
	h.pass(SweepInterval - PollInterval)
	h.want("repaired weft")
}

// However often the kernel reports changes, an expensive object is looked at once in a while,
// and the last change is not missed.
func TestGap(t *testing.T) {
	rule := ID{DockerRule, "DOCKER-USER"}
	h := newHost(t, rule)
	h.pass(PollInterval)
	looks := 0
	for range 100 {
		h.Changed(Tables, h.now)
		looks += len(h.Due(h.now, true))
		h.pass(20 * time.Millisecond)
	}
	if looks > 2 {
		t.Errorf("%d looks in two seconds", looks)
	}
	h.damage(rule, "it is missing")
	h.pass(PollInterval)
	h.want("repaired DOCKER-USER")
}

// Objects are repaired in the order of the table, whatever their names.
// An object is changed while the driver looks at it. The driver read the kernel before.
func TestChangeDuringALook(t *testing.T) {
	for _, id := range []ID{{Kind: Bridge, Name: "weft"}, {Kind: OwnRoutes, Name: "for UDP 6784"}} {
		h := newHost(t, id)
		h.pass(time.Minute)
		i, _ := InfoOf(id.Kind)
		h.Changed(i.On, h.now)
		read := h.now
		h.now = h.now.Add(time.Millisecond)
		h.faults[id] = "it is down"
		h.Changed(i.On, h.now)
		h.now = h.now.Add(time.Millisecond)
		if h.Seen(id, read, h.now, nil, nil) {
			t.Errorf("%v: an object without faults must be repaired", id)
		}
		h.pass(i.Gap)
		if h.tries[id] != 1 {
			t.Errorf("%v: %d repairs after the change", id, h.tries[id])
		}
	}
}

func TestOrder(t *testing.T) {
	h := newHost(t, theRules, thePort, theBridge)
	h.Look(true, h.now)
	if got := h.Due(h.now, false); !slices.Equal(got, []ID{theBridge, thePort, theRules}) {
		t.Errorf("order %v", got)
	}
	h.pass(0)
	h.Look(false, h.now)
	if got := h.Due(h.now, false); !slices.Equal(got, []ID{theBridge, thePort}) {
		t.Errorf("vital objects %v", got)
	}
}

// What cannot be repaired is reported once for each reason, shown until it can be, and
// tried again less and less often.
func TestCannotBeRepaired(t *testing.T) {
	h := newHost(t, theBridge)
	h.refuse[theBridge] = errors.New("operation not permitted")
	h.damage(theBridge, "it is down")
	h.want("failed weft")
	if text := h.text(); text != "bridge weft: it is down, and weft cannot repair it: operation not permitted" {
		t.Errorf("faults %q", text)
	}
	if err := h.Broken(); err == nil || !strings.Contains(err.Error(), "it is down") {
		t.Errorf("broken: %v", err)
	}
	h.pass(time.Minute)
	h.want()
	if n := h.tries[theBridge]; n < 12 || n > 25 {
		t.Errorf("%d tries in a minute", n)
	}
	h.refuse[theBridge] = errors.New("no memory")
	h.pass(lastRetry)
	h.want("failed weft")
	delete(h.refuse, theBridge)
	h.pass(lastRetry)
	h.want("recovered weft", "repaired weft")
	if len(h.Faults()) > 0 || h.Broken() != nil {
		t.Errorf("faults %v", h.Faults())
	}
	h.refuse[theBridge] = errors.New("no memory")
	h.damage(theBridge, "it is down")
	h.want("failed weft") // again, as it was right meanwhile
}

// Somebody who clears the reason of a failure need not wait for the pause to end.
func TestChangeShortensThePause(t *testing.T) {
	h := newHost(t, theBridge)
	h.refuse[theBridge] = errors.New("an interface of that name exists")
	h.damage(theBridge, "it does not exist")
	h.pass(time.Minute)
	delete(h.refuse, theBridge)
	h.log = nil
	h.Changed(Links, h.now)
	h.pass(changeRetry)
	h.want("recovered weft", "repaired weft")
}

// An object that waits for another has no fault of its own.
func TestWaits(t *testing.T) {
	h := newHost(t, theBridge, thePort)
	h.refuse[theBridge], h.waits[thePort] = errors.New("no"), true
	h.damage(theBridge, "it does not exist")
	if len(h.Faults()) != 1 {
		t.Errorf("faults %v", h.Faults())
	}
}

// Other software that changes an object again and again is named, the repairs become rare,
// and they go on. When it stops, the fault ends.
func TestFight(t *testing.T) {
	h := newHost(t, theBridge, theRules)
	fight := func(d, every time.Duration) {
		for end := h.now.Add(d); h.now.Before(end); h.pass(every) {
			if h.faults[theBridge] == "" {
				h.damage(theBridge, "it is down")
			}
		}
	}
	fight(10*time.Minute, 100*time.Millisecond)
	if n := h.tries[theBridge]; n < 20 || n > 40 {
		t.Errorf("%d repairs in ten minutes", n)
	}
	repaired := slices.Repeat([]string{"repaired weft"}, maxRepairs)
	h.want(append(repaired, "fight weft")...)
	if got, want := h.Repairs()[Bridge], uint64(h.tries[theBridge]); got != want {
		t.Errorf("%d of %d repairs were counted", got, want)
	}
	for _, words := range []string{"bridge weft: other software changes it again and again (it is down)", "30s"} {
		if !strings.Contains(h.text(), words) {
			t.Errorf("%q is not in %q", words, h.text())
		}
	}
	h.pass(lastTruce)
	if h.faults[theBridge] != "" || h.Broken() != nil {
		t.Errorf("after the truce: %q, %v", h.faults[theBridge], h.Broken())
	}
	if !strings.Contains(h.text(), "it is right now") {
		t.Errorf("faults %q", h.text())
	}
	h.want()
	h.pass(calmAfter)
	h.want("calm weft")
	if len(h.Faults()) > 0 {
		t.Errorf("faults %v", h.Faults())
	}
	h.damage(theBridge, "it is down")
	h.want("repaired weft")
}

// Changes now and then are no fight.
func TestRareChangesAreNoFight(t *testing.T) {
	h := newHost(t, theBridge)
	for range 100 {
		h.damage(theBridge, "it is down")
		h.pass(2 * time.Second)
	}
	h.want(slices.Repeat([]string{"repaired weft"}, 100)...)
}

// Whatever happens, an object whose repair works and that nobody damages is right within
// the longest pause, and no list grows.
func TestAnySequence(t *testing.T) {
	rng := seed.Rand(t)
	ids := []ID{theBridge, thePort, theRules, thePin}
	h := newHost(t, ids...)
	for range 20_000 {
		id := ids[rng.IntN(len(ids))]
		switch rng.IntN(6) {
		case 0, 1:
			h.damage(id, "it is down")
		case 2:
			h.refuse[id] = errors.New("no")
		case 3:
			delete(h.refuse, id)
		case 4:
			h.waits[id] = !h.waits[id]
		default:
			h.pass(time.Duration(rng.IntN(3000)) * time.Millisecond)
		}
		if o := h.objects[id]; len(o.recent) > maxRepairs {
			t.Fatalf("%d repairs are remembered", len(o.recent))
		}
	}
	clear(h.refuse)
	clear(h.waits)
	h.Look(true, h.now)
	h.pass(2 * lastTruce)
	for _, id := range ids {
		if h.faults[id] != "" {
			t.Errorf("%s: %s", id, h.faults[id])
		}
	}
	h.pass(calmAfter + SweepInterval)
	if len(h.Faults()) > 0 {
		t.Errorf("faults %v", h.Faults())
	}
}
