package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// Addresses allocates and releases addresses, which it keeps on disk.
type Addresses interface {
	// Default returns the default subnet; ok is false if there is none of the family.
	Default(v6 bool) (subnet netip.Prefix, ok bool)
	// Check returns nil if every address of subnet may be allocated.
	Check(subnet netip.Prefix) error
	// Allocate gives owner any free address of subnet.
	Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error)
	// Claim gives owner that particular address, or fails if another has it.
	Claim(ctx context.Context, owner string, addr netip.Prefix) error
	// Release takes an address from owner.
	Release(owner string, addr netip.Addr) error
	// Owners returns all who have addresses on this host, and which.
	Owners() map[string][]netip.Prefix
}

// Links is the kernel's part.
type Links interface {
	// Make makes a veth pair: port on weft's bridge, and inside for the engine to
	// move into a container, with that MAC address and an MTU in bytes, 0 for
	// the default. It announces the addresses to the switch, and writes them down in the
	// kernel with their owner. A port of that name is replaced.
	Make(port, inside string, mac net.HardwareAddr, mtu int, user netdev.PortUser) error
	// Delete removes a port; one that is not there is no error.
	Delete(port string) error
	// AddAddresses adds addresses to the interface with that MAC address in the
	// namespace at path, and announces them. It waits for the engine to have moved
	// it there, until ctx ends.
	AddAddresses(ctx context.Context, path string, mac net.HardwareAddr, addrs []netip.Prefix) error
	// InUse returns the addresses of all ports that lead to containers, by the kernel.
	InUse() (map[netip.Addr]bool, error)
	// InContainer reports whether there is a port whose other end is in a container; inside
	// is the name of that end on the host. The kernel removes a port together with its
	// container. An engine that removes a container while the driver does not answer
	// moves the end back to the host.
	InContainer(port, inside string) bool
}

// network is the record of one network.
type network struct {
	Multicast bool `json:"multicast,omitempty"`
	MTU       int  `json:"mtu,omitempty"` // 0 for the default
	// AllowSpoof lets all containers of the network send with other addresses than theirs.
	AllowSpoof bool `json:"allowSpoof,omitempty"`
	// Gateway and Gateway6 are the gateways that the user named.
	Gateway  netip.Addr `json:"gateway,omitzero"`
	Gateway6 netip.Addr `json:"gateway6,omitzero"`
	// Held are addresses that belong to the network, not to a container.
	Held []netip.Addr `json:"held,omitempty"`
}

