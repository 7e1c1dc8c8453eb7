package daemon

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// exposure is the record of one address of the bridge; its key is the address.
type exposure struct {
	Masquerade bool     `json:"masquerade"`
	Names      []string `json:"names,omitempty"` // full
}

// exposures gives the bridge addresses, so that the host itself is part of the
// overlay. It is safe for concurrent use.
type exposures struct {
	addresses ranges
	names     Names
	bridge    string
	log       *slog.Logger
	// keepClients is that of all exposures; set before the first use.
	keepClients bool

	// mu lets one request in at a time, as the rules are made of all; it is
	// held while addresses are waited for.
	mu  sync.Mutex
	tab *store.Table[exposure] // guarded by mu

	shown atomic.Pointer[[]netip.Prefix] // what attachment shows
}

const bucketExposures = "exposures"

func newExposures(st *store.Store, us ranges, names Names, bridge string, log *slog.Logger) *exposures {
	tab, err := store.OpenTable[exposure](st, bucketExposures)
	if err != nil {
		log.Warn("some records of exposed addresses are lost", "error", err)
	}
	return &exposures{addresses: us, names: names, bridge: bridge, log: log, tab: tab}
}

// all returns the exposures but for those left out, sorted. The lock is held.
func (es *exposures) all(without ...netip.Prefix) []netdev.Exposure {
	var list []netdev.Exposure
	for _, key := range slices.Sorted(maps.Keys(es.tab.Records)) {
		p, err := netip.ParsePrefix(key)
		if err == nil && !slices.Contains(without, p) {
			list = append(list, es.exposure(p, es.tab.Records[key].Masquerade))
		}
	}
	return list
}

func (es *exposures) exposure(p netip.Prefix, masquerade bool) netdev.Exposure {
	return netdev.Exposure{Addr: p, Masquerade: masquerade, KeepClients: es.keepClients}
}

func (es *exposures) prefixes() []netip.Prefix {
	var ps []netip.Prefix
	for _, e := range es.all() {
		ps = append(ps, e.Addr)
	}
	return ps
}

// expose gives the bridge the addresses and returns them. Exposing again
// changes the masquerading only.
func (es *exposures) expose(ctx context.Context, r api.ExposeRequest) (got []netip.Prefix, err error) {
	fqdn, err := qualify(es.names, r.Hostname)
	if err != nil {
		return nil, err
	}
	es.mu.Lock()
	defer es.mu.Unlock()
	defer es.show()
	want := r.Addresses
	if len(want) == 0 {
		want = []api.Address{{Kind: api.FromDefault}}
	}
	got, _, err = es.addresses.giveAll(ctx, api.Exposed, want)
	if err != nil {
		return nil, err
	}
	for _, p := range got {
		if err := es.exposeOne(p, !r.WithoutMasquerade, fqdn); err != nil {
			return nil, err
		}
	}
	return got, nil
}

func (es *exposures) exposeOne(p netip.Prefix, masquerade bool, fqdn string) (err error) {
	before, had := es.tab.Records[p.String()]
	now := exposure{Masquerade: masquerade, Names: before.Names}
	if fqdn != "" {
		if err := es.names.Add(api.Exposed, fqdn, p.Addr()); err != nil {
			return err
		}
		if !slices.Contains(now.Names, fqdn) {
			now.Names = append(slices.Clone(now.Names), fqdn)
			defer func() {
				if err != nil {
					_, _ = es.names.Remove(api.Exposed, fqdn, p.Addr())
				}
			}()
		}
	}
	if err := es.tab.Put(p.String(), now); err != nil {
		return err
	}
	err = es.apply(es.exposure(p, masquerade))
	if err == nil {
		return nil
	}
	var undo error
	if had {
		undo = es.tab.Put(p.String(), before)
	} else if undo = es.addresses.take(api.Exposed, []netip.Prefix{p}); undo == nil {
		undo = es.tab.Delete(p.String())
	}
	if undo != nil {
		es.log.Warn("an address that could not be exposed stays on record", "address", p, "error", undo)
	}
	return err
}

func (es *exposures) apply(e netdev.Exposure) error {
	changed, err := netdev.EnableForwarding(e.Addr.Addr().Is6())
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		es.log.Info("the host forwards packets now", "sysctls", changed)
	}
	_, err = netdev.Expose(es.bridge, e, es.all())
	return err
}

// hide takes addresses from the bridge and returns those that it had.
func (es *exposures) hide(r api.ExposeRequest) ([]netip.Prefix, error) {
	es.mu.Lock()
	defer es.mu.Unlock()
	defer es.show()
	ps, err := es.addresses.matching(es.prefixes(), r.Addresses)
	if err != nil {
		return nil, err
	}
	for i, p := range ps {
		if _, err := netdev.Hide(es.bridge, p, es.all(p)); err != nil {
			return ps[:i], err
		}
		if _, err := es.names.Remove(api.Exposed, "", p.Addr()); err != nil {
			return ps[:i], err
		}
		if err := es.addresses.take(api.Exposed, []netip.Prefix{p}); err != nil {
			return ps[:i], err
		}
		if err := es.tab.Delete(p.String()); err != nil {
			return ps[:i], err
		}
	}
	return ps, nil
}

// restore gives the bridge back what it had before the last end.
func (es *exposures) restore(ctx context.Context) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.show()
	for _, e := range es.all() {
		if err := es.apply(e); err != nil {
			es.log.Warn("an exposed address could not be restored", "address", e.Addr, "error", err)
		}
	}
	if err := es.addresses.settle(ctx, api.Exposed, es.prefixes()); err != nil {
		es.log.Warn("the exposed addresses could not be claimed again", "error", err)
	}
}

// reconcile makes the rules again if someone else flushed them. It leaves that
// to the next time while a request is at work.
func (es *exposures) reconcile() {
	if !es.mu.TryLock() {
		return
	}
	defer es.mu.Unlock()
	list := es.all()
	if len(list) == 0 {
		return
	}
	rebuilt, err := netdev.Reconcile(es.bridge, list)
	if err != nil {
		es.log.Warn("the rules of exposed addresses could not be checked", "error", err)
	} else if rebuilt {
		es.log.Warn("the rules of exposed addresses were gone or changed, and are made again")
	}
}

// attachment shows the bridge as one more container, if it has an address.
func (es *exposures) attachment() (api.Attachment, bool) {
	ps := es.shown.Load()
	if ps == nil || len(*ps) == 0 {
		return api.Attachment{}, false
	}
	return api.Attachment{ID: api.Exposed, Interface: es.bridge, Addresses: *ps}, true
}

// show publishes what attachment shows. The lock is held.
func (es *exposures) show() {
	ps := es.prefixes()
	es.shown.Store(&ps)
}
