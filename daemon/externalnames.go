package daemon

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/store"
)

// externs are the host names of addresses that are no container's of this host.
// They are on disk, and a router that starts says them again, in a life of its
// names of its own: what was removed before is not among them. It is safe for
// concurrent use.
type externs struct {
	names Names
	log   *slog.Logger

	mu  sync.Mutex
	tab *store.Table[[]netip.Addr] // by the full name
}

const bucketExterns = "extern-names"

func newExterns(st *store.Store, ns Names, log *slog.Logger) *externs {
	tab, err := store.OpenTable[[]netip.Addr](st, bucketExterns)
	if err != nil {
		log.Warn("some records of names for addresses outside are lost", "error", err)
	}
	return &externs{names: ns, log: log, tab: tab}
}

// restoreNames registers all of them. A name that can not be, as the domain is
// another than it was, stays on record.
func (xs *externs) restoreNames() {
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, fqdn := range slices.Sorted(maps.Keys(xs.tab.Records)) {
		if err := xs.names.Add(api.Extern, fqdn, xs.tab.Records[fqdn]...); err != nil {
			xs.log.Warn("a name for addresses outside could not be restored", "error", err)
		}
	}
}

// add gives a name addresses.
func (xs *externs) add(fqdn string, addrs []netip.Addr) error {
	xs.mu.Lock()
	defer xs.mu.Unlock()
	had := xs.tab.Records[fqdn]
	if err := xs.names.Add(api.Extern, fqdn, addrs...); err != nil {
		return err
	}
	err := xs.tab.Put(fqdn, union(had, addrs))
	if fresh := minus(addrs, had); err != nil && len(fresh) > 0 {
		_, _ = xs.names.Remove(api.Extern, fqdn, fresh...)
	}
	return err
}

// remove takes addresses from a name, all if none is given.
func (xs *externs) remove(fqdn string, addrs []netip.Addr) error {
	xs.mu.Lock()
	defer xs.mu.Unlock()
	left := minus(xs.tab.Records[fqdn], addrs)
	var err error
	if len(addrs) == 0 || len(left) == 0 {
		err = xs.tab.Delete(fqdn)
	} else {
		err = xs.tab.Put(fqdn, left)
	}
	if err != nil {
		return err
	}
	_, err = xs.names.Remove(api.Extern, fqdn, addrs...)
	return err
}