// endpoint is the record of one container on a network.
type endpoint struct {
	Network   string         `json:"network"`
	MAC       string         `json:"mac"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// More are addresses that the engine does not know.
	More []netip.Prefix `json:"more,omitempty"`
	// Hosts is the value of HostsOption.
	Hosts string `json:"hosts,omitempty"`
	// AllowSpoof lets the container send with other addresses than its own.
	AllowSpoof bool `json:"allowSpoof,omitempty"`
}

// Config configures a Driver.
type Config struct {
	Addresses Addresses
	Links     Links
	// Hosts maps the hostname of a container to its addresses on the switch, in its
	// /etc/hosts.
	Hosts func(container, hostname string, own []netip.Addr) error
	Store *store.Store
	Log   *slog.Logger
}

// Driver is the network and address driver. Make it with New. It is safe for
// concurrent use.
type Driver struct {
	addresses Addresses
	links     Links
	hosts     func(container, hostname string, own []netip.Addr) error
	log       *slog.Logger

	// working counts goroutines that requests started; they end with alive.
	working sync.WaitGroup
	alive   context.Context
	end     context.CancelFunc

	// mu is not held while addresses are waited for or the kernel is at work.
	mu        sync.Mutex
	networks  *store.Table[network]
	endpoints *store.Table[endpoint]
	leases    map[netip.Addr]lease
	missed    map[string]time.Time     // since when Sweep has missed a part of an endpoint, or an owner of a lease
	leaving   map[string]chan struct{} // endpoints whose ports are being deleted; closed then
	earlier   []string                 // networks of earlier runs, until the engine has said which it still has
	pools     poolGuard
	closed    bool // no goroutine may be started for a request
}

const (
	bucketNetworks  = "docker-networks"
	bucketEndpoints = "docker-endpoints"
)

// New returns a Driver with the state from disk.
func New(c Config) *Driver {
	d := &Driver{addresses: c.Addresses, links: c.Links, hosts: c.Hosts, log: c.Log, leases: make(map[netip.Addr]lease), missed: make(map[string]time.Time), leaving: make(map[string]chan struct{})}
	d.alive, d.end = context.WithCancel(context.Background())
	var err, err2 error
	d.networks, err = store.OpenTable[network](c.Store, bucketNetworks)
	d.endpoints, err2 = store.OpenTable[endpoint](c.Store, bucketEndpoints)
	if err := errors.Join(err, err2); err != nil {
		c.Log.Warn("some records of docker's networks are lost", "err", err)
	}
	d.earlier = slices.Collect(maps.Keys(d.networks.Records))
	d.findLeases()
	return d
}

// Close ends the Driver's background work. Requests that arrive later do all of their work
// before they are answered.
func (d *Driver) Close() {
	d.end()
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.working.Wait()
}

// spawn runs f in the background of the request that it belongs to.
func (d *Driver) spawn(f func()) {
	d.mu.Lock()
	if !d.closed {
		defer d.mu.Unlock()
		d.working.Go(f)
		return
	}
	d.mu.Unlock()
	f()
}

// userOptions are the options of a network from the user's --opt.
func userOptions(all map[string]any) map[string]string {
	generic, _ := all[genericOptions].(map[string]any)
	given := make(map[string]string)
	for k, v := range generic {
		if s, ok := v.(string); ok {
			given[k] = s
		}
	}
	return given
}

// parseFlag parses the value of an option that is on or off. Without a value it is on.
func parseFlag(key, value string) (on bool, err error) {
	if value == "" {
		return true, nil
	}
	if on, err = strconv.ParseBool(value); err != nil {
		return false, fmt.Errorf("option %s=%.40q: want true or false", key, value)
	}
	return on, nil
}

func newNetwork(q createNetworkRequest, check func(netip.Prefix) error) (n network, err error) {
	for key, value := range userOptions(q.Options) {
		switch key {
		case MulticastOption, weaveMulticast:
			if n.Multicast, err = parseFlag(key, value); err != nil {
				return n, err
			}
		case AllowSpoofOption:
			if n.AllowSpoof, err = parseFlag(key, value); err != nil {
				return n, err
			}
		case mtuOption:
			if n.MTU, err = strconv.Atoi(value); err != nil || n.MTU < 576 || n.MTU > 65000 {
				return n, fmt.Errorf("option %s=%.40q: want 576 to 65000 bytes", key, value)
			}
		default:
			if strings.HasPrefix(key, "weft.") {
				return n, fmt.Errorf("option %.60q: unknown; want %s or %s", key, MulticastOption, AllowSpoofOption)
			}
		}
	}
	internal, _ := q.Options[internalOption].(bool)
	for _, data := range slices.Concat(q.IPv4Data, q.IPv6Data) {
		ours := data.AddressSpace == localSpace || data.AddressSpace == globalSpace
		if !ours && data.Pool != "" && data.Pool != "0.0.0.0/0" {
			// The engine's own driver counts from the beginning on every host.
			subnet, err := netip.ParsePrefix(data.Pool)
			if err == nil {
				err = check(subnet)
			}
			if err != nil {
				return n, fmt.Errorf("docker allocates the addresses of %.60s, and other hosts may allocate the same ones: add --ipam-driver %s", data.Pool, Name)
			}
			continue
		}
		for _, a := range data.AuxAddresses {
			if held, ok := parseHost(a); ok {
				n.Held = append(n.Held, held)
			}
		}
		gateway, ok := parseHost(data.Gateway)
		if !ok || gateway.IsUnspecified() {
			continue
		}
		n.Held = append(n.Held, gateway)
		switch {
		case internal:
		case gateway.Is4() && !n.Gateway.IsValid():
			n.Gateway = gateway
		case gateway.Is6() && !n.Gateway6.IsValid():
			n.Gateway6 = gateway
		}
	}
	return n, nil
}

// parseHost reads an address with or without the length of its subnet.
func parseHost(s string) (netip.Addr, bool) {
	s, _, _ = strings.Cut(s, "/")
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil
}

func (d *Driver) createNetwork(_ context.Context, q createNetworkRequest) (empty, error) {
	if err := checkID("network", q.NetworkID); err != nil {
		return empty{}, err
	}
	n, err := newNetwork(q, d.addresses.Check)
	if err != nil {
		return empty{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return empty{}, d.networks.Put(q.NetworkID, n)
}

func (d *Driver) deleteNetwork(_ context.Context, q networkRequest) (empty, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return empty{}, d.networks.Delete(q.NetworkID)
}

// checkID checks an ID of the engine, which becomes part of an interface name.
func checkID(what, id string) error {
	if len(id) < 16 || len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }) {
		return fmt.Errorf("%s %.40q: not an id of docker", what, id)
	}
	return nil
}

// Port returns the name of the port of an endpoint.
func Port(endpointID string) string { return netdev.HostPrefix + endpointID[:8] }

// inside is the name of the other end on the host.
func inside(endpointID string) string { return Port(endpointID) + "c" }

func (d *Driver) createEndpoint(ctx context.Context, q createEndpointRequest) (r createEndpointReply, err error) {
	if err := checkID("endpoint", q.EndpointID); err != nil {
		return r, err
	}
	var given endpointInterface
	if q.Interface != nil {
		given = *q.Interface
	}
	e := endpoint{Network: q.NetworkID, MAC: given.MacAddress}
	if value, ok := q.Options[AllowSpoofOption].(string); ok {
		if e.AllowSpoof, err = parseFlag(AllowSpoofOption, value); err != nil {
			return r, fmt.Errorf("endpoint %.12s: %w", q.EndpointID, err)
		}
	}
	for _, s := range []string{given.Address, given.AddressIPv6} {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return r, fmt.Errorf("endpoint %.12s: address %.60q: %w", q.EndpointID, s, err)
		}
		e.Addresses = append(e.Addresses, p)
	}
	if given.MacAddress == "" {
		e.MAC = macOf(q.EndpointID, e.Addresses).String()
		r.Interface.MacAddress = e.MAC
	} else if _, err := net.ParseMAC(given.MacAddress); err != nil {
		return r, fmt.Errorf("endpoint %.12s: %w", q.EndpointID, err)
	}
	if err := d.claimForeign(ctx, q.EndpointID, e.Addresses); err != nil {
		return r, err
	}
	d.mu.Lock()
	before, repeated := d.endpoints.Records[q.EndpointID]
	d.mu.Unlock()
	if more, ok := q.Options[AddressesOption].(string); repeated {
		e.More = before.More
	} else if ok {
		if e.More, err = d.leaseMore(ctx, q.EndpointID, more); err != nil {
			return r, err
		}
	}
	if named, ok := q.Options[HostsOption].(string); ok && len(named) <= maxHosts {
		e.Hosts = named
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.missed, q.EndpointID)
	return r, d.endpoints.Put(q.EndpointID, e)
}

// maxHosts is the most bytes of a value of HostsOption: an ID, a blank and a hostname.
const maxHosts = 128 + 1 + 253

// macOf derives a MAC address from the first IP address, so that the ARP caches of
// neighbours are right even if another container had that address before.
//
//	02:42:a:b:c:d of an IPv4 address a.b.c.d
//	02:43:...     of a hash of anything else
func macOf(endpointID string, addrs []netip.Prefix) net.HardwareAddr {
	seed := endpointID
	if len(addrs) > 0 {
		if a := addrs[0].Addr(); a.Is4() {
			b := a.As4()
			return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
		}
		seed = addrs[0].Addr().String()
	}
	sum := fnv32(seed)
	return net.HardwareAddr{0x02, 0x43, byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

func (d *Driver) endpointInfo(context.Context, endpointRequest) (infoReply, error) {
	return infoReply{Value: map[string]string{}}, nil
}

func (d *Driver) join(ctx context.Context, q joinRequest) (r joinReply, err error) {
	if err := d.left(ctx, q.EndpointID); err != nil {
		return r, err
	}
	d.mu.Lock()
	e, known := d.endpoints.Records[q.EndpointID]
	n := d.networks.Records[q.NetworkID]
	d.mu.Unlock()
	if !known {
		return r, fmt.Errorf("endpoint %.12s is not known here, or its start took too long: start the container again", q.EndpointID)
	}
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return r, fmt.Errorf("endpoint %.12s: %w", q.EndpointID, err)
	}
	user := netdev.PortUser{Owner: foreignOwner(q.EndpointID), Addrs: e.all(), AllowSpoof: n.AllowSpoof || e.AllowSpoof}
	if err := d.links.Make(Port(q.EndpointID), inside(q.EndpointID), mac, n.MTU, user); err != nil {
		return r, err
	}
	if len(e.More) > 0 || e.Hosts != "" {
		d.spawn(func() { d.extend(q.EndpointID, q.SandboxKey, mac, e, timeout) })
	}
	r.InterfaceName = interfaceName{SrcName: inside(q.EndpointID), DstPrefix: netdev.IfaceName}
	if n.Gateway.IsValid() {
		r.Gateway = n.Gateway.String()
	}
	if n.Gateway6.IsValid() {
		r.GatewayIPv6 = n.Gateway6.String()
	}
	if n.Multicast {
		r.StaticRoutes = []staticRoute{{Destination: "224.0.0.0/4", RouteType: connected}}
	}
	return r, nil
}

// extend adds the additional addresses to an endpoint's interface as soon as the engine has
// moved it into the container, and edits its /etc/hosts, which the engine has written then.
// The runtime still has most of its work to do before the process starts.
func (d *Driver) extend(id, path string, mac net.HardwareAddr, e endpoint, wait time.Duration) {
	ctx, cancel := context.WithTimeout(d.alive, wait)
	defer cancel()
	err := d.links.AddAddresses(ctx, path, mac, e.More)
	if err == nil && e.Hosts != "" {
		container, hostname, _ := strings.Cut(e.Hosts, " ")
		if err = checkID("container", container); err == nil {
			err = d.hosts(container, hostname, e.hostAddrs())
		}
	}
	if err != nil && d.alive.Err() == nil && d.Has(id) {
		d.log.Warn("could not add addresses to a container or its hosts file", "endpoint", id, "addresses", e.More, "err", err)
	}
}

// Restore does the same for an endpoint of the container whose namespace is at path: the
// router may have ended before it could.
func (d *Driver) Restore(id, path string) {
	d.mu.Lock()
	e := d.endpoints.Records[id]
	d.mu.Unlock()
	if mac, err := net.ParseMAC(e.MAC); err == nil && (len(e.More) > 0 || e.Hosts != "") {
		d.extend(id, path, mac, e, time.Second)
	}
}

// hostAddrs returns the addresses that the engine knows.
func (e endpoint) hostAddrs() (own []netip.Addr) {
	for _, p := range e.Addresses {
		own = append(own, p.Addr())
	}
	return own
}

// all is every address of an endpoint.
func (e endpoint) all() []netip.Prefix { return slices.Concat(e.Addresses, e.More) }

// leave starts to delete the port and does not wait for it: the kernel takes tens of
// milliseconds, during which the engine can continue.
func (d *Driver) leave(_ context.Context, q endpointRequest) (empty, error) {
	if checkID("endpoint", q.EndpointID) != nil {
		return empty{}, nil // it never joined
	}
	d.mu.Lock()
	leaves := d.leaving[q.EndpointID] != nil
	gone := make(chan struct{})
	if !leaves {
		d.leaving[q.EndpointID] = gone
	}
	d.mu.Unlock()
	if leaves {
		return empty{}, nil
	}
	d.spawn(func() {
		if err := d.links.Delete(Port(q.EndpointID)); err != nil {
			d.log.Warn("could not delete the port of a disconnected container", "endpoint", q.EndpointID, "err", err)
		}
		d.mu.Lock()
		delete(d.leaving, q.EndpointID)
		d.mu.Unlock()
		close(gone)
	})
	return empty{}, nil
}

// left waits until the port of an endpoint is deleted.
func (d *Driver) left(ctx context.Context, id string) error {
	d.mu.Lock()
	gone := d.leaving[id]
	d.mu.Unlock()
	if gone == nil {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("endpoint %.12s: wait until it is disconnected: %w", id, ctx.Err())
	}
}

func (d *Driver) deleteEndpoint(ctx context.Context, q endpointRequest) (empty, error) {
	if _, err := d.leave(ctx, q); err != nil {
		return empty{}, err
	}
	return empty{}, d.dropEndpoint(q.EndpointID, false)
}

// dropEndpoint forgets an endpoint and releases what was claimed for it. The engine
// releases its leases by itself; all releases them too.
func (d *Driver) dropEndpoint(id string, all bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.missed, id)
	e := d.endpoints.Records[id]
	if err := d.endpoints.Delete(id); err != nil {
		return err
	}
	for _, p := range e.all() {
		if l, ok := d.leases[p.Addr()]; ok && (all || !strings.HasPrefix(l.owner, leaseOwner)) {
			if err := d.drop(p.Addr(), l); err != nil {
				return err
			}
		}
	}
	return nil
}

// endEndpoint forgets an endpoint that the engine no longer mentions, with its port and all
// of its addresses.
func (d *Driver) endEndpoint(id string) error {
	return errors.Join(d.links.Delete(Port(id)), d.dropEndpoint(id, true))
}

// Endpoint is a container on a weft network.
type Endpoint struct {
	ID, Network string
	MAC         string
	Addresses   []netip.Prefix
}

// Endpoints lists the living endpoints, sorted by ID.
func (d *Driver) Endpoints() []Endpoint {
	d.mu.Lock()
	var list []Endpoint
	for id, e := range d.endpoints.Records {
		list = append(list, Endpoint{ID: id, Network: e.Network, MAC: e.MAC, Addresses: e.all()})
	}
	d.mu.Unlock()
	list = slices.DeleteFunc(list, func(e Endpoint) bool { return !d.InContainer(e.ID) })
	slices.SortFunc(list, func(a, b Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// InContainer reports whether an endpoint is in a container.
func (d *Driver) InContainer(id string) bool { return d.links.InContainer(Port(id), inside(id)) }

// Has reports whether weft has the endpoint.
func (d *Driver) Has(endpointID string) bool {
	_, ours := d.AddressesOf(endpointID)
	return ours
}

// AddressesOf returns all addresses of an endpoint, including those that the engine does not
// know, and whether weft has the endpoint.
func (d *Driver) AddressesOf(endpointID string) (addrs []netip.Prefix, ours bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ours := d.endpoints.Records[endpointID]
	return e.all(), ours
}

// KeepNetworks forgets networks of earlier runs that the engine does not have: it removed
// them while no router answered. Sweep frees their addresses.
func (d *Driver) KeepNetworks(exist []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, id := range d.earlier {
		if !slices.Contains(exist, id) {
			errs = append(errs, d.forgetNetwork(id))
		}
	}
	d.earlier = nil
	return errors.Join(errs...)
}

// forgetNetwork deletes a record and frees its addresses that nobody else holds. The lock is
// held.
func (d *Driver) forgetNetwork(id string) error {
	held := d.networks.Records[id].Held
	if err := d.networks.Delete(id); err != nil {
		return err
	}
	for _, a := range held {
		if l, leased := d.leases[a]; leased && !d.isHeld(a) && d.endpointWith(a) == "" {
			if err := d.drop(a, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// AdoptNetwork takes over a network that the engine has and the record lacks, because the
// state directory was lost. Options are the user's.
func (d *Driver) AdoptNetwork(id string, options map[string]string, internal bool, gateways []netip.Addr) error {
	d.mu.Lock()
	_, known := d.networks.Records[id]
	d.mu.Unlock()
	if known {
		return nil
	}
	q := createNetworkRequest{NetworkID: id, Options: map[string]any{internalOption: internal}}
	generic := make(map[string]any)
	for k, v := range options {
		generic[k] = v
	}
	q.Options[genericOptions] = generic
	for _, g := range gateways {
		q.IPv4Data = append(q.IPv4Data, ipamData{AddressSpace: localSpace, Gateway: g.String()})
	}
	_, err := d.createNetwork(context.Background(), q)
	return err
}

// Adopt takes over an endpoint of a running container in the same way. An endpoint that is
// known, or not on a weft network, is not an error.
func (d *Driver) Adopt(ctx context.Context, e Endpoint) error {
	if checkID("endpoint", e.ID) != nil || d.Has(e.ID) || !d.InContainer(e.ID) {
		return nil
	}
	for _, p := range e.Addresses {
		d.mu.Lock()
		_, leased := d.leases[p.Addr()]
		d.mu.Unlock()
		if leased || d.addresses.Check(p.Masked()) != nil {
			continue
		}
		owner := newLeaseOwner()
		if err := d.addresses.Claim(ctx, owner, p); err != nil {
			return fmt.Errorf("take over endpoint %.12s: %w", e.ID, err)
		}
		d.mu.Lock()
		d.leases[p.Addr()] = lease{owner, time.Now()}
		d.mu.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endpoints.Put(e.ID, endpoint{Network: e.Network, MAC: e.MAC, Addresses: e.Addresses})
}
