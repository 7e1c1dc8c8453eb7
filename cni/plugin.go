package cni

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// timeout bounds a verb. Runtimes give up after some minutes.
const timeout = 90 * time.Second

// Versions are the versions of the specification that the plugin implements.
var Versions = version.PluginSupports("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Verbs returns the plugin's functions under a program name. IPAMName only allocates
// addresses, any other name makes interfaces too.
func Verbs(name string) skel.CNIFuncs {
	v := skel.CNIFuncs{
		Add: verb((*conf).add), Del: verb((*conf).del), Check: verb((*conf).check),
		GC: verb((*conf).gc), Status: verb((*conf).status),
	}
	if name == IPAMName {
		v.Add, v.Del, v.Check = verb((*conf).addAddresses), verb((*conf).free), verb((*conf).checkAddresses)
	}
	return v
}

// verb parses the configuration and calls f with a timeout.
func verb(f func(*conf, context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		issued := api.Now()
		c, err := parse(args.StdinData)
		if err != nil {
			return err
		}
		c.issued = issued
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		return f(c, ctx, args)
	}
}

func (c *conf) addAddresses(ctx context.Context, args *skel.CmdArgs) error {
	r, err := c.allocate(ctx, args)
	if err != nil {
		return err
	}
	return types.PrintResult(r, c.CNIVersion)
}

func (c *conf) checkAddresses(ctx context.Context, args *skel.CmdArgs) error {
	return c.checkHeld(ctx, args, nil)
}

// add connects a container to the bridge.
func (c *conf) add(ctx context.Context, args *skel.CmdArgs) (err error) {
	r, err := c.allocate(ctx, args)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo(c.del, args))
		}
	}()
	if err := c.expectPod(ctx, args, addrsOf(r)); err != nil {
		return err
	}
	if err := c.connect(ctx, args, r); err != nil {
		return err
	}
	// A DEL that came meanwhile found no interface, and wins.
	if err := c.confirm(ctx, args, r); err != nil {
		return err
	}
	// Policies match multicast frames by their bridge port, which exists only now.
	if err := c.expectPod(ctx, args, addrsOf(r)); err != nil {
		return err
	}
	return types.PrintResult(c.withPrevious(r), c.CNIVersion)
}

// connect makes the interface and its routes, and adds the interface to r.
func (c *conf) connect(ctx context.Context, args *skel.CmdArgs, r *current.Result) error {
	mtu := c.MTU
	if mtu == 0 {
		var err error
		if mtu, err = netdev.MTU(c.bridge()); err != nil {
			return failed(types.ErrTryAgainLater, "%v; is weft running?", err)
		}
	}
	addrs := addrsOf(r)
	if err := netdev.AllowIPv6(args.Netns, slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })); err != nil {
		return failed(types.ErrInternal, "%v", err)
	}
	_, err := netdev.Attach(netdev.Attachment{
		NS: args.Netns, Iface: args.IfName, Bridge: c.bridge(), MTU: mtu, Addrs: addrs, MAC: c.mac, Hairpin: isOn(c.HairpinMode),
		RateLimited: c.rateLimited(), Owner: c.ownerOf(args), Name: podName(args), AllowSpoof: c.allowSpoof(),
		Guard: func(p netdev.GivenPort) error { return c.guard(ctx, p.Name) },
	})
	if errors.Is(err, netdev.ErrHostNS) {
		return failed(types.ErrInvalidNetNS, "%v", err)
	}
	if err != nil {
		return failed(types.ErrInternal, "%v", err)
	}
	if err := netdev.AddRoutes(args.Netns, args.IfName, routesOf(r)); err != nil {
		return failed(types.ErrInternal, "%v", err)
	}
	iface, err := c.find(args)
	if err != nil {
		return err
	}
	r.Interfaces = []*current.Interface{
		{Name: iface.HostName, Mac: iface.HostMAC.String(), Mtu: iface.MTU},
		{Name: iface.Name, Mac: iface.MAC.String(), Mtu: iface.MTU, Sandbox: args.Netns},
	}
	for _, ip := range r.IPs {
		ip.Interface = current.Int(1)
	}
	return nil
}

// find returns the interface that connect made.
func (c *conf) find(args *skel.CmdArgs) (netdev.Iface, error) {
	all, err := netdev.Attached(args.Netns, c.bridge())
	if err != nil {
		return netdev.Iface{}, failed(types.ErrInternal, "%v", err)
	}
	i := slices.IndexFunc(all, func(i netdev.Iface) bool { return i.Name == args.IfName })
	if i < 0 {
		return netdev.Iface{}, failed(types.ErrUnknownContainer, "interface %s of %s is not on bridge %s", args.IfName, args.Netns, c.bridge())
	}
	return all[i], nil
}

