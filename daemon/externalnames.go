package daemon

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/store"
)

// externalNames are the host names of addresses that belong to no container of this
// host. They are on disk, and registered again at each start. It is safe for
// concurrent use.
type externalNames struct {
	names    Names
	attached func() []netip.Addr // the addresses of containers of this host, and those exposed
	log      *slog.Logger

	mu  sync.Mutex
	tab *store.Table[[]netip.Addr] // by the full name
}

const bucketExternalNames = "external-names"

func newExternalNames(st *store.Store, names Names, attached func() []netip.Addr, log *slog.Logger) *externalNames {
	tab, err := store.OpenTable[[]netip.Addr](st, bucketExternalNames)
	if err != nil {
		log.Warn("some records of names of external addresses are lost", "err", err)
	}
	return &externalNames{names: names, attached: attached, log: log, tab: tab}
}

// restoreNames registers all of them. A name that is not in the domain of this run stays on
// record, and so does an address that this host may not name in this run.
func (ns *externalNames) restoreNames() {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	attached := ns.attached()
	for _, fqdn := range slices.Sorted(maps.Keys(ns.tab.Records)) {
		may, err := permit(ns.names, ns.tab.Records[fqdn], attached)
		if err != nil {
			ns.log.Warn("a name of external addresses leads to fewer of them than before", "name", fqdn, "err", err)
		}
		if err := ns.names.Add(api.Extern, fqdn, may...); err != nil {
			ns.log.Warn("a name of external addresses could not be restored", "err", err)
		}
	}
}

// add gives a name addresses.
func (ns *externalNames) add(fqdn string, addrs []netip.Addr) error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	had := ns.tab.Records[fqdn]
	if err := ns.names.Add(api.Extern, fqdn, addrs...); err != nil {
		return err
	}
	err := ns.tab.Put(fqdn, union(had, addrs))
	if fresh := minus(addrs, had); err != nil && len(fresh) > 0 {
		_, _ = ns.names.Remove(api.Extern, fqdn, fresh...)
	}
	return err
}

// remove takes addresses from a name, all if none is given. If the name lacks one, it takes none.
func (ns *externalNames) remove(fqdn string, addrs []netip.Addr) error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	had, known := ns.tab.Records[fqdn]
	if !known {
		return fmt.Errorf("nobody added the name %s on this host for addresses without a container", fqdn)
	}
	if missing := minus(addrs, had); len(missing) > 0 {
		return fmt.Errorf("name %s does not have the address %s: it has %s", fqdn, missing[0], joinAddrs(had))
	}
	left := minus(had, addrs)
	var err error
	if len(addrs) == 0 || len(left) == 0 {
		err = ns.tab.Delete(fqdn)
	} else {
		err = ns.tab.Put(fqdn, left)
	}
	if err != nil {
		return err
	}
	_, err = ns.names.Remove(api.Extern, fqdn, addrs...)
	return err
}
