package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/locker"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// leases gives addresses to owners whose interfaces another program makes. The
// allocators remember them. It implements api.Leases, and is safe for concurrent use.
type leases struct {
	leaseConfig // constant

	locks locker.Locker // by owner; comes before mu
	leaseStates
}

// leaseConfig is what leases work with.
type leaseConfig struct {
	gate      *gate
	kernel    requirer
	addresses addresses
	stateDir  string // with the files of api.GoneFile
	bridge    string
	mtu       int // bytes of IP packet
	sysctls   netdev.Sysctls
	log       *slog.Logger
}

func newLeases(c leaseConfig, st *store.Store) *leases {
	tab, err := store.OpenTable[leaseRecord](st, bucketLeases)
	if err != nil {
		c.log.Warn("some records of leases are lost", "err", err)
	}
	return &leases{leaseConfig: c, leaseStates: leaseStates{tab: tab}}
}

// lock locks the addresses of an owner.
func (ls *leases) lock(owner string) (unlock func()) {
	ls.locks.Lock(owner)
	return func() { _ = ls.locks.Unlock(owner) } // it is locked
}

func (ls *leases) check(owner string) error {
	if !strings.HasPrefix(owner, api.OwnerCNI) || len(owner) > 250 {
		return usage("lease for %q: want an owner that begins with %q and has at most 250 bytes", owner, api.OwnerCNI)
	}
	return nil
}

// Lease gives the owner of a request the addresses, or if none are named one of each
// range, and returns all of those.
func (ls *leases) Lease(ctx context.Context, r api.LeaseRequest) (reply api.LeaseReply, undo func(), err error) {
	ctx, done, err := ls.gate.enter(ctx)
	if err != nil {
		return api.LeaseReply{}, nil, err
	}
	defer done()
	if err := ls.check(r.Owner); err != nil {
		return api.LeaseReply{}, nil, err
	}
	if err := connectable(ls.kernel); err != nil {
		return api.LeaseReply{}, nil, err
	}
	ctx, end := ls.begin(ctx, r)
	defer end()
	defer ls.lock(r.Owner)()
	got, fresh, err := ls.lease(ctx, r)
	if err != nil {
		return api.LeaseReply{}, nil, fmt.Errorf("lease for %s: %w", r.Owner, err)
	}
	turn := ls.nextTurn(r)
	return api.LeaseReply{Addresses: got, Bridge: ls.bridge, MTU: ls.mtu}, func() { ls.undo(r.Owner, turn, fresh) }, nil
}

var errReleased = errors.New("it was released meanwhile")

// lease does the work of Lease. The owner is locked.
func (ls *leases) lease(ctx context.Context, r api.LeaseRequest) (got, fresh []netip.Prefix, err error) {
	if err := ls.claimsOver(r); err != nil {
		return nil, nil, err
	}
	if r.Port != "" {
		return ls.confirm(r)
	}
	want := r.Addresses
	if len(want) == 0 {
		for _, a := range ls.addresses {
			want = append(want, api.Address{Kind: api.FromSubnet, Prefix: a.DefaultSubnet()})
		}
	}
	if len(want) == 0 {
		want = []api.Address{{Kind: api.FromDefault}} // for its error
	}
	if got, fresh, err = ls.addresses.giveAll(ctx, r.Owner, want); err != nil {
		if ls.isReleased(r) {
			err = errReleased
		}
		return nil, nil, err
	}
	// The caller may be gone, or another one have released the owner, while this one waited.
	if err = ctx.Err(); err == nil && ls.isReleased(r) {
		err = errReleased
	}
	if err == nil {
		err = ls.note(r.Owner, func(rec *leaseRecord) { rec.Name, rec.Netns, rec.NetnsID = r.Name, r.Netns, r.NetnsID })
	}
	if err != nil {
		return nil, nil, errors.Join(err, ls.addresses.take(r.Owner, fresh))
	}
	return got, fresh, nil
}

