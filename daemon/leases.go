package daemon

import (
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
	"strings"

	"github.com/moby/locker"

	"github.com/weft-net/weft/internal/api"
)

// leases gives addresses to owners whose interfaces another program makes. The
// allocators remember them. It implements api.Leases, and is safe for concurrent use.
type leases struct {
	// Constant.
	gate      *gate
	kernel    requirer
	addresses addresses
	stateDir  string // with the files of api.GoneFile
	bridge    string
	mtu       int // bytes of IP packet
	log       *slog.Logger

	locks locker.Locker // by owner
}

// lock locks the addresses of an owner.
func (ls *leases) lock(owner string) (unlock func()) {
	ls.locks.Lock(owner)
	return func() { _ = ls.locks.Unlock(owner) } // it is locked
}

// leaseOwner begins the name of each owner of a lease.
const leaseOwner = "cni:"

func (ls *leases) check(owner string) error {
	if !strings.HasPrefix(owner, leaseOwner) || len(owner) > 250 {
		return usage("lease for %q: want an owner that begins with %q and has at most 250 bytes", owner, leaseOwner)
	}
	return nil
}

// Lease gives the owner of a request the addresses, or if none are named one of each
// range, and returns all of those.
func (ls *leases) Lease(ctx context.Context, r api.LeaseRequest) (api.LeaseReply, error) {
	ctx, done, err := ls.gate.enter(ctx)
	if err != nil {
		return api.LeaseReply{}, err
	}
	defer done()
	if err := connectable(ls.kernel); err != nil {
		return api.LeaseReply{}, err
	}
	got, err := ls.lease(ctx, r)
	return api.LeaseReply{Addresses: got, Bridge: ls.bridge, MTU: ls.mtu}, err
}

func (ls *leases) lease(ctx context.Context, r api.LeaseRequest) ([]netip.Prefix, error) {
	if err := ls.check(r.Owner); err != nil {
		return nil, err
	}
	defer ls.lock(r.Owner)()
	// The owner is here, so an earlier note that it left no longer holds.
	if err := os.Remove(api.GoneFile(ls.stateDir, r.Owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lease for %s: %w", r.Owner, err)
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
	got, _, err := ls.addresses.giveAll(ctx, r.Owner, want)
	if err != nil {
		return nil, fmt.Errorf("lease for %s: %w", r.Owner, err)
	}
	return got, nil
}

// Release takes the addresses of an owner and returns them.
func (ls *leases) Release(_ context.Context, r api.LeaseRequest) ([]netip.Prefix, error) {
	if err := ls.check(r.Owner); err != nil {
		return nil, err
	}
	defer ls.lock(r.Owner)()
	had := ls.addresses.owned(r.Owner)
	return had, ls.addresses.take(r.Owner, had)
}

// Leases returns all leases, by owner.
func (ls *leases) Leases(context.Context) ([]api.Lease, error) { return ls.list(), nil }

func (ls *leases) list() []api.Lease {
	all := ls.addresses.Owners()
	list := make([]api.Lease, 0, len(all))
	for _, owner := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(owner, leaseOwner) {
			list = append(list, api.Lease{Owner: owner, Addresses: all[owner]})
		}
	}
	return list
}

// freeAll frees all leases. It is called after the host was booted, before any lease
// is given: the owners are gone then, and a runtime need not release each.
func (ls *leases) freeAll() error {
	var errs []error
	for _, l := range ls.list() {
		ls.log.Info("released the addresses of an owner from before the reboot", "owner", l.Owner, "addresses", l.Addresses)
		errs = append(errs, ls.addresses.take(l.Owner, l.Addresses))
	}
	return errors.Join(errs...)
}

// sweep frees the addresses of owners that left while the router was stopped.
func (ls *leases) sweep() {
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
	if _, err := os.Stat(file); err != nil {
		return nil // it came back
	}
	had := ls.addresses.owned(owner)
	if err := ls.addresses.take(owner, had); err != nil {
		return err
	}
	if len(had) > 0 {
		ls.log.Info("released the addresses of an owner that left while the router was stopped", "owner", owner, "addresses", had)
	}
	return os.Remove(file)
}
