package daemon

import (
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/weft-net/weft/internal/store"
)

// given are the changes that users made to the names that a container of Docker's has
// by itself.
type given struct {
	Names hostNames `json:"names,omitempty"`
	// Hidden are removed from it until its next run.
	Hidden hostNames `json:"hidden,omitempty"`
}

// givenNames are the names that users gave Docker's containers, by their ids. They
// are on disk for as long as the containers exist. It is safe for concurrent use.
type givenNames struct {
	log *slog.Logger

	mu  sync.Mutex
	tab *store.Table[given]
}

const bucketGiven = "docker-names"

func newGivenNames(st *store.Store, log *slog.Logger) *givenNames {
	tab, err := store.OpenTable[given](st, bucketGiven)
	if err != nil {
		log.Warn("some names that containers were given are lost", "err", err)
	}
	return &givenNames{log: log, tab: tab}
}

func (ns *givenNames) get(container string) given {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.tab.Records[container]
}

// put writes a record, and deletes one that is empty.
func (ns *givenNames) put(container string, g given) error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if len(g.Names) == 0 && len(g.Hidden) == 0 {
		return ns.tab.Delete(container)
	}
	return ns.tab.Put(container, g)
}

// ended notes that a run of a container has ended: in the next one it has all of its
// names again.
func (ns *givenNames) ended(container string) {
	if g := ns.get(container); len(g.Hidden) > 0 {
		g.Hidden = nil
		ns.update(container, g)
	}
}

// forget deletes the record of a container.
func (ns *givenNames) forget(container string) { ns.update(container, given{}) }

// keepOnly forgets all but those that exist.
func (ns *givenNames) keepOnly(exist []string) {
	ns.mu.Lock()
	known := slices.Sorted(maps.Keys(ns.tab.Records))
	ns.mu.Unlock()
	for _, container := range known {
		if !slices.Contains(exist, container) {
			ns.forget(container)
		}
	}
}

func (ns *givenNames) update(container string, g given) {
	if err := ns.put(container, g); err != nil {
		ns.log.Warn("the names that a container was given could not be written", "container", container, "err", err)
	}
}
