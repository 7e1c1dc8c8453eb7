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
	// keyRunning is there from start until a graceful stop, so that a start
	// that finds it follows a crash.
	keyRunning = "running"
)

// targets is the list of peers that the user wants to be connected to. It is
// safe for concurrent use.
type targets struct {
	store *store.Store
	set   func([]string) // tells the mesh

	mu   sync.Mutex // held while storing and telling, so that both see one order
	list []string   // in the order given, without repetition
}

// startTargets works out the list to start with: after a crash what was there
// plus what is given, so that launching again by the same command loses no
// target that connect added; else what is given, with resume after what was
// there.
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
	for _, t := range given {
		if !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	return list, crashed, nil
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

// add appends peers, or with replace makes them the only targets. Peers that
// are targets already are dialled at once again.
func (t *targets) add(peers []string, replace bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []string
	if !replace {
		list = slices.Clone(t.list)
	}
	for _, p := range peers {
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return t.change(list)
}

// remove takes peers off the list. They must be written as they were added.
func (t *targets) remove(peers []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.change(slices.DeleteFunc(slices.Clone(t.list), func(s string) bool { return slices.Contains(peers, s) }))
}

// change stores list, then tells the mesh. The lock is held.
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
