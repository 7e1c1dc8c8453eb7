package plugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/api"
)

// lease is an address that the engine asked for.
type lease struct {
	owner string // in the allocator
	since time.Time
}

// Owners of leases in the allocator. The first part of an owner's name says what kind of
// lease it is; the rest is random or an endpoint.
const (
	leaseOwner    = "docker:lease:"
	endpointOwner = "docker:endpoint:" // an address that the engine's own driver chose
	moreOwner     = "docker:more:"     // an address that the engine does not know
)

func newLeaseOwner() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return leaseOwner + hex.EncodeToString(b[:])
}

func foreignOwner(endpointID string) string { return endpointOwner + endpointID }

func fnv32(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32()
}

// findLeases finds the leases of earlier runs.
func (d *Driver) findLeases() {
	now := time.Now()
	for owner, ps := range d.addresses.Owners() {
		if !strings.HasPrefix(owner, leaseOwner) && !strings.HasPrefix(owner, endpointOwner) && !strings.HasPrefix(owner, moreOwner) {
			continue
		}
		for _, p := range ps {
			d.leases[p.Addr()] = lease{owner, now}
		}
	}
}

// drop releases a lease. The lock is held: releasing does not wait.
func (d *Driver) drop(a netip.Addr, l lease) error {
	if err := d.addresses.Release(l.owner, a); err != nil {
		return err
	}
	delete(d.leases, a)
	delete(d.missed, l.owner)
	return nil
}

// poolGuard detects an engine that requests a pool again and again. The engine does so,
// without end, if the pool that it got overlaps a route of the host.
type poolGuard struct {
	since time.Time
	count int
}

const (
	guardTime  = 2 * time.Second
	guardCount = 50
)

// full reports whether there were more requests than users make.
func (g *poolGuard) full(now time.Time) bool {
	if now.Sub(g.since) > guardTime {
		g.since, g.count = now, 0
	}
	g.count++
	return g.count > guardCount
}

func (d *Driver) requestPool(_ context.Context, q poolRequest) (r poolReply, err error) {
	subnet := q.Pool
	if subnet == "" {
		p, ok := d.addresses.Default(q.V6)
		if !ok {
			return r, errors.New("this router was launched without an address range of this family: choose a subnet with --subnet, or launch with --ipalloc-range or --ipalloc-range6")
		}
		d.mu.Lock()
		full := d.pools.full(time.Now())
		d.mu.Unlock()
		if full {
			return r, fmt.Errorf("docker refuses %s because this host has a route to it (weft expose adds one): name it explicitly with --subnet %s", p, p)
		}
		subnet = p.String()
	}
	p, err := newPool(subnet, q.SubPool)
	if err == nil && q.Pool != "" && q.Options[OutsideOption] != "true" {
		err = d.addresses.Check(p.within)
	}
	if err != nil {
		return r, err
	}
	none := "0.0.0.0/0"
	if p.subnet.Addr().Is6() {
		none = "::/0"
	}
	return poolReply{PoolID: p.String(), Pool: p.subnet.String(), Data: map[string]string{gatewayData: none}}, nil
}

func (d *Driver) releasePool(context.Context, poolIDRequest) (empty, error) { return empty{}, nil }

func (d *Driver) requestAddress(ctx context.Context, q addressRequest) (r addressReply, err error) {
	p, err := parsePool(q.PoolID)
	if err != nil {
		return r, err
	}
	var got netip.Addr
	if q.Address == "" {
		got, err = d.lease(ctx, p)
	} else {
		got, err = d.leaseOne(ctx, p, q.Address, q.Options[requestType] == gatewayData)
	}
	if err != nil {
		return r, err
	}
	return addressReply{Address: p.full(got).String(), Data: map[string]string{}}, nil
}

