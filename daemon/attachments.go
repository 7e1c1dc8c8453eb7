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
	"time"

	"github.com/moby/locker"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// goneGrace is how long a container must have been gone before its addresses
// are freed: caches of its neighbours may still send to it.
const goneGrace = 30 * time.Second

// kind has the rules that differ between containers that are named by a network
// namespace and those of a container engine. Only the engine's containers can run again.
// Those of its methods that take an owner are called with the owner's lock held.
type kind interface {
	// newRecord returns the record of a container that r attaches, without
	// addresses.
	newRecord(p place, r api.AttachRequest) attachment
	// isCurrent reports whether the namespace at a.Netns is that of owner now.
	isCurrent(owner string, a attachment) bool
	// waitsForStart reports whether a has nothing to restore until the engine reports
	// that the container runs.
	waitsForStart(a attachment) bool
	// isReleased reports whether onExit has freed the addresses of a and kept a.
	isReleased(a attachment) bool
	// nameOf returns the name of the container in the engine, "" if there is none.
	nameOf(a attachment) string
	// onRestart is called before a container is attached whose recorded port no longer
	// exists.
	onRestart(owner string) error
	// onExit frees the addresses of owner, whose port has been gone for goneGrace.
	onExit(owner string) error
}

// attachments joins the containers of one kind to the bridge, and keeps a record
// of each. It is safe for concurrent use; requests for different containers run
// at once.
type attachments struct {
	attachConfig
	kind kind

	// Lock order: engine.naming, engine.mu, an owner's lock, attachments.mu. No lock
	// but the owner's is held while the kernel or an allocator is at work.
	locks locker.Locker // by owner

	mu   sync.Mutex
	tab  *store.Table[attachment]
	gone map[string]time.Time // when the port of an owner was first missed
}

// attachConfig is what attachments work with.
type attachConfig struct {
	store     *store.Store
	addresses addresses
	names     Names
	bridge    string
	mtu       int // bytes of IP packet
	sysctls   netdev.Sysctls
	keeper    *keeper.Keeper
	guard     *spoofGuard
	log       *slog.Logger
}

func newAttachments(c attachConfig, bucket string, k kind) *attachments {
	tab, err := store.OpenTable[attachment](c.store, bucket)
	if err != nil {
		c.log.Warn("some records of attached containers are lost", "err", err)
	}
	return &attachments{attachConfig: c, kind: k, tab: tab, gone: make(map[string]time.Time)}
}

// lock locks the record of an owner.
func (as *attachments) lock(owner string) (unlock func()) {
	as.locks.Lock(owner)
	return func() { _ = as.locks.Unlock(owner) } // it is locked
}

func (as *attachments) get(owner string) (attachment, bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a, ok := as.tab.Records[owner]
	a.Addresses = slices.Clone(a.Addresses)
	return a, ok
}

func (as *attachments) put(owner string, a attachment) error {
	as.mu.Lock()
	defer as.mu.Unlock()
	delete(as.gone, owner)
	return as.tab.Put(owner, a)
}

// forget releases all addresses and names of owner and deletes its record.
func (as *attachments) forget(owner string) error {
	as.names.RemoveContainer(owner)
	if err := as.addresses.take(owner, as.addresses.owned(owner)); err != nil {
		return err
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	delete(as.gone, owner)
	return as.tab.Delete(owner)
}

// attach gives the container at p the addresses that r names and returns them,
// those that it had already among them.
func (as *attachments) attach(ctx context.Context, p place, r api.AttachRequest) (got []netip.Prefix, err error) {
	fqdn, err := qualify(as.names, r.Hostname)
	if err != nil {
		return nil, err
	}
	defer as.lock(p.owner)()
	before, known := as.get(p.owner)
	want := r.Addresses
	if known && before.Port != "" && !before.isPlugged() {
		if err := as.kind.onRestart(p.owner); err != nil {
			return nil, err
		}
		if before, known = as.get(p.owner); known && len(want) == 0 {
			want = exactly(before.Addresses) // those of its last run
		}
	}
	now := as.kind.newRecord(p, r)
	if !known {
		if err := as.put(p.owner, now); err != nil {
			return nil, err
		}
	}
	var fresh []netip.Prefix
	defer func() {
		if err != nil {
			err = errors.Join(err, as.undoAttach(p.owner, before, known, fresh))
		}
	}()
	if len(want) == 0 {
		want = []api.Address{{Kind: api.FromDefault}}
	}
	got, fresh, err = as.addresses.giveAll(ctx, p.owner, want)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", p, err)
	}
	now.Addresses, now.Requested, now.Names = before.Addresses, before.Requested, before.Names
	now = now.withAddresses(got, r.Addresses)
	if fqdn != "" {
		now.Names = now.Names.with(fqdn, addrsOf(now.Addresses))
		if err = now.Names.register(as.names, p.owner, now.Addresses); err != nil {
			return nil, err
		}
	}
	return got, as.join(p, now, got)
}

