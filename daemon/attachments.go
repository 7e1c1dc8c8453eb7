package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// goneGrace is how long a container must have been gone before its addresses
// are freed: caches of its neighbours may still send to it.
const goneGrace = 30 * time.Second

// attachment is the record of one container.
type attachment struct {
	Netns string `json:"netns"` // the path it was attached by
	// Port is the host's end of its veth pair. Its name is random, so the
	// container lives for as long as it exists, whatever became of Netns.
	// Empty: the router ended before it had attached the container.
	Port             string         `json:"port"`
	MAC              string         `json:"mac"`
	Addresses        []netip.Prefix `json:"addresses"`
	Names            hostNames      `json:"names,omitempty"`
	NoMulticastRoute bool           `json:"noMulticastRoute,omitempty"`
	// Docker is set for a container of Docker's, whose record outlives its runs.
	Docker *inDocker `json:"docker,omitempty"`
}

// attachments joins containers to the bridge, and knows which are. It is safe
// for concurrent use; requests for different containers run at once.
type attachments struct {
	addresses ranges
	names     Names
	bridge    string
	mtu       int
	log       *slog.Logger

	// Lock order: an owner's lock, then mu. mu is not held while addresses are
	// waited for or the kernel is at work.
	locks keyed

	mu   sync.Mutex
	tab  *store.Table[attachment]
	gone map[string]time.Time // owners whose port was first missed then
}

const bucketAttachments = "attachments"

func newAttachments(st *store.Store, us ranges, names Names, bridge string, mtu int, log *slog.Logger) *attachments {
	tab, err := store.OpenTable[attachment](st, bucketAttachments)
	if err != nil {
		log.Warn("some records of attached containers are lost", "error", err)
	}
	return &attachments{addresses: us, names: names, bridge: bridge, mtu: mtu, log: log, tab: tab, gone: make(map[string]time.Time)}
}

// place is where an attachment is, and whose.
type place struct {
	owner string // in the allocator
	netns string // path; empty: the container does not run
	// container of Docker's, nil for any other namespace.
	container *docker.Container
}

// placeOf returns the place of the namespace at path.
func placeOf(path string) (place, error) {
	owner, err := ownerOf(path)
	return place{owner: owner, netns: path}, err
}

// String names the place for errors.
func (p place) String() string {
	if p.container != nil {
		return "container " + p.container.Name
	}
	return p.netns
}

// ownerOf returns the name in the allocator of the container at path.
func ownerOf(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", usage(fmt.Sprintf("container %q: want the absolute path of a network namespace", path))
	}
	id, err := netdev.IdentifyNS(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("netns:%d", id.Ino), nil
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

// forget releases everything that owner has and deletes its record.
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
	defer as.locks.lock(p.owner)()
	before, known := as.get(p.owner)
	want := r.Addresses
	if known && before.Port != "" && !linkExists(before.Port) {
		if p.container == nil {
			// The number of the namespace is another's now.
			if err := as.forget(p.owner); err != nil {
				return nil, err
			}
			before, known = attachment{}, false
		} else if len(want) == 0 {
			want = exactly(before.Addresses) // those of its last run
		}
	}
	if !known {
		if err := as.put(p.owner, attachment{Netns: p.netns, Docker: newInDocker(p, r)}); err != nil {
			return nil, err
		}
	}
	var fresh []netip.Prefix
	defer func() {
		if err == nil {
			return
		}
		undo := as.addresses.take(p.owner, fresh)
		if known {
			as.names.RemoveContainer(p.owner)
			undo = errors.Join(undo, before.Names.register(as.names, p.owner), as.put(p.owner, before))
		} else {
			undo = errors.Join(undo, as.forget(p.owner))
		}
		err = errors.Join(err, undo)
	}()
	if len(want) == 0 {
		want = []api.Address{{Kind: api.FromDefault}}
	}
	got, fresh, err = as.addresses.giveAll(ctx, p.owner, want)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", p, err)
	}
	now := attachment{Addresses: before.Addresses, Names: before.Names, NoMulticastRoute: r.NoMulticastRoute, Docker: newInDocker(p, r)}
	if now.Docker != nil && before.Docker != nil {
		now.Docker.Named = before.Docker.Named
	}
	for _, q := range got {
		if !slices.Contains(now.Addresses, q) {
			now.Addresses = append(now.Addresses, q)
		}
	}
	now.Docker.name(r.Addresses)
	if fqdn != "" {
		now.Names = now.Names.with(fqdn, addrsOf(now.Addresses))
		if err = now.Names.register(as.names, p.owner); err != nil {
			return nil, err
		}
	}
	return got, as.join(p, now, got)
}

// exactly asks for those very addresses.
func exactly(ps []netip.Prefix) []api.Address {
	as := make([]api.Address, len(ps))
	for i, p := range ps {
		as[i] = api.Address{Kind: api.Exactly, Prefix: p}
	}
	return as
}