// lease leases any address of a pool.
func (d *Driver) lease(ctx context.Context, p pool) (netip.Addr, error) {
	if p.within.Bits() == p.within.Addr().BitLen() {
		return d.leaseOne(ctx, p, p.within.Addr().String(), false)
	}
	owner := newLeaseOwner()
	got, err := d.addresses.Allocate(ctx, owner, p.within)
	if err != nil {
		return netip.Addr{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases[got.Addr()] = lease{owner, time.Now()}
	return got.Addr(), nil
}

// leaseOne leases a particular address. A gateway may belong to another host: all hosts
// name the same one, and somebody answers there.
func (d *Driver) leaseOne(ctx context.Context, p pool, address string, gateway bool) (netip.Addr, error) {
	a, ok := parseHost(address)
	if !ok || !p.subnet.Contains(a) {
		return netip.Addr{}, fmt.Errorf("address %.60s is not in the subnet %s", address, p.subnet)
	}
	if err := d.clear(a); err != nil {
		if gateway {
			return a, nil
		}
		return netip.Addr{}, err
	}
	owner := newLeaseOwner()
	if err := d.addresses.Claim(ctx, owner, p.full(a)); err != nil {
		if gateway {
			d.log.Info("the gateway of a network is in use already, which is allowed", "gateway", a, "reason", err)
			return a, nil
		}
		return netip.Addr{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases[a] = lease{owner, time.Now()}
	return a, nil
}

// staleAfter is the age from which a lease without a living container gives way to another
// request for its address: the engine was killed before it released the address.
const staleAfter = 5 * time.Second

// clear ensures that no lease of this host has an address.
func (d *Driver) clear(a netip.Addr) error {
	d.mu.Lock()
	l, leased := d.leases[a]
	id := d.endpointWith(a)
	held := d.isHeld(a)
	d.mu.Unlock()
	if !leased {
		return nil
	}
	if held || time.Since(l.since) < staleAfter || id != "" && d.InContainer(id) {
		user := "another container of this host"
		if held {
			user = "a network of this host"
		}
		return fmt.Errorf("address %s is in use by %s", a, user)
	}
	if id != "" {
		if err := d.endEndpoint(id); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if now, leased := d.leases[a]; !leased || now != l {
		return nil
	}
	return d.drop(a, l)
}

// endpointWith returns the endpoint that has an address, "" if none. The lock
// is held.
func (d *Driver) endpointWith(a netip.Addr) string {
	for id, e := range d.endpoints.Records {
		if slices.ContainsFunc(e.all(), func(p netip.Prefix) bool { return p.Addr() == a }) {
			return id
		}
	}
	return ""
}

// isHeld reports whether an address belongs to a network. The lock is held.
func (d *Driver) isHeld(a netip.Addr) bool {
	for _, n := range d.networks.Records {
		if slices.Contains(n.Held, a) {
			return true
		}
	}
	return false
}

func (d *Driver) releaseAddress(_ context.Context, q addressRequest) (empty, error) {
	a, ok := parseHost(q.Address)
	if !ok {
		return empty{}, nil // it was never leased
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l, leased := d.leases[a]
	if !leased || !strings.HasPrefix(l.owner, leaseOwner) {
		return empty{}, nil
	}
	return empty{}, d.drop(a, l)
}

// claimForeign claims the addresses of an endpoint that were not leased here,
// but chosen by the engine's own driver.
func (d *Driver) claimForeign(ctx context.Context, endpointID string, ps []netip.Prefix) error {
	for _, p := range ps {
		d.mu.Lock()
		_, leased := d.leases[p.Addr()]
		d.mu.Unlock()
		if leased || d.addresses.Check(p.Masked()) != nil {
			continue
		}
		if err := d.addresses.Claim(ctx, foreignOwner(endpointID), p); err != nil {
			return fmt.Errorf("docker chose the address: create the network with --ipam-driver %s, or give each host a range with --ip-range: %w", Name, err)
		}
		d.mu.Lock()
		d.leases[p.Addr()] = lease{foreignOwner(endpointID), time.Now()}
		d.mu.Unlock()
	}
	return nil
}

// leaseMore leases the additional addresses of an endpoint; on error it gets none of them.
// Each has an owner of its own, because an owner has one address of a subnet.
func (d *Driver) leaseMore(ctx context.Context, endpointID, words string) (got []netip.Prefix, err error) {
	defer func() {
		if err == nil {
			return
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range got {
			err = errors.Join(err, d.drop(p.Addr(), d.leases[p.Addr()]))
		}
	}()
	for i, word := range strings.Fields(words) {
		a, err := api.ParseAddress(word)
		if err != nil {
			return got, fmt.Errorf("option %s: %w", AddressesOption, err)
		}
		owner := fmt.Sprintf("%s%s:%d", moreOwner, endpointID, i)
		p := a.Prefix
		switch a.Kind {
		case api.Exactly:
			err = d.clear(p.Addr())
			if err == nil && d.addresses.Check(p.Masked()) == nil {
				err = d.addresses.Claim(ctx, owner, p)
			}
		case api.FromDefault:
			p, _ = d.addresses.Default(false)
			fallthrough
		default:
			p, err = d.addresses.Allocate(ctx, owner, p)
		}
		if err != nil {
			return got, err
		}
		d.mu.Lock()
		d.leases[p.Addr()] = lease{owner, time.Now()}
		d.mu.Unlock()
		got = append(got, p)
	}
	return got, nil
}

const (
	// goneGrace is how long an endpoint must have been outside any container before its
	// addresses are freed: neighbours may still send to it. The engine takes less time
	// to move it in after Join.
	goneGrace = 30 * time.Second
	// idleGrace is how long a lease may be without an endpoint; the engine creates the
	// endpoint milliseconds after the lease.
	idleGrace = 2 * time.Minute
)

// Sweep frees the addresses of containers that disappeared without a request from the
// engine. Call it every few seconds.
func (d *Driver) Sweep(now time.Time) {
	d.mu.Lock()
	ids := make([]string, 0, len(d.endpoints.Records))
	for id := range d.endpoints.Records {
		ids = append(ids, id)
	}
	d.mu.Unlock()
	for _, id := range ids {
		if d.overdue(id, d.InContainer(id), now, goneGrace) {
			d.log.Info("a container disappeared and docker did not report it; its addresses are free", "endpoint", id)
			if err := d.endEndpoint(id); err != nil {
				d.log.Warn("an endpoint could not be dropped", "endpoint", id, "err", err)
			}
		}
	}
	d.sweepLeases(now)
}

// overdue records whether something exists, and reports whether it has been missing for
// longer than grace.
func (d *Driver) overdue(key string, there bool, now time.Time, grace time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if there {
		delete(d.missed, key)
		return false
	}
	since, missed := d.missed[key]
	if !missed {
		d.missed[key] = now
		return false
	}
	return now.Sub(since) >= grace
}

// sweepLeases frees leases that belong to no endpoint and no network. For leases of
// endpoints that Sweep dropped, the grace of the endpoint counts.
func (d *Driver) sweepLeases(now time.Time) {
	due := d.dueLeases(now)
	if len(due) == 0 {
		return
	}
	alive, err := d.links.InUse() // the records may be older than the containers
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	used := d.usedAddrs()
	for a, l := range due {
		if d.leases[a] != l || used[a] || alive[a] {
			continue
		}
		d.log.Info("an address that docker requested is not used; it is free", "addr", a)
		if err := d.drop(a, l); err != nil {
			d.log.Warn("an address could not be freed", "addr", a, "err", err)
		}
	}
}

// dueLeases returns the leases that nothing has used for long enough.
func (d *Driver) dueLeases(now time.Time) map[netip.Addr]lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	due := make(map[netip.Addr]lease)
	used := d.usedAddrs()
	for a, l := range d.leases {
		since, missed := d.missed[l.owner]
		switch {
		case used[a]:
			delete(d.missed, l.owner)
		case !missed:
			d.missed[l.owner] = now
		case now.Sub(since) >= idleGrace:
			due[a] = l
		}
	}
	return due
}

// usedAddrs returns the addresses of endpoints and networks. The lock is held.
func (d *Driver) usedAddrs() map[netip.Addr]bool {
	used := make(map[netip.Addr]bool)
	for _, e := range d.endpoints.Records {
		for _, p := range e.all() {
			used[p.Addr()] = true
		}
	}
	for _, n := range d.networks.Records {
		for _, a := range n.Held {
			used[a] = true
		}
	}
	return used
}
