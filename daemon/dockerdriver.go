package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/hosts"
	"github.com/weft-net/weft/docker/plugin"
	"github.com/weft-net/weft/docker/proxy"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
)

// driverLinks is the kernel's part of Docker's driver. It implements
// plugin.Links.
type driverLinks struct {
	bridge  string
	mtu     int
	sysctls netdev.Sysctls
	kernel  requirer
	guard   *spoofGuard
	log     *slog.Logger
}

func (l driverLinks) Make(port, inside string, mac net.HardwareAddr, mtu int, user netdev.PortUser) error {
	if mtu == 0 {
		mtu = l.mtu
	}
	if err := connectable(l.kernel); err != nil {
		return err
	}
	if err := netdev.MakePort(l.bridge, port, inside, mac, mtu, user, l.sysctls, l.guard.protect); err != nil {
		return err
	}
	if err := netdev.AnnounceAt(l.bridge, mac, addrsOf(user.Addrs)); err != nil {
		l.log.Warn("the addresses of a container could not be announced", "addresses", user.Addrs, "err", err)
	}
	return nil
}

// extendEvery is how often Extend looks for the interface in a namespace: more often
// than a runtime starts a process.
const extendEvery = time.Millisecond

func (driverLinks) AddAddresses(ctx context.Context, path string, mac net.HardwareAddr, addrs []netip.Prefix) error {
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	for {
		err := netdev.AddAddresses(path, mac, addrs)
		if !errors.Is(err, netdev.ErrNotReady) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (l driverLinks) InUse() (map[netip.Addr]bool, error) {
	ports, err := netdev.UsedPorts(l.bridge)
	if err != nil {
		return nil, err
	}
	all := make(map[netip.Addr]bool)
	for _, p := range ports {
		for _, a := range slices.Concat(p.Addrs, p.Behind) {
			all[a.Addr()] = true
		}
	}
	return all, nil
}

func (driverLinks) Delete(port string) error { return netdev.DeletePort(port) }

func (driverLinks) InContainer(port, inside string) bool {
	_, err := netlink.LinkByName(inside)
	return err != nil && linkExists(port)
}

// driver is Docker's network and address driver, as the engine uses it.
type driver interface {
	// serve answers Docker until ctx ends.
	serve(ctx context.Context) error
	// close ends the requests that wait for something.
	close()
	// connected makes the driver and an engine that has just answered agree on
	// weft's networks, until ctx ends.
	connected(ctx context.Context, c *client.Client)
	// adoptEndpoints records the endpoints that a running container has on weft's
	// networks and the record lacks.
	adoptEndpoints(ctx context.Context, c *docker.Container)
	// endpoints are those of c on weft's networks, as the kernel has them, each with
	// all addresses that it has there.
	endpoints(c *docker.Container) []docker.Endpoint
	// isUnplugged reports whether c has lost an interface on a network of weft.
	isUnplugged(c *docker.Container) bool
	// list returns all endpoints; of maps endpoint ids to containers.
	list(of map[string]containerName) []api.Attachment
	sweep(now time.Time)
	report(r *api.Docker)
	// leave removes the networks that weft made and nobody uses.
	leave(ctx context.Context, engine *docker.Client) error
}

// containerName is the id and the name of a container.
type containerName struct{ id, name string }

// noDriver is the driver of a router without a Docker network driver.
type noDriver struct{}

var _ driver = noDriver{}

func (noDriver) serve(context.Context) error                       { return nil }
func (noDriver) close()                                            {}
func (noDriver) connected(context.Context, *client.Client)         {}
func (noDriver) adoptEndpoints(context.Context, *docker.Container) {}
func (noDriver) endpoints(*docker.Container) []docker.Endpoint     { return nil }
func (noDriver) isUnplugged(*docker.Container) bool                { return false }
func (noDriver) list(map[string]containerName) []api.Attachment    { return nil }
func (noDriver) sweep(time.Time)                                   {}
func (noDriver) report(*api.Docker)                                {}
func (noDriver) leave(context.Context, *docker.Client) error       { return nil }

// dockerDriver is a driver that serves a socket, with its default network.
type dockerDriver struct {
	plugin *plugin.Driver
	socket string
	subnet netip.Prefix // of the default network, the zero Prefix for none
	log    *slog.Logger

	connecting sync.Mutex // held by connected, so that no network is made twice

	root atomic.Pointer[string] // the engine's folder, nil until it has answered
}

var _ driver = (*dockerDriver)(nil)

func newDockerDriver(c attachConfig, socket string) *dockerDriver {
	subnet, _ := c.addresses.Default(false)
	d := &dockerDriver{socket: socket, subnet: subnet, log: c.log}
	d.plugin = plugin.New(plugin.Config{
		Addresses: c.addresses, Links: driverLinks{c.bridge, c.mtu, c.sysctls, c.keeper, c.guard, c.log}, Hosts: d.editHosts, Store: c.store, Log: c.log,
	})
	return d
}

// editHosts maps the hostname of a container to its addresses in its /etc/hosts. It asks the
// engine nothing, which answers no question about a container that it is starting.
func (d *dockerDriver) editHosts(container, hostname string, own []netip.Addr) error {
	root := d.root.Load()
	if root == nil {
		return nil // the engine has not answered yet; the proxy does it after the start
	}
	return hosts.Rewrite(filepath.Join(*root, "containers", container, "hosts"), hostname, own, nil)
}

func (d *dockerDriver) serve(ctx context.Context) error {
	// Docker makes this folder readable by everybody.
	if err := hostfile.Shared(filepath.Dir(d.socket), 0o755); err != nil {
		return fmt.Errorf("serve docker's driver: %w", err)
	}
	l, err := api.ListenUnix(d.socket)
	if err != nil {
		return fmt.Errorf("serve docker's driver: %w", err)
	}
	return api.Serve(ctx, l, d.plugin.Handler(), d.log)
}

func (d *dockerDriver) close() { d.plugin.Close() }

func (d *dockerDriver) sweep(now time.Time) { d.plugin.Sweep(now) }

func (d *dockerDriver) report(r *api.Docker) { r.DriverName, r.DriverSocket = plugin.Name, d.socket }

func (d *dockerDriver) connected(ctx context.Context, c *client.Client) {
	d.connecting.Lock()
	defer d.connecting.Unlock()
	asking, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	if r, err := c.Info(asking, client.InfoOptions{}); err == nil && r.Info.DockerRootDir != "" {
		d.root.Store(&r.Info.DockerRootDir)
	}
	if err := d.adopt(asking, c); err != nil {
		d.log.Warn("some networks of docker could not be recorded", "err", err)
	}
	d.keepNetwork(ctx, c)
	if err := d.startMissed(ctx, c); err != nil && ctx.Err() == nil {
		d.log.Warn("some containers that docker could not start without this router could not be started", "err", err)
	}
}

// maxMissed bounds how many containers are looked at that do not run.
const maxMissed = 1000

// startMissed starts the containers that the engine is to keep running, and could not start
// because no router answered. It does not try them again by itself.
func (d *dockerDriver) startMissed(ctx context.Context, c *client.Client) error {
	list, err := c.ContainerList(ctx, client.ContainerListOptions{
		All: true, Limit: maxMissed, Filters: make(client.Filters).Add("status", "exited"),
	})
	if err != nil {
		return fmt.Errorf("list docker's containers: %w", err)
	}
	var errs []error
	for _, item := range list.Items {
		r, err := c.ContainerInspect(ctx, item.ID, client.ContainerInspectOptions{})
		if err != nil || r.Container.State == nil || r.Container.HostConfig == nil {
			continue // it is gone
		}
		keep := r.Container.HostConfig.RestartPolicy.Name
		if keep != "always" && keep != "unless-stopped" || !missedPlugin.MatchString(r.Container.State.Error) {
			continue
		}
		if _, err := c.ContainerStart(ctx, item.ID, client.ContainerStartOptions{}); err != nil {
			errs = append(errs, fmt.Errorf("start container %.12s: %w", item.ID, err))
			continue
		}
		d.log.Info("started a container that docker could not start while no router answered", "container", strings.TrimPrefix(r.Container.Name, "/"))
	}
	return errors.Join(errs...)
}

// missedPlugin matches what the engine says of a start that failed because weft's driver did
// not answer.
var missedPlugin = regexp.MustCompile(`weft\.sock|plugin "weft"`)

func (d *dockerDriver) endpoints(c *docker.Container) (ends []docker.Endpoint) {
	for _, end := range c.Endpoints {
		if addrs, ours := d.plugin.AddressesOf(end.ID); ours && d.plugin.InContainer(end.ID) {
			end.Addresses = addrs
			ends = append(ends, end)
		}
	}
	return ends
}

func (d *dockerDriver) isUnplugged(c *docker.Container) bool {
	return slices.ContainsFunc(c.Endpoints, func(end docker.Endpoint) bool { return d.plugin.Has(end.ID) && !d.plugin.InContainer(end.ID) })
}

func (d *dockerDriver) list(of map[string]containerName) (list []api.Attachment) {
	for _, end := range d.plugin.Endpoints() {
		k := api.Attachment{ID: end.ID, Interface: netdev.IfaceName + "0", MAC: end.MAC, Addresses: end.Addresses}
		if c, known := of[end.ID]; known {
			k.ID, k.Name = c.id, c.name
		}
		list = append(list, k)
	}
	return list
}

func (d *dockerDriver) leave(ctx context.Context, engine *docker.Client) error {
	c, err := engine.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return d.dropNetworks(ctx, c)
}

const (
	networkTimeout = time.Minute // of one try to make the default network
	networkRetry   = 5 * time.Second
)

// keepNetwork makes the default network unless it is there, trying until ctx
// ends. The engine calls the driver back meanwhile.
func (d *dockerDriver) keepNetwork(ctx context.Context, c *client.Client) {
	if !d.subnet.IsValid() {
		return
	}
	for {
		err := d.makeNetwork(ctx, c)
		if err == nil || ctx.Err() != nil {
			return
		}
		d.log.Warn("docker's network weft could not be made yet, will try again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(networkRetry):
		}
	}
}

func (d *dockerDriver) makeNetwork(ctx context.Context, c *client.Client) error {
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
	if err := proxy.MakeNetwork(ctx, c, plugin.Name, proxy.NetworkOptions{Subnet: d.subnet, Multicast: true}); err != nil {
		return err
	}
	d.log.Info("docker has the network weft", "subnet", d.subnet)
	return nil
}

// dropNetworks removes the networks that weft made, except those of containers that may
// start again.
func (d *dockerDriver) dropNetworks(ctx context.Context, c *client.Client) error {
	r, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: make(client.Filters).Add("label", proxy.ManagedLabel)})
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
			d.log.Info("docker's network stays, as containers use it", "network", n.Name, "containers", len(on.Items))
			continue
		}
		if _, err := c.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove docker's network %s: %w", n.Name, err))
		}
	}
	return errors.Join(errs...)
}

