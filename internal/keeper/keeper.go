// Package keeper keeps the objects that weft owns in the kernel as they must be.
//
//	       changes of links, addresses, routes, tc, nftables; every second; every ten
//	kernel ----------------------------------------------------------------------+
//	   ^                                                                         v
//	   |      Make                          Look, with a View            +---------------+
//	   +------------- [ Object ] <---------------------------------------|  one round    |
//	                                                                     +---------------+
//	                                   when to look, when to repair:      owned.Machine
//
// An Object is declared by whoever knows its desired state, with a function that compares
// the kernel with that and one that makes the object. The same function makes it for the
// first time (Add) and again after other software has changed or removed it. Package owned
// has the table of all kinds of objects and decides when to look and when to repair.
//
// A round looks at the objects that are due, each in turn, so functions of objects never run
// at the same time. Objects of slow kinds have rounds of their own, at the same time. After a round that took long, the next one waits for a multiple of that:
// a host with a thousand containers that come and go does not spend its time here.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// Object is an object with its desired state. Its functions are called in the namespace of
// the Keeper, and must not call the Keeper.
type Object struct {
	owned.ID
	// Look returns how the kernel differs from the desired state, in words that follow the
	// name of the object, like "it is down". The view was read a moment ago. The error is
	// owned.ErrWaits if the object needs another one that is missing. Kinds that are polled or
	// slow get no view.
	Look func(v *netdev.View) (faults []string, err error)
	// Make makes the object, or brings it to the desired state. It is called only if Look
	// found a fault.
	Make func() error
}

// Source returns the objects of one kind that must exist now, for kinds whose objects come
// and go, such as ports of containers.
type Source func(v *netdev.View) []Object

const (
	// settle is how long a round waits for more changes after the first one.
	settle = 5 * time.Millisecond
	// After a round, the next one waits for pauseShare times its duration, within bounds. A
	// repair must not be later than a second.
	pauseShare = 20
	minPause   = 20 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// Keeper keeps objects. Make it with New. All methods are safe for concurrent use.
type Keeper struct {
	ns  netns.NsHandle
	log *slog.Logger

	// round is held while objects are looked at, and slow while those of slow kinds are. Lock
	// order: slow, round, mu.
	slow   sync.Mutex
	round  sync.Mutex
	view   *netdev.View // of this round; guarded by round
	viewAt time.Time    // when reading it began; guarded by round

	mu      sync.Mutex
	machine *owned.Machine
	objects map[owned.ID]Object
	sources map[owned.Kind]Source
	asked   time.Time // when the sources were asked last
	pending owned.Events
	// Of capacity 1: something is pending, for rounds and for slow ones.
	wake, wakeSlow chan struct{}
}

// New returns a Keeper for the network namespace of the calling thread. Call Close at the
// end.
func New(log *slog.Logger) (*Keeper, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("keep objects of the kernel: open the thread's network namespace: %w", err)
	}
	return &Keeper{
		ns: ns, log: log, machine: owned.New(), objects: make(map[owned.ID]Object), sources: make(map[owned.Kind]Source),
		wake: make(chan struct{}, 1), wakeSlow: make(chan struct{}, 1),
	}, nil
}

// Close releases what New opened. The objects stay in the kernel. No other call may follow.
func (k *Keeper) Close() { k.ns.Close() }

// Add makes an object now and keeps it. On error the object is not kept.
func (k *Keeper) Add(o Object) error {
	if i, _ := owned.InfoOf(o.Kind); i.Slow {
		return fmt.Errorf("make %s: its kind is slow, so nobody can wait for it", o.ID)
	}
	k.round.Lock()
	defer k.round.Unlock()
	if err := k.declare(o); err != nil {
		return err
	}
	err := k.inside(func() error { return k.lookAt(o, true) })
	if err != nil {
		k.drop(o.ID)
	}
	k.flushReports()
	return err
}

// Keep declares objects that exist, or that the next round makes. An object with the same
// name is replaced.
func (k *Keeper) Keep(objects ...Object) error {
	k.round.Lock()
	defer k.round.Unlock()
	for _, o := range objects {
		if err := k.declare(o); err != nil {
			return err
		}
	}
	k.Wake(0)
	return nil
}

// Apply makes objects that are kept, now, because their desired state has changed.
func (k *Keeper) Apply(ids ...owned.ID) error {
	k.round.Lock()
	defer k.round.Unlock()
	defer k.flushReports()
	k.view = nil
	return k.inside(func() error {
		if err := k.takeSources(); err != nil {
			return err
		}
		for _, id := range ids {
			k.mu.Lock()
			o, ok := k.objects[id]
			k.machine.Renew(id, time.Now())
			k.mu.Unlock()
			if !ok {
				return fmt.Errorf("make %s: it is not declared", id)
			}
			if err := k.lookAt(o, true); err != nil {
				return err
			}
		}
		return nil
	})
}

