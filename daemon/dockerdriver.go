package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/plugin"
	"github.com/weft-net/weft/docker/proxy"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// driverAddresses is the allocators as Docker's driver wants them. It
// implements plugin.Addresses.
type driverAddresses struct{ ranges }

func (as driverAddresses) Default(v6 bool) (netip.Prefix, bool) {
	for _, u := range as.ranges {
		if u.Range().Addr().Is6() == v6 {
			return u.DefaultSubnet(), true
		}
	}
	return netip.Prefix{}, false
}

func (as driverAddresses) Check(subnet netip.Prefix) error {
	ranges := ""
	for _, u := range as.ranges {
		if r := u.Range(); r.Contains(subnet.Addr()) && r.Bits() <= subnet.Bits() {
			return nil
		}
		ranges += " " + u.Range().String()
	}
	if ranges == "" {
		return fmt.Errorf("subnet %s: this router was launched without a range of addresses", subnet)
	}
	return fmt.Errorf("subnet %s is outside of what weft has to give:%s", subnet, ranges)
}

func (as driverAddresses) Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error) {
	p, _, err := as.give(ctx, owner, api.Address{Kind: api.FromSubnet, Prefix: subnet})
	return p, err
}

func (as driverAddresses) Claim(ctx context.Context, owner string, p netip.Prefix) error {
	_, _, err := as.give(ctx, owner, api.Address{Kind: api.Exactly, Prefix: p})
	return err
}

func (as driverAddresses) Release(owner string, a netip.Addr) error {
	return as.take(owner, []netip.Prefix{netip.PrefixFrom(a, a.BitLen())})
}

func (as driverAddresses) Owners() map[string][]netip.Prefix {
	all := make(map[string][]netip.Prefix)
	for _, u := range as.ranges {
		maps.Copy(all, u.Owners())
	}
	return all
}

// driverLinks is the kernel's part of Docker's driver. It implements
// plugin.Links.
type driverLinks struct {
	bridge string
	mtu    int
	log    *slog.Logger
}

func (l driverLinks) Make(port, inside string, mac net.HardwareAddr, mtu int, addrs []netip.Addr) error {
	if mtu == 0 {
		mtu = l.mtu
	}
	if err := netdev.MakePort(l.bridge, port, inside, mac, mtu); err != nil {
		return err
	}
	if err := netdev.AnnounceAt(l.bridge, mac, addrs); err != nil {
		l.log.Warn("the addresses of a container could not be announced", "addresses", addrs, "error", err)
	}
	return nil
}

// extendEvery is how often a namespace is looked at for an interface that is to
// come: more often than a runtime starts a process.
const extendEvery = time.Millisecond