// join brings the container and its record to the state a, of whose addresses
// those of show are announced.
func (as *attachments) join(p place, a attachment, show []netip.Prefix) error {
	if err := as.plug(p.netns, a, show); err != nil {
		return err
	}
	var err error
	a.Netns = p.netns
	if a.Port, a.MAC, err = as.portOf(p.netns); err != nil {
		return err
	}
	return as.put(p.owner, a)
}

func (as *attachments) plug(netns string, a attachment, addrs []netip.Prefix) error {
	_, err := netdev.Attach(netdev.Attachment{
		NS: netns, Iface: netdev.IfaceName, Bridge: as.bridge, MTU: as.mtu, Addrs: addrs, MulticastRoute: !a.NoMulticastRoute,
	})
	return err
}

// portOf finds the host's end and the container's MAC of what weft attached.
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

// detach takes addresses from a container and returns those that it had. A
// container that is not attached has none.
func (as *attachments) detach(p place, which []api.Address) ([]netip.Prefix, error) {
	defer as.locks.lock(p.owner)()
	a, known := as.get(p.owner)
	if !known {
		return nil, nil
	}
	removed, err := as.addresses.matching(a.Addresses, which)
	if err != nil || len(removed) == 0 {
		return nil, err
	}
	if p.netns != "" {
		if _, err := netdev.Detach(p.netns, netdev.IfaceName, removed); err != nil {
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
		a := as.tab.Records[owner]
		k := api.Attachment{ID: owner, Netns: a.Netns, Interface: netdev.IfaceName, MAC: a.MAC, Addresses: slices.Clone(a.Addresses)}
		if a.Docker != nil {
			if a.Docker.Released {
				continue
			}
			k.Name = a.Docker.Name
		}
		list = append(list, k)
	}
	return list
}

func (as *attachments) owners() []string {
	as.mu.Lock()
	defer as.mu.Unlock()
	return slices.Sorted(maps.Keys(as.tab.Records))
}

// restore brings containers, records and allocators in line after a start.
// What can not be done is logged, and tried again by sweep where that helps.
func (as *attachments) restore(ctx context.Context) {
	for _, owner := range as.owners() {
		if err := as.restoreOne(ctx, owner); err != nil {
			as.log.Warn("an attached container could not be restored", "owner", owner, "error", err)
		}
	}
}

func (as *attachments) restoreOne(ctx context.Context, owner string) error {
	defer as.locks.lock(owner)()
	a, known := as.get(owner)
	if !known {
		return nil
	}
	if a.Docker != nil && (a.Docker.Released || a.Port == "") {
		return nil // until Docker tells that it runs
	}
	current, err := ownerOf(a.Netns)
	here := err == nil && (current == owner || a.Docker != nil && as.isThere(a))
	if a.Port == "" {
		// The router ended while it attached this container.
		if !here {
			return as.forget(owner)
		}
		if a.Port, a.MAC, err = as.portOf(a.Netns); err != nil {
			return as.forget(owner)
		}
		if err := as.put(owner, a); err != nil {
			return err
		}
	}
	if !linkExists(a.Port) {
		return nil // for sweep, after its grace
	}
	if here {
		// Puts the port back on a bridge that was made anew, and announces.
		if err := as.plug(a.Netns, a, a.Addresses); err != nil {
			return err
		}
	}
	return as.addresses.settle(ctx, owner, a.Addresses)
}

// sweep frees the addresses of containers that have been gone for goneGrace.
func (as *attachments) sweep(now time.Time) {
	as.bury(now)
	for _, owner := range as.owners() {
		a, known := as.get(owner)
		if !known || a.Port == "" || a.Docker != nil && a.Docker.Released || linkExists(a.Port) {
			continue
		}
		as.mu.Lock()
		since, missed := as.gone[owner]
		if !missed {
			as.gone[owner] = now
		}
		as.mu.Unlock()
		if missed && now.Sub(since) >= goneGrace {
			as.free(owner)
		}
	}
}

func (as *attachments) free(owner string) {
	defer as.locks.lock(owner)()
	a, known := as.get(owner)
	if !known || a.Port == "" || linkExists(a.Port) {
		return
	}
	drop := as.forget
	if a.Docker != nil {
		drop = as.release
	}
	if err := drop(owner); err != nil {
		as.log.Warn("the addresses of a container that is gone could not be freed", "owner", owner, "error", err)
		return
	}
	as.log.Info("a container is gone, its addresses are free", "owner", owner, "netns", a.Netns, "addresses", a.Addresses)
}

// linkExists tells whether the host has an interface. When the kernel can not
// be asked it does not say that there is none.
func linkExists(name string) bool {
	_, err := netlink.LinkByName(name)
	return !errors.As(err, new(netlink.LinkNotFoundError))
}

// keyed is a set of locks by name. Its zero value is ready for use.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int // guarded by keyed.mu
}

// lock waits for the lock of key and returns how to let it go.
func (k *keyed) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = make(map[string]*keyLock)
	}
	l := k.locks[key]
	if l == nil {
		l = new(keyLock)
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}
