package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-net/weft/internal/api"
)

// IPAMName is what the plugin is called to give addresses only.
const IPAMName = "weft-ipam"

// allocate gets addresses, and what else their giver says: gateways, routes, DNS. On
// error it has given back what it got.
func (c *conf) allocate(ctx context.Context, args *skel.CmdArgs) (*current.Result, error) {
	r, err := c.requestAddresses(ctx, args)
	if err != nil {
		return nil, err
	}
	if err := c.finish(ctx, r); err != nil {
		return nil, errors.Join(err, undo(c.free, args))
	}
	return r, nil
}

// complete refuses a result that cannot be used, and adds what the router does not
// say.
func (c *conf) finish(ctx context.Context, r *current.Result) error {
	if !c.usesRouterIPAM() {
		return checkComplete(r)
	}
	return c.addRoutes(ctx, r)
}

// ask gets the addresses.
func (c *conf) requestAddresses(ctx context.Context, args *skel.CmdArgs) (*current.Result, error) {
	if !c.usesRouterIPAM() {
		given, err := invoke.DelegateAdd(ctx, c.IPAM.Type, c.raw, nil)
		if err != nil {
			return nil, fmt.Errorf("get addresses by plugin %s: %w", c.IPAM.Type, err)
		}
		r, err := current.NewResultFromResult(given)
		if err != nil {
			return nil, fmt.Errorf("get addresses by plugin %s: read its result: %w", c.IPAM.Type, err)
		}
		return r, nil
	}
	reply, err := c.client().Lease(ctx, api.LeaseRequest{Owner: c.ownerOf(args), Addresses: c.requested})
	if err != nil {
		return nil, unavailable("get addresses", err)
	}
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for _, p := range reply.Addresses {
		r.IPs = append(r.IPs, &current.IPConfig{Address: toIPNet(p)})
	}
	return r, nil
}

// route fills in gateways and routes: those of the configuration, or a default
// route for each family by the bridge, which gets an address for it.
func (c *conf) addRoutes(ctx context.Context, r *current.Result) error {
	r.Routes = c.IPAM.Routes
	if c.IPAM.Routes == nil && !isOn(c.IsDefaultGateway) {
		return nil
	}
	for _, ip := range r.IPs {
		gw, err := c.gateway(ctx, fromIPNet(ip.Address))
		if err != nil {
			return err
		}
		ip.Gateway = gw.AsSlice()
		if c.IPAM.Routes == nil {
			bits := gw.BitLen()
			r.Routes = append(r.Routes, &types.Route{
				Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}, GW: gw.AsSlice(),
			})
		}
	}
	return nil
}

// gateway returns the router of a container with address p.
func (c *conf) gateway(ctx context.Context, p netip.Prefix) (netip.Addr, error) {
	if g := c.IPAM.gateway; g.IsValid() && g.Is4() == p.Addr().Is4() {
		return g, nil
	}
	got, err := c.client().Expose(ctx, api.ExposeRequest{
		Addresses: []api.Address{{Kind: api.FromSubnet, Prefix: p.Masked()}}, WithoutMasquerade: !isOn(c.IPMasq),
	})
	if err != nil {
		return netip.Addr{}, unavailable("give the bridge an address", err)
	}
	return got[0].Addr(), nil
}

// free gives back what allocate got. It may be repeated.
func (c *conf) free(ctx context.Context, args *skel.CmdArgs) error {
	if !c.usesRouterIPAM() {
		if err := invoke.DelegateDel(ctx, c.IPAM.Type, c.raw, nil); err != nil {
			return fmt.Errorf("give addresses back by plugin %s: %w", c.IPAM.Type, err)
		}
		return nil
	}
	had, err := c.client().Release(ctx, c.ownerOf(args))
	if errors.Is(err, api.ErrNotRunning) {
		return c.noteRelease(c.ownerOf(args))
	}
	if err != nil {
		return unavailable("give addresses back", err)
	}
	c.forgetPod(ctx, args, had)
	return nil
}

// leaveWord tells the next router that an owner left.
func (c *conf) noteRelease(owner string) error {
	file := api.GoneFile(c.StateDir, owner)
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file, nil, 0o600)
	}
	if err != nil {
		return failed(types.ErrIOFailure, "weft is not running, and it cannot be noted that its addresses are free: %v", err)
	}
	return nil
}

// collect frees what none of the valid attachments of the network has.
func (c *conf) gc(ctx context.Context, _ *skel.CmdArgs) error {
	if !c.usesRouterIPAM() {
		return invoke.DelegateGC(ctx, c.IPAM.Type, c.raw, nil)
	}
	leases, err := c.client().Leases(ctx)
	if err != nil {
		return unavailable("list addresses", err)
	}
	var valid []string
	for _, a := range c.ValidAttachments {
		valid = append(valid, c.owner(a.ContainerID, a.IfName))
	}
	var errs []error
	for _, l := range leases {
		if strings.HasPrefix(l.Owner, ownersOf(c.Name)) && !slices.Contains(valid, l.Owner) {
			if _, err := c.client().Release(ctx, l.Owner); err != nil {
				errs = append(errs, unavailable("free the addresses of "+l.Owner, err))
			}
		}
	}
	return errors.Join(errs...)
}

// held checks that the router still has the addresses down as the container's.
func (c *conf) checkHeld(ctx context.Context, args *skel.CmdArgs, want []netip.Prefix) error {
	if !c.usesRouterIPAM() {
		return invoke.DelegateCheck(ctx, c.IPAM.Type, c.raw, nil)
	}
	leases, err := c.client().Leases(ctx)
	if err != nil {
		return unavailable("list addresses", err)
	}
	var have []netip.Prefix
	for _, l := range leases {
		if l.Owner == c.ownerOf(args) {
			have = l.Addresses
		}
	}
	for _, p := range want {
		if !slices.ContainsFunc(have, func(q netip.Prefix) bool { return q.Addr() == p.Addr() }) {
			return failed(types.ErrInternal, "check %s: the router has not given it %s", args.ContainerID, p.Addr())
		}
	}
	return nil
}

// ready tells why addresses cannot be given, nil if they can.
func (c *conf) status(ctx context.Context, _ *skel.CmdArgs) error {
	if err := c.awaitRouter(ctx); err != nil {
		return failed(types.ErrPluginNotAvailable, "weft: %v", err)
	}
	if !c.usesRouterIPAM() {
		return invoke.DelegateStatus(ctx, c.IPAM.Type, c.raw, nil)
	}
	return nil
}

// absence is how long STATUS waits for a router that is away. Kubernetes takes all pods of a Node
// out of their Services when a STATUS fails, and they do not miss a router that is only being
// replaced. The kubelet takes the runtime itself for dead when it does not answer for 30 seconds.
const routerTimeout = 10 * time.Second

// awaitRouter returns when the router can give addresses, or has not been able to for too long.
func (c *conf) awaitRouter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, routerTimeout)
	defer cancel()
	for {
		r, err := c.client().Ready(ctx)
		if err == nil && r.Ready {
			return nil
		}
		if err == nil {
			err = errors.New("still starting")
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(routerTimeout / 50):
		}
	}
}

// unavailable tells the runtime to try again later, if that may help.
func unavailable(what string, err error) error {
	if errors.Is(err, api.ErrNotRunning) || api.ClassOf(err) == api.Unavailable {
		return failed(types.ErrTryAgainLater, "%s: %v", what, err)
	}
	return failed(types.ErrInternal, "%s: %v", what, err)
}

func toIPNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the inverse of ipNet, the zero Prefix for what is none.
func fromIPNet(n net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits != a.BitLen() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, ones)
}