func (driverLinks) Extend(ctx context.Context, path string, mac net.HardwareAddr, addrs []netip.Prefix) error {
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	for {
		err := netdev.Extend(path, mac, addrs)
		if !errors.Is(err, netdev.ErrNotYet) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (driverLinks) Delete(port string) error { return netdev.DeletePort(port) }

func (driverLinks) Lives(port, inside string) bool {
	_, err := netlink.LinkByName(inside)
	return err != nil && linkExists(port)
}

// drivers is Docker's network and address driver with its default network.
type drivers struct {
	*plugin.Driver
	socket string
	subnet netip.Prefix // of the default network, the zero Prefix for none
	log    *slog.Logger
}

func newDrivers(d *daemon, log *slog.Logger) *drivers {
	as := driverAddresses{d.ranges}
	subnet, _ := as.Default(false)
	return &drivers{
		Driver: plugin.New(plugin.Config{
			Addresses: as, Links: driverLinks{d.config.Bridge, d.config.MTU, log}, Store: d.store, Log: log,
		}),
		socket: d.config.PluginSocket, subnet: subnet, log: log,
	}
}

// serve answers Docker until ctx ends. Without the socket everything else works
// on.
func (d *drivers) serve(ctx context.Context) error {
	// Docker makes this folder for everybody to look into.
	if err := os.MkdirAll(filepath.Dir(d.socket), 0o755); err != nil {
		return fmt.Errorf("docker's driver: %w", err)
	}
	l, err := api.ListenUnix(d.socket)
	if err != nil {
		return fmt.Errorf("docker's driver: %w", err)
	}
	return api.Serve(ctx, l, d.Handler(), d.log)
}

const (
	networkTimeout = time.Minute // of one try to make the default network
	networkRetry   = 5 * time.Second
)

// keepNetwork makes the default network unless it is there, trying until ctx
// ends. The engine calls the driver back meanwhile.
func (d *drivers) keepNetwork(ctx context.Context, c *client.Client) {
	if !d.subnet.IsValid() {
		return
	}
	for {
		err := d.makeNetwork(ctx, c)
		if err == nil || ctx.Err() != nil {
			return
		}
		d.log.Warn("docker has no network weft yet, will try again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(networkRetry):
		}
	}
}

func (d *drivers) makeNetwork(ctx context.Context, c *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	r, err := c.NetworkInspect(ctx, plugin.Name, client.NetworkInspectOptions{})
	switch {
	case err == nil && r.Network.Driver == plugin.Name:
		return nil
	case err == nil:
		return fmt.Errorf("docker has a network %s of another driver, %s", plugin.Name, r.Network.Driver)
	case !errdefs.IsNotFound(err):
		return err
	}
	if err := proxy.MakeNetwork(ctx, c, plugin.Name, proxy.Network{Subnet: d.subnet, Multicast: true}); err != nil {
		return err
	}
	d.log.Info("docker has the network weft", "subnet", d.subnet)
	return nil
}

// dropNetworks removes the networks that weft made, but for those that
// containers are to be on when they start again.
func (d *drivers) dropNetworks(ctx context.Context, c *client.Client) error {
	r, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: make(client.Filters).Add("label", proxy.MadeLabel)})
	if err != nil {
		return fmt.Errorf("list docker's networks: %w", err)
	}
	var errs []error
	for _, n := range r.Items {
		on, err := c.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("network", n.ID)})
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("list the containers on docker's network %s: %w", n.Name, err))
			continue
		case len(on.Items) > 0:
			d.log.Info("docker's network stays, for containers that are on it", "network", n.Name, "containers", len(on.Items))
			continue
		}
		if _, err := c.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove docker's network %s: %w", n.Name, err))
		}
	}
	return errors.Join(errs...)
}

// list is the containers on Docker's networks, by what is known of those that
// run.
func (e *engine) list() []api.Attachment {
	if e.drivers == nil {
		return nil
	}
	of := make(map[string][2]string) // endpoint: id and name of its container
	e.mu.Lock()
	for _, c := range e.running {
		for _, end := range c.Endpoints {
			of[end.ID] = [2]string{c.ID, c.Name}
		}
	}
	e.mu.Unlock()
	var list []api.Attachment
	for _, end := range e.drivers.Endpoints() {
		k := api.Attachment{ID: end.ID, Interface: netdev.IfaceName + "0", MAC: end.MAC, Addresses: end.Addresses}
		if c, known := of[end.ID]; known {
			k.ID, k.Name = c[0], c[1]
		}
		list = append(list, k)
	}
	return list
}

// adopt takes over what the engine has on weft's networks and the record lacks, and
// forgets what it has no more.
func (d *drivers) adopt(ctx context.Context, c *client.Client) error {
	r, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: make(client.Filters).Add("driver", plugin.Name)})
	if err != nil {
		return fmt.Errorf("list docker's networks: %w", err)
	}
	ids := make([]string, len(r.Items))
	for i, n := range r.Items {
		ids[i] = n.ID
	}
	errs := []error{d.KeepNetworks(ids)}
	for _, n := range r.Items {
		var gateways []netip.Addr
		if n.IPAM.Driver == plugin.Name {
			for _, config := range n.IPAM.Config {
				if config.Gateway.IsValid() {
					gateways = append(gateways, config.Gateway)
				}
			}
		}
		errs = append(errs, d.AdoptNetwork(n.ID, n.Options, n.Internal, gateways))
	}
	return errors.Join(errs...)
}

// adoptEndpoints does that for a container that runs.
func (d *drivers) adoptEndpoints(ctx context.Context, c *docker.Container) {
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	for _, end := range c.Endpoints {
		d.Restore(end.ID, c.Netns())
		err := d.Adopt(ctx, plugin.Endpoint{ID: end.ID, Network: end.NetworkID, MAC: end.MAC, Addresses: end.Addresses})
		if err != nil {
			d.log.Warn("the addresses of a container are not on record", "container", c.Name, "error", err)
		}
	}
}