// undoAttach makes everything as it was before an attach that failed: it takes the
// fresh addresses, and brings the record and the names back, if there was one.
func (as *attachments) undoAttach(owner string, before attachment, known bool, fresh []netip.Prefix) error {
	err := as.addresses.take(owner, fresh)
	if !known {
		return errors.Join(err, as.forget(owner))
	}
	as.names.RemoveContainer(owner)
	return errors.Join(err, before.Names.register(as.names, owner, before.Addresses), as.put(owner, before))
}

// exactly asks for those very addresses.
func exactly(ps []netip.Prefix) []api.Address {
	as := make([]api.Address, len(ps))
	for i, p := range ps {
		as[i] = api.Address{Kind: api.Exactly, Prefix: p}
	}
	return as
}

// join brings the container and its record to the state a, and announces the
// addresses of show.
func (as *attachments) join(p place, a attachment, show []netip.Prefix) error {
	if err := as.plug(p.owner, p.netns, a, show); err != nil {
		return err
	}
	var err error
	a.Netns = p.netns
	if a.Port, a.MAC, err = as.portOf(p.netns); err != nil {
		return err
	}
	return as.put(p.owner, a)
}

func (as *attachments) plug(owner, netns string, a attachment, addrs []netip.Prefix) error {
	_, err := netdev.Attach(netdev.Attachment{
		NS: netns, Iface: netdev.IfaceName, Bridge: as.bridge, MTU: as.mtu, Addrs: addrs, MulticastRoute: !a.NoMulticastRoute,
		Sysctls: as.sysctls, Owner: owner, Name: as.kind.nameOf(a), AllowSpoof: a.AllowSpoof, Guard: as.guard.protect,
	})
	return err
}

// portOf finds the host's end and the container's MAC address of the interface
// that weft attached.
func (as *attachments) portOf(path string) (port, mac string, err error) {
	ifaces, err := netdev.Attached(path, as.bridge)
	if err != nil {
		return "", "", err
	}
	for _, i := range ifaces {
		if i.Name == netdev.IfaceName {
			return i.HostName, i.MAC.String(), nil
		}
	}
	return "", "", fmt.Errorf("attach %s: interface %s is gone again", path, netdev.IfaceName)
}

// detach takes addresses from a container, all if which is empty, and returns them. If the
// container lacks one, it takes none.
func (as *attachments) detach(p place, which []api.Address) ([]netip.Prefix, error) {
	defer as.lock(p.owner)()
	a, known := as.get(p.owner)
	if !known {
		return nil, fmt.Errorf("%s is not attached; 'weft ps' lists the containers that are", p)
	}
	removed, err := as.addresses.matching(a.Addresses, which)
	if err != nil {
		return nil, fmt.Errorf("detach %s: %w", p, err)
	}
	if len(removed) == 0 {
		return nil, nil
	}
	if p.netns != "" {
		if _, err := netdev.Detach(p.netns, netdev.IfaceName, removed); err != nil {
			return nil, err
		}
		if err := as.guard.protectNamed(a.Port); err != nil {
			return nil, err
		}
	}
	a.Addresses = slices.DeleteFunc(a.Addresses, func(p netip.Prefix) bool { return slices.Contains(removed, p) })
	if len(a.Addresses) == 0 {
		return removed, as.forget(p.owner)
	}
	if _, err := as.names.Remove(p.owner, "", addrsOf(removed)...); err != nil {
		return nil, err
	}
	a.Names = a.Names.without("", addrsOf(removed))
	if err := as.addresses.take(p.owner, removed); err != nil {
		return nil, err
	}
	return removed, as.put(p.owner, a)
}

// list returns the containers, sorted by owner.
func (as *attachments) list() []api.Attachment {
	as.mu.Lock()
	defer as.mu.Unlock()
	var list []api.Attachment
	for _, owner := range slices.Sorted(maps.Keys(as.tab.Records)) {
		if a := as.tab.Records[owner]; !as.kind.isReleased(a) {
			list = append(list, api.Attachment{
				ID: owner, Name: as.kind.nameOf(a), Netns: a.Netns, Interface: netdev.IfaceName, Port: a.Port, MAC: a.MAC, Addresses: slices.Clone(a.Addresses),
			})
		}
	}
	return list
}

func (as *attachments) owners() []string {
	as.mu.Lock()
	defer as.mu.Unlock()
	return slices.Sorted(maps.Keys(as.tab.Records))
}

// linkExists reports whether the host has an interface, and true if the kernel
// cannot be asked.
func linkExists(name string) bool {
	_, err := netlink.LinkByName(name)
	return !errors.As(err, new(netlink.LinkNotFoundError))
}