// adopt takes over the networks of weft that the engine has and the record lacks, and
// forgets those that the engine no longer has.
func (d *dockerDriver) adopt(ctx context.Context, c *client.Client) error {
	r, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: make(client.Filters).Add("driver", plugin.Name)})
	if err != nil {
		return fmt.Errorf("list docker's networks: %w", err)
	}
	ids := make([]string, len(r.Items))
	for i, n := range r.Items {
		ids[i] = n.ID
	}
	errs := []error{d.plugin.KeepNetworks(ids)}
	for _, n := range r.Items {
		var gateways []netip.Addr
		if n.IPAM.Driver == plugin.Name {
			for _, config := range n.IPAM.Config {
				if config.Gateway.IsValid() {
					gateways = append(gateways, config.Gateway)
				}
			}
		}
		errs = append(errs, d.plugin.AdoptNetwork(n.ID, n.Options, n.Internal, gateways))
	}
	return errors.Join(errs...)
}

func (d *dockerDriver) adoptEndpoints(ctx context.Context, c *docker.Container) {
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	for _, end := range c.Endpoints {
		d.plugin.Restore(end.ID, c.Netns())
		err := d.plugin.Adopt(ctx, plugin.Endpoint{ID: end.ID, Network: end.NetworkID, MAC: end.MAC, Addresses: end.Addresses})
		if err != nil {
			d.log.Warn("the addresses of a container could not be recorded", "container", c.Name, "err", err)
		}
	}
}
