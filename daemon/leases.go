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

	"github.com/weft-net/weft/internal/api"
)

// leases gives addresses to owners whose interfaces somebody else makes. The
// allocators remember them. It is safe for concurrent use.
type leases struct {
	addresses ranges
	stateDir  string // with the files of api.GoneFile
	log       *slog.Logger

	locks keyed // by owner
}

// leaseOwner is what the name of an owner of leases begins with.
const leaseOwner = "cni:"

func (ls *leases) check(owner string) error {
	if !strings.HasPrefix(owner, leaseOwner) || len(owner) > 250 {
		return usage(fmt.Sprintf("lease for %q: want an owner that begins with %q and has at most 250 bytes", owner, leaseOwner))
	}
	return nil
}

// lease gives owner the addresses, or if none are named one of each range, and
// returns all of those.
func (ls *leases) lease(ctx context.Context, r api.LeaseRequest) ([]netip.Prefix, error) {
	if err := ls.check(r.Owner); err != nil {
		return nil, err
	}
	defer ls.locks.lock(r.Owner)()
	// It is here, whatever was said of an earlier life.
	if err := os.Remove(api.GoneFile(ls.stateDir, r.Owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lease for %s: %w", r.Owner, err)
	}
	want := r.Addresses
	if len(want) == 0 {
		for _, u := range ls.addresses {
			want = append(want, api.Address{Kind: api.FromSubnet, Prefix: u.DefaultSubnet()})
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

// release takes what owner has and returns it.
func (ls *leases) release(owner string) ([]netip.Prefix, error) {
	if err := ls.check(owner); err != nil {
		return nil, err
	}
	defer ls.locks.lock(owner)()
	had := ls.addresses.owned(owner)
	return had, ls.addresses.take(owner, had)
}

// list returns all leases, by owner.
func (ls *leases) list() []api.Lease {
	all := make(map[string][]netip.Prefix)
	for _, u := range ls.addresses {
		for owner, ps := range u.Owners() {
			if strings.HasPrefix(owner, leaseOwner) {
				all[owner] = append(all[owner], ps...)
			}
		}
	}
	list := make([]api.Lease, 0, len(all))
	for _, owner := range slices.Sorted(maps.Keys(all)) {
		list = append(list, api.Lease{Owner: owner, Addresses: all[owner]})
	}
	return list
}

// freeAll frees all leases, whose owners are gone: a runtime need not say so of each
// after the host was booted. It is for the time before any is given.
func (ls *leases) freeAll() error {
	var errs []error
	for _, l := range ls.list() {
		ls.log.Info("the addresses of one from before the host was booted are free", "owner", l.Owner, "addresses", l.Addresses)
		errs = append(errs, ls.addresses.take(l.Owner, l.Addresses))
	}
	return errors.Join(errs...)
}

// sweep frees what owners had that left while no router ran.
func (ls *leases) sweep() {
	files, err := os.ReadDir(api.GoneFolder(ls.stateDir))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			ls.log.Warn("owners that left are not known", "err", err)
		}
		return
	}
	for _, f := range files {
		owner, err := api.GoneOwner(f.Name())
		if err == nil {
			err = ls.free(owner, filepath.Join(api.GoneFolder(ls.stateDir), f.Name()))
		}
		if err != nil {
			ls.log.Warn("free the addresses of one that left", "file", f.Name(), "err", err)
		}
	}
}

func (ls *leases) free(owner, file string) error {
	if err := ls.check(owner); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	defer ls.locks.lock(owner)()
	if _, err := os.Stat(file); err != nil {
		return nil // it came back
	}
	had := ls.addresses.owned(owner)
	if err := ls.addresses.take(owner, had); err != nil {
		return err
	}
	if len(had) > 0 {
		ls.log.Info("the addresses of one that left are free", "owner", owner, "addresses", had)
	}
	return os.Remove(file)
}