// withPrevious appends r to the result of the earlier plugins of the chain, if there is
// one.
func (c *conf) withPrevious(r *current.Result) *current.Result {
	if c.DNS.Nameservers != nil || c.DNS.Domain != "" || c.DNS.Search != nil || c.DNS.Options != nil {
		r.DNS = c.DNS
	}
	all := c.previous
	if all == nil {
		return r
	}
	for _, ip := range r.IPs {
		*ip.Interface += len(all.Interfaces)
	}
	all.Interfaces = append(all.Interfaces, r.Interfaces...)
	all.IPs = append(all.IPs, r.IPs...)
	all.Routes = append(all.Routes, r.Routes...)
	if !r.DNS.IsEmpty() {
		all.DNS = r.DNS
	}
	return all
}

// undo undoes a failed add. It has its own timeout, since that of add may be over.
func undo(by func(context.Context, *skel.CmdArgs) error, args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return by(ctx, args)
}

// del disconnects a container from the bridge. Missing objects are no error.
func (c *conf) del(ctx context.Context, args *skel.CmdArgs) error {
	if args.Netns != "" {
		if !c.usesRouterIPAM() {
			defer c.forgetPod(ctx, args, c.interfaceAddrs(args)) // another IPAM plugin does not return what it frees
		}
		if err := netdev.Remove(args.Netns, args.IfName); err != nil && !errors.Is(err, netdev.ErrHostNS) {
			return failed(types.ErrInternal, "%v", err)
		}
	}
	return c.free(ctx, args)
}

// check compares the result of add with the container.
func (c *conf) check(ctx context.Context, args *skel.CmdArgs) error {
	r := c.previous
	if r == nil {
		return failed(types.ErrInvalidNetworkConfig, "check %s: no prevResult", args.ContainerID)
	}
	iface, err := c.find(args)
	if err != nil {
		return err
	}
	want := ownAddrs(r, args.IfName)
	for _, p := range want {
		if !slices.Contains(iface.Addrs, p) {
			return failed(types.ErrInternal, "check %s: interface %s has lost its address %s", args.ContainerID, args.IfName, p)
		}
	}
	for _, i := range r.Interfaces {
		if i.Name == args.IfName && i.Sandbox != "" && i.Mac != iface.MAC.String() {
			return failed(types.ErrInternal, "check %s: interface %s has MAC address %s, want %s", args.ContainerID, args.IfName, iface.MAC, i.Mac)
		}
	}
	missing, err := netdev.MissingRoutes(args.Netns, args.IfName, routesOf(r))
	if err != nil {
		return failed(types.ErrInternal, "check %s: %v", args.ContainerID, err)
	}
	if len(missing) > 0 {
		return failed(types.ErrInternal, "check %s: route %s is missing", args.ContainerID, missing[0].Dst)
	}
	return c.checkHeld(ctx, args, want)
}

// ownAddrs returns the addresses of an interface in a result. Other addresses belong to
// other plugins.
func ownAddrs(r *current.Result, iface string) []netip.Prefix {
	var ps []netip.Prefix
	for _, ip := range r.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n].Name == iface {
			ps = append(ps, fromIPNet(ip.Address))
		}
	}
	return ps
}

func addrsOf(r *current.Result) []netip.Prefix {
	var ps []netip.Prefix
	for _, ip := range r.IPs {
		ps = append(ps, fromIPNet(ip.Address))
	}
	return ps
}

// routesOf returns the routes of r. A route without a gateway gets the gateway of an
// address of the same family.
func routesOf(r *current.Result) []netdev.ContainerRoute {
	var routes []netdev.ContainerRoute
	for _, rt := range r.Routes {
		dst := fromIPNet(rt.Dst)
		gw, _ := netip.AddrFromSlice(rt.GW)
		for _, ip := range r.IPs {
			if own, ok := netip.AddrFromSlice(ip.Gateway); ok && !gw.IsValid() && own.Unmap().Is4() == dst.Addr().Is4() {
				gw = own
			}
		}
		routes = append(routes, netdev.ContainerRoute{Dst: dst, Gateway: gw.Unmap(), MTU: rt.MTU})
	}
	return routes
}
