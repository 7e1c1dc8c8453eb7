package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/internal/store"
)

// exposure is the record of one address of the bridge; its key is the address.
type exposure struct {
	Masquerade bool     `json:"masquerade"`
	Names      []string `json:"names,omitempty"` // full
}

// exposures gives the bridge addresses, so that the host itself is part of the
// overlay. It implements api.Exposures, and is safe for concurrent use.
type exposures struct {
	// Constant.
	exposeConfig

	// mu lets one request in at a time, as the rules are made of all; it is
	// held while addresses are waited for.
	mu  sync.Mutex
	tab *store.Table[exposure] // guarded by mu

	wanted atomic.Pointer[[]netdev.Exposure] // what the bridge and the rules must have
	shown  atomic.Pointer[[]netip.Prefix]    // what attachment shows
}

const bucketExposures = "exposures"

// exposeConfig is what exposures work with.
type exposeConfig struct {
	gate      *gate
	store     *store.Store
	addresses addresses
	names     Names
	bridge    string
	sysctls   netdev.Sysctls
	keeper    *keeper.Keeper
	// keepClients shows containers the addresses of clients outside; see
	// Config.NoMasqLocal.
	keepClients bool
	changed     func([]netip.Prefix) // called with all addresses when they may have changed
	log         *slog.Logger
}

func newExposures(c exposeConfig) *exposures {
	tab, err := store.OpenTable[exposure](c.store, bucketExposures)
	if err != nil {
		c.log.Warn("some records of exposed addresses are lost", "err", err)
	}
	es := &exposures{exposeConfig: c, tab: tab}
	es.wanted.Store(&[]netdev.Exposure{}) // restore has the records
	es.show()
	return es
}

// all returns all exposures except some, sorted. The lock is held.
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

// Expose gives the bridge the addresses and returns them. Exposing again
// changes the masquerading only.
func (es *exposures) Expose(ctx context.Context, r api.ExposeRequest) (got []netip.Prefix, err error) {
	ctx, done, err := es.gate.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
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
			return nil, errors.Join(err, es.takeUnrecorded(got))
		}
	}
	return got, nil
}

// takeUnrecorded frees those of the addresses that no record has. The lock is held.
func (es *exposures) takeUnrecorded(ps []netip.Prefix) error {
	recorded := addrsOf(es.prefixes())
	return es.addresses.take(api.Exposed, slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool {
		return slices.Contains(recorded, p.Addr())
	}))
}

// exposeOne gives the bridge an address that the allocators have given. If that fails,
// the records are as before.
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
	} else {
		undo = es.tab.Delete(p.String())
	}
	if undo != nil {
		es.log.Warn("an address that could not be exposed stays on record", "addr", p, "err", undo)
	}
	return err
}

func (es *exposures) apply(e netdev.Exposure) error {
	changed, err := es.sysctls.EnableForwarding(e.Addr.Addr().Is6())
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		es.log.Info("the host forwards packets now", "sysctls", changed)
	}
	before := *es.wanted.Load()
	list := append(slices.DeleteFunc(slices.Clone(before), func(o netdev.Exposure) bool { return o.Addr == e.Addr }), e)
	slices.SortFunc(list, func(a, b netdev.Exposure) int { return a.Addr.Compare(b.Addr) })
	if slices.Equal(list, before) {
		return es.keeper.Apply(es.objectsOf(e)...)
	}
	if err := es.want(list, es.objectsOf(e)...); err != nil {
		return errors.Join(err, es.want(before))
	}
	return nil
}

// objectsOf returns what must be right for an exposed address.
func (es *exposures) objectsOf(e netdev.Exposure) []owned.ID {
	return []owned.ID{{Kind: owned.Address, Name: e.Addr.String()}, exposeRules}
}

// want makes a list the desired state of the bridge and the rules. Objects are made right
// before it returns, and addresses that the list lacks are taken from the bridge.
func (es *exposures) want(list []netdev.Exposure, objects ...owned.ID) error {
	before := *es.wanted.Load()
	if len(list) > 0 {
		// They are there before the address is, and the keeper keeps them.
		if err := es.keeper.Do(es.isolate); err != nil {
			return err
		}
	}
	es.wanted.Store(&list)
	for _, e := range before {
		if slices.ContainsFunc(list, func(o netdev.Exposure) bool { return o.Addr == e.Addr }) {
			continue
		}
		a := netdev.BridgeAddress{Bridge: es.bridge, Addr: e.Addr}
		if err := es.keeper.Do(func() error { _, err := a.Remove(); return err }); err != nil {
			return err
		}
	}
	if len(objects) == 0 {
		objects = []owned.ID{exposeRules}
	}
	return es.keeper.Apply(objects...)
}

// isolate keeps the containers of Docker's networks away from the bridge.
func (es *exposures) isolate() error {
	v, err := netdev.ReadView()
	if err != nil {
		return err
	}
	return netdev.DockerRulesOf(v, es.bridge).Ensure()
}

// Hide takes addresses from the bridge, all if none is named, and returns them. If the bridge
// lacks one, it takes none.
func (es *exposures) Hide(_ context.Context, r api.ExposeRequest) ([]netip.Prefix, error) {
	es.mu.Lock()
	defer es.mu.Unlock()
	defer es.show()
	ps, err := es.addresses.matching(es.prefixes(), r.Addresses)
	if err != nil {
		return nil, fmt.Errorf("hide: %w", err)
	}
	for i, p := range ps {
		rest := slices.DeleteFunc(slices.Clone(*es.wanted.Load()), func(e netdev.Exposure) bool { return e.Addr == p })
		if err := es.want(rest); err != nil {
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

// restore gives the bridge the addresses that it had in the last run.
func (es *exposures) restore(ctx context.Context) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.show()
	for _, e := range es.all() {
		if err := es.apply(e); err != nil {
			es.log.Warn("an exposed address could not be restored", "addr", e.Addr, "err", err)
		}
	}
	if err := es.addresses.settle(ctx, api.Exposed, es.prefixes()); err != nil {
		es.log.Warn("the exposed addresses could not be claimed again", "err", err)
	}
}

// restoreNames registers the names of the host's own addresses.
func (es *exposures) restoreNames() {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.all() {
		for _, name := range es.tab.Records[e.Addr.String()].Names {
			if err := es.names.Add(api.Exposed, name, e.Addr.Addr()); err != nil {
				es.log.Warn("a name of the host could not be restored", "err", err)
			}
		}
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
	es.changed(ps)
}
