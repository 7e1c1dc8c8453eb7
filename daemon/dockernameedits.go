package daemon

import (
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/weft-net/weft/internal/store"
)

// nameEdits are the changes that users made to the names that a container of Docker's has
// by itself.
type nameEdits struct {
	Added hostNames `json:"added,omitempty"`
	// Hidden are removed from it until its next run.
	Hidden hostNames `json:"hidden,omitempty"`
}

// dockerNameEdits are the changes that users made to the names of Docker's containers,
// by their ids. They are on disk for as long as the containers exist. It is safe for
// concurrent use.
type dockerNameEdits struct {
	log *slog.Logger

	mu  sync.Mutex
	tab *store.Table[nameEdits]
}

const bucketDockerNameEdits = "docker-names"

func newDockerNameEdits(st *store.Store, log *slog.Logger) *dockerNameEdits {
	tab, err := store.OpenTable[nameEdits](st, bucketDockerNameEdits)
	if err != nil {
		log.Warn("some changes to the names of containers are lost", "err", err)
	}
	return &dockerNameEdits{log: log, tab: tab}
}

func (ns *dockerNameEdits) get(container string) nameEdits {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.tab.Records[container]
}

// put writes a record, and deletes one that is empty.
func (ns *dockerNameEdits) put(container string, edits nameEdits) error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if len(edits.Added) == 0 && len(edits.Hidden) == 0 {
		return ns.tab.Delete(container)
	}
	return ns.tab.Put(container, edits)
}

// ended notes that a run of a container has ended: in the next one it has all of its
// names again.
func (ns *dockerNameEdits) ended(container string) {
	if edits := ns.get(container); len(edits.Hidden) > 0 {
		edits.Hidden = nil
		ns.update(container, edits)
	}
}

// forget deletes the record of a container.
func (ns *dockerNameEdits) forget(container string) { ns.update(container, nameEdits{}) }

// keepOnly forgets all but those that exist.
func (ns *dockerNameEdits) keepOnly(exist []string) {
	ns.mu.Lock()
	known := slices.Sorted(maps.Keys(ns.tab.Records))
	ns.mu.Unlock()
	for _, container := range known {
		if !slices.Contains(exist, container) {
			ns.forget(container)
		}
	}
}

func (ns *dockerNameEdits) update(container string, edits nameEdits) {
	if err := ns.put(container, edits); err != nil {
		ns.log.Warn("the changes to the names of a container could not be written", "container", container, "err", err)
	}
}