// Do calls f in the namespace while no function of an object runs.
func (k *Keeper) Do(f func() error) error {
	k.round.Lock()
	defer k.round.Unlock()
	k.view = nil
	return k.inside(f)
}

// KeepAll makes the objects that a function returns the only ones of a kind, from now on.
func (k *Keeper) KeepAll(kind owned.Kind, f Source) error {
	if _, ok := owned.InfoOf(kind); !ok {
		return fmt.Errorf("keep objects of kind %q: the table of kinds lacks it", kind)
	}
	k.round.Lock()
	defer k.round.Unlock()
	k.mu.Lock()
	k.sources[kind] = f
	k.mu.Unlock()
	k.Wake(owned.Links)
	return nil
}

// Drop gives objects up. They stay in the kernel. After it has returned, none of their
// functions runs.
func (k *Keeper) Drop(ids ...owned.ID) {
	for _, id := range ids {
		if i, _ := owned.InfoOf(id.Kind); i.Slow {
			k.slow.Lock()
			defer k.slow.Unlock()
			break
		}
	}
	k.round.Lock()
	defer k.round.Unlock()
	for _, id := range ids {
		k.drop(id)
	}
}

// DropAll gives all objects of kinds up that have a source.
func (k *Keeper) DropAll(kinds ...owned.Kind) {
	k.round.Lock()
	defer k.round.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, kind := range kinds {
		delete(k.sources, kind)
		for id := range k.objects {
			if id.Kind == kind {
				delete(k.objects, id)
				k.machine.Forget(id)
			}
		}
	}
}

func (k *Keeper) declare(o Object) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.machine.Declare(o.ID, time.Now()); err != nil {
		return err
	}
	k.objects[o.ID] = o
	return nil
}

func (k *Keeper) drop(id owned.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.objects, id)
	k.machine.Forget(id)
}