// claimsOver returns an error if the owner was released after the request was issued. A note
// of an earlier release no longer holds.
func (ls *leases) claimsOver(r api.LeaseRequest) error {
	file := api.GoneFile(ls.stateDir, r.Owner)
	if at, noted := noteAt(file); noted {
		if r.Issued != 0 && at > r.Issued {
			return errReleased
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if ls.isReleased(r) {
		return errReleased
	}
	return nil
}

// noteAt returns when the release was issued that a file notes; 0 if that is not known, as it
// was before the boot.
func noteAt(file string) (at int64, noted bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, !errors.Is(err, fs.ErrNotExist)
	}
	at, err = strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil || at < 0 || at > api.Now() {
		return 0, true
	}
	return at, true
}

// confirm records the port of an owner, which must still have its addresses.
func (ls *leases) confirm(r api.LeaseRequest) (got, fresh []netip.Prefix, err error) {
	if got = ls.addresses.owned(r.Owner); len(got) == 0 {
		return nil, nil, errReleased
	}
	return got, nil, ls.note(r.Owner, func(rec *leaseRecord) { rec.Port = r.Port })
}

// undo takes back what a lease gave whose caller is gone, unless it was asked for again.
func (ls *leases) undo(owner string, turn uint64, fresh []netip.Prefix) {
	defer ls.lock(owner)()
	if len(fresh) == 0 || ls.turn(owner) != turn {
		return
	}
	if err := ls.addresses.take(owner, fresh); err != nil {
		ls.log.Warn("the addresses of a request whose caller is gone could not be freed", "owner", owner, "err", err)
		return
	}
	if len(ls.addresses.owned(owner)) == 0 {
		ls.forget(owner)
	}
	ls.log.Info("a request for addresses was undone, as its caller is gone", "owner", owner, "addresses", fresh)
}

// Release takes the addresses of an owner and returns them. A Lease that was issued before
// fails, whether it is at work or comes later. A release takes nothing from a Lease that was
// issued later.
func (ls *leases) Release(_ context.Context, r api.LeaseRequest) ([]netip.Prefix, error) {
	if err := ls.check(r.Owner); err != nil {
		return nil, err
	}
	ls.end(r)
	defer ls.lock(r.Owner)()
	if ls.isOld(r) {
		return nil, nil
	}
	had := ls.addresses.owned(r.Owner)
	if err := ls.addresses.take(r.Owner, had); err != nil {
		return nil, err
	}
	ls.forget(r.Owner)
	return had, nil
}

// Leases returns all leases, by owner.
func (ls *leases) Leases(context.Context) ([]api.Lease, error) { return ls.list(), nil }

func (ls *leases) list() []api.Lease {
	all := ls.addresses.Owners()
	list := make([]api.Lease, 0, len(all))
	for _, owner := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(owner, api.OwnerCNI) {
			list = append(list, api.Lease{Owner: owner, Name: ls.record(owner).Name, Addresses: all[owner]})
		}
	}
	return list
}

// freeAll frees all leases but those of owners that live: the state file may be from before
// the boot. It is called after the host was booted, before any lease is given: the owners are
// gone then, and a runtime need not release each.
func (ls *leases) freeAll(alive map[string]string) error {
	var errs []error
	for _, l := range ls.list() {
		if _, lives := alive[l.Owner]; lives {
			continue
		}
		ls.log.Info("released the addresses of an owner from before the reboot", "owner", l.Owner, "addresses", l.Addresses)
		if err := ls.addresses.take(l.Owner, l.Addresses); err != nil {
			errs = append(errs, err)
			continue
		}
		ls.forget(l.Owner)
	}
	return errors.Join(errs...)
}

// forgetUnused forgets the owners that have no address: a router may have been killed before
// it did. It is called before any lease is given.
func (ls *leases) forgetUnused() {
	all := ls.addresses.Owners()
	for _, owner := range ls.recorded() {
		if len(all[owner]) == 0 {
			ls.forget(owner)
		}
	}
}

// sweep frees the addresses of owners that are gone.
func (ls *leases) sweep(now time.Time) {
	ls.freeNoted()
	if len(ls.list()) == 0 {
		return
	}
	alive, err := netdev.PortOwners(ls.bridge)
	if err != nil {
		ls.log.Warn("cannot read which owners of leases live", "err", err)
		return
	}
	ls.endGone(now, alive)
}

// freeNoted frees the addresses of owners that left while the router was stopped.
func (ls *leases) freeNoted() {
	files, err := os.ReadDir(api.GoneDir(ls.stateDir))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			ls.log.Warn("cannot read which owners left while the router was stopped", "err", err)
		}
		return
	}
	for _, f := range files {
		owner, err := api.GoneOwner(f.Name())
		if err == nil {
			err = ls.free(owner, filepath.Join(api.GoneDir(ls.stateDir), f.Name()))
		}
		if err != nil {
			ls.log.Warn("the addresses of an owner that left could not be freed", "file", f.Name(), "err", err)
		}
	}
}

func (ls *leases) free(owner, file string) error {
	if err := ls.check(owner); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	defer ls.lock(owner)()
	at, noted := noteAt(file)
	if !noted {
		return nil // it came back
	}
	ls.end(api.LeaseRequest{Owner: owner, Issued: at})
	had := ls.addresses.owned(owner)
	if err := ls.addresses.take(owner, had); err != nil {
		return err
	}
	ls.forget(owner)
	if len(had) > 0 {
		ls.log.Info("released the addresses of an owner that left while the router was stopped", "owner", owner, "addresses", had)
	}
	return os.Remove(file)
}
