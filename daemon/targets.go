package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/weft-net/weft/internal/store"
)

const (
	bucketDaemon = "daemon"
	keyTargets   = "targets"
	// keyRunning is there from a start until a graceful stop. A start that finds
	// it follows a crash.
	keyRunning = "running"
)

// targets is the list of peers that the user wants to be connected to. It is
// safe for concurrent use.
type targets struct {
	store *store.Store
	set   func([]string) // sets the targets of the mesh

	mu   sync.Mutex // held over store and set, so that both see the same order
	list []string   // in the order given, without repetition
}

// startTargets returns the list to start with. After a stop it is the given targets,
// with resume behind the stored ones. After a crash it is always both, so that
// launching again with the same command loses no target that connect added.
func startTargets(st *store.Store, given []string, resume bool) (list []string, crashed bool, err error) {
	mark, err := st.Get(bucketDaemon, []byte(keyRunning))
	if err != nil {
		return nil, false, fmt.Errorf("read how the last run ended: %w", err)
	}
	crashed = mark != nil
	if crashed || resume {
		if list, err = loadTargets(st); err != nil {
			return nil, crashed, err
		}
	}
	return appendNew(list, given), crashed, nil
}

func loadTargets(st *store.Store) (list []string, err error) {
	b, err := st.Get(bucketDaemon, []byte(keyTargets))
	if err != nil {
		return nil, fmt.Errorf("read the targets: %w", err)
	}
	if b == nil {
		return nil, nil
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read the targets: %w", err)
	}
	return list, nil
}

// add appends peers. Those that are targets already are dialled again at once.
func (t *targets) add(peers []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.change(appendNew(slices.Clone(t.list), peers))
}

// replace makes peers the only targets.
func (t *targets) replace(peers []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.change(appendNew(nil, peers))
}

// appendNew appends those of more that list does not have.
func appendNew(list, more []string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// remove removes peers from the list. They must be written as they were added. If one is not on
// the list, nothing is removed.
func (t *targets) remove(peers []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range peers {
		if !slices.Contains(t.list, p) {
			return fmt.Errorf("forget %s: it is no target; 'weft status targets' lists them", p)
		}
	}
	return t.change(slices.DeleteFunc(slices.Clone(t.list), func(s string) bool { return slices.Contains(peers, s) }))
}

// change stores list, then sets the targets of the mesh. The lock is held.
func (t *targets) change(list []string) error {
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("keep the targets: %w", err)
	}
	if err := t.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyTargets), Value: b}}); err != nil {
		return fmt.Errorf("keep the targets: %w", err)
	}
	t.list = list
	t.set(slices.Clone(list))
	return nil
}

func (t *targets) get() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.list)
}