// Wake makes Run begin a round soon, because of changes.
func (k *Keeper) Wake(e owned.Events) {
	k.mu.Lock()
	k.pending |= e
	k.machine.Changed(e, time.Now())
	k.mu.Unlock()
	for _, wake := range []chan struct{}{k.wake, k.wakeSlow} {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// Require looks at everything without which no container can be connected, and repairs it.
// The error says in words what cannot be repaired.
func (k *Keeper) Require() error {
	k.mu.Lock()
	k.machine.Look(false, time.Now())
	k.mu.Unlock()
	if err := k.doRound(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.machine.Broken()
}

// Faults returns the objects that are not right.
func (k *Keeper) Faults() []owned.Fault {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.machine.Faults()
}

// Repairs returns the number of repairs by kind, without zeros.
func (k *Keeper) Repairs() map[owned.Kind]uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.machine.Repairs()
}

// Run keeps the objects until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	var watching sync.WaitGroup
	defer watching.Wait()
	for _, w := range []watcher{routeWatcher, ruleWatcher} {
		watching.Go(func() {
			if err := w.run(ctx, k.ns, k.Wake); err != nil {
				k.log.Warn("changes in the kernel are noticed late", "what", w.what, "err", err)
			}
		})
	}
	k.mu.Lock()
	k.machine.Look(true, time.Now())
	k.mu.Unlock()
	watching.Go(func() { k.loop(ctx, k.wakeSlow, true, k.doSlowRound) })
	k.loop(ctx, k.wake, false, k.doRound)
}

// loop does round after round, of slow kinds or of all others.
func (k *Keeper) loop(ctx context.Context, wake <-chan struct{}, slow bool, round func() error) {
	for ctx.Err() == nil {
		began := time.Now()
		if err := round(); err != nil {
			k.log.Warn("the objects of weft in the kernel could not be looked at", "err", err)
		}
		if !pause(ctx, min(max(pauseShare*time.Since(began), minPause), maxPause)) {
			return
		}
		k.await(ctx, wake, slow)
	}
}

// await waits until something is due.
func (k *Keeper) await(ctx context.Context, wake <-chan struct{}, slow bool) {
	k.mu.Lock()
	next := k.machine.Next(slow)
	k.mu.Unlock()
	if next.IsZero() {
		next = time.Now().Add(owned.SweepInterval)
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
		pause(ctx, settle)
	}
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// doRound looks at the objects that are due.
func (k *Keeper) doRound() error {
	k.round.Lock()
	defer k.round.Unlock()
	defer k.flushReports()
	k.view = nil
	return k.inside(k.lookAtDue)
}

// doSlowRound looks at the objects of slow kinds that are due.
func (k *Keeper) doSlowRound() error {
	k.slow.Lock()
	defer k.slow.Unlock()
	defer k.flushReports()
	return k.inside(func() error { k.lookAtAll(true); return nil })
}

// inside runs f in the namespace.
func (k *Keeper) inside(f func() error) error { return netdev.DoIn(k.ns, f) }

// lookAtDue is doRound in the namespace.
func (k *Keeper) lookAtDue() error {
	k.mu.Lock()
	stale := k.pending&owned.Links != 0 || time.Since(k.asked) >= owned.SweepInterval
	k.pending = 0
	k.mu.Unlock()
	if stale {
		if err := k.takeSources(); err != nil {
			return err
		}
	}
	k.lookAtAll(false)
	return nil
}

// lookAtAll looks at all objects of slow kinds, or of all others, that are due.
func (k *Keeper) lookAtAll(slow bool) {
	k.mu.Lock()
	due := k.machine.Due(time.Now(), slow)
	k.mu.Unlock()
	for _, id := range due {
		k.mu.Lock()
		o, ok := k.objects[id]
		k.mu.Unlock()
		if ok {
			_ = k.lookAt(o, false) // the machine keeps the error
		}
	}
}

// takeSources asks the sources which objects there are.
func (k *Keeper) takeSources() error {
	k.mu.Lock()
	k.asked = time.Now()
	sources := make(map[owned.Kind]Source, len(k.sources))
	for kind, f := range k.sources {
		sources[kind] = f
	}
	k.mu.Unlock()
	for kind, f := range sources {
		v, err := k.read()
		if err != nil {
			return err
		}
		if err := k.replace(kind, f(v)); err != nil {
			return err
		}
	}
	return nil
}

// replace makes objects the only ones of a kind.
func (k *Keeper) replace(kind owned.Kind, objects []Object) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	there := make(map[owned.ID]bool, len(objects))
	for _, o := range objects {
		there[o.ID] = true
		if o.Kind != kind {
			return fmt.Errorf("keep %s: its kind is not %s", o.ID, kind)
		}
		if err := k.machine.Declare(o.ID, time.Now()); err != nil {
			return err
		}
		k.objects[o.ID] = o
	}
	for id := range k.objects {
		if id.Kind == kind && !there[id] {
			delete(k.objects, id)
			k.machine.Forget(id)
		}
	}
	return nil
}

// read returns the view of this round.
func (k *Keeper) read() (*netdev.View, error) {
	if k.view == nil {
		at := time.Now()
		v, err := netdev.ReadView()
		if err != nil {
			return nil, err
		}
		k.view, k.viewAt = v, at
	}
	return k.view, nil
}

// lookAt looks at one object and repairs it if that is due, or in any case if forced. It
// returns why the object is not right after that.
func (k *Keeper) lookAt(o Object, forced bool) error {
	if forced {
		k.view = nil
	}
	faults, read, err := k.faultsOf(o)
	k.mu.Lock()
	repair := k.machine.Seen(o.ID, read, time.Now(), faults, err)
	k.mu.Unlock()
	if !repair && !(forced && err == nil && len(faults) > 0) {
		return err
	}
	err = o.Make()
	if i, _ := owned.InfoOf(o.Kind); !i.Slow {
		k.view = nil // the object is another one now
	}
	if err == nil {
		// An object that was made and cannot be looked at now is looked at again in a second.
		if err = k.checkRepair(o); errors.Is(err, owned.ErrWaits) {
			err = nil
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.machine.Repaired(o.ID, time.Now(), err)
	return err
}

// faultsOf looks at one object. It returns the time after which the kernel was read.
func (k *Keeper) faultsOf(o Object) (faults []string, read time.Time, err error) {
	read = time.Now()
	if i, _ := owned.InfoOf(o.Kind); i.Polled || i.Slow {
		faults, err = o.Look(nil)
		return faults, read, err
	}
	v, err := k.read()
	if err != nil {
		return nil, read, err
	}
	faults, err = o.Look(v)
	return faults, k.viewAt, err
}

// checkRepair looks again at an object that was repaired: a repair without effect has
// failed.
func (k *Keeper) checkRepair(o Object) error {
	faults, _, err := k.faultsOf(o)
	if err == nil && len(faults) > 0 {
		err = errors.New("after the repair: " + strings.Join(faults, ", "))
	}
	return err
}

// flushReports writes to the log what happened.
func (k *Keeper) flushReports() {
	k.mu.Lock()
	reports := k.machine.Reports()
	k.mu.Unlock()
	for _, r := range reports {
		object, fault := r.ID.String(), strings.Join(r.Faults, ", ")
		switch r.Event {
		case owned.Repaired:
			k.log.Warn("repaired what other software changed", "object", object, "fault", fault)
		case owned.Failed:
			k.log.Error("cannot repair what other software changed, will try again", "object", object, "fault", fault, "err", r.Err)
		case owned.Recovered:
			k.log.Info("an object that could not be repaired is right again", "object", object)
		case owned.Fight:
			k.log.Error("other software changes an object again and again: weft repairs it less often now", "object", object, "fault", fault, "repairs", r.Count)
		case owned.Calm:
			k.log.Info("other software leaves an object alone again", "object", object, "repairs", r.Count)
		}
	}
}
