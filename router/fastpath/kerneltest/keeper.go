package kerneltest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/router/fastpath"
)

// Keeper keeps the objects of a controller on a Machine. It looks at all of them after each
// change of the machine and every second, without the back-off of the real one.
type Keeper struct {
	m    *Machine
	wake chan struct{}

	round sync.Mutex

	mu      sync.Mutex
	objects map[owned.ID]keeper.Object
}

var _ fastpath.Keeper = (*Keeper)(nil)

// NewKeeper returns a Keeper without objects.
func NewKeeper(m *Machine) *Keeper {
	return &Keeper{m: m, wake: make(chan struct{}, 1), objects: make(map[owned.ID]keeper.Object)}
}

// Keep implements fastpath.Keeper.
func (k *Keeper) Keep(objects ...keeper.Object) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range objects {
		k.objects[o.ID] = o
	}
	return nil
}

// KeepAll implements fastpath.Keeper. A Machine has no objects that come and go.
func (k *Keeper) KeepAll(owned.Kind, keeper.Source) error { return nil }

// Drop implements fastpath.Keeper.
func (k *Keeper) Drop(ids ...owned.ID) {
	k.round.Lock()
	defer k.round.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		delete(k.objects, id)
	}
}

// DropAll implements fastpath.Keeper.
func (k *Keeper) DropAll(...owned.Kind) {}

// Run keeps the objects until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	changed := func() {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	k.m.mu.Lock()
	k.m.watchers, k.m.observers = append(k.m.watchers, changed), append(k.m.observers, changed)
	k.m.mu.Unlock()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-k.wake:
		}
		k.look()
	}
}

func (k *Keeper) look() {
	k.round.Lock()
	defer k.round.Unlock()
	k.mu.Lock()
	var all []keeper.Object
	for _, o := range k.objects {
		all = append(all, o)
	}
	k.mu.Unlock()
	for _, o := range all {
		faults, err := o.Look(nil)
		if err == nil && len(faults) > 0 {
			err = o.Make()
		}
		if err != nil && !errors.Is(err, owned.ErrWaits) {
			k.m.t.Logf("%s: %v", o.ID, err)
		}
	}
}
