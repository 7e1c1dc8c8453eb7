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
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
)

// IPAMName is the program name under which the plugin only allocates addresses.
const IPAMName = "weft-ipam"

// allocate gets addresses, gateways, routes and DNS settings from the router or from
// another IPAM plugin. On error it has released the addresses.
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

// finish checks the result of another IPAM plugin, or adds gateways and routes to the
// router's addresses.
func (c *conf) finish(ctx context.Context, r *current.Result) error {
	if !c.usesRouterIPAM() {
		return checkComplete(r)
	}
	return c.addRoutes(ctx, r)
}

// requestAddresses gets addresses from the router or from another IPAM plugin.
func (c *conf) requestAddresses(ctx context.Context, args *skel.CmdArgs) (*current.Result, error) {
	if !c.usesRouterIPAM() {
		given, err := invoke.DelegateAdd(ctx, c.IPAM.Type, c.raw, nil)
		if err != nil {
			return nil, fmt.Errorf("get addresses from plugin %s: %w", c.IPAM.Type, err)
		}
		r, err := current.NewResultFromResult(given)
		if err != nil {
			return nil, fmt.Errorf("get addresses from plugin %s: read its result: %w", c.IPAM.Type, err)
		}
		return r, nil
	}
	reply, err := c.lease(ctx, c.request(args))
	if err != nil {
		return nil, unavailable("get addresses", c.advise(args, err))
	}
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for _, p := range reply.Addresses {
		r.IPs = append(r.IPs, &current.IPConfig{Address: toIPNet(p)})
	}
	return r, nil
}

// request returns a request of the owner for addresses.
func (c *conf) request(args *skel.CmdArgs) api.LeaseRequest {
	r := api.LeaseRequest{Owner: c.ownerOf(args), Addresses: c.requested, Issued: c.issued, Name: podName(args), Netns: args.Netns}
	if id, err := netdev.IdentifyNS(args.Netns); err == nil {
		r.NetnsID = id.Ino
	}
	return r
}

// confirm reports to the router the port of the interface that was made. It fails if the addresses
// were released meanwhile.
func (c *conf) confirm(ctx context.Context, args *skel.CmdArgs, made *current.Result) error {
	if !c.usesRouterIPAM() {
		return nil
	}
	r := api.LeaseRequest{Owner: c.ownerOf(args), Issued: c.issued, Port: made.Interfaces[0].Name}
	if _, err := c.lease(ctx, r); err != nil {
		return unavailable("keep the addresses", err)
	}
	return nil
}

// lease asks the router for addresses.
func (c *conf) lease(ctx context.Context, r api.LeaseRequest) (reply api.LeaseReply, err error) {
	err = c.ask(ctx, func() error { reply, err = c.client().Lease(ctx, r); return err })
	return reply, err
}

// guard makes the router guard a port that is not set up yet.
func (c *conf) guard(ctx context.Context, port string) error {
	return c.ask(ctx, func() error { return c.client().Guard(ctx, api.GuardRequest{Port: port}) })
}

// ask makes a call of the router. It waits for one that is being replaced.
func (c *conf) ask(ctx context.Context, call func() error) error {
	for {
		if err := c.awaitRouter(ctx, addTimeout); err != nil {
			return err
		}
		err := call()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if ready, e := c.client().Ready(ctx); e == nil && ready.Ready {
			return err // it is the router's own answer
		}
	}
}

// advise adds to an error what an administrator of Kubernetes can do.
func (c *conf) advise(args *skel.CmdArgs, err error) error {
	if _, isPod := podOf(args, nil); isPod && errors.Is(err, api.ErrNotRunning) {
		return fmt.Errorf("%w; on Kubernetes look at the pod of weft on this node: kubectl -n kube-system get pods -o wide -l app.kubernetes.io/name=weft", err)
	}
	return err
}

// addRoutes adds gateways and routes to r: those of the configuration, or a default
// route for each family over the bridge, which gets an address for it.
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

// gateway returns the gateway of a container with address p.
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

// free releases the addresses that allocate got. It may be repeated.
func (c *conf) free(ctx context.Context, args *skel.CmdArgs) error {
	if !c.usesRouterIPAM() {
		if err := invoke.DelegateDel(ctx, c.IPAM.Type, c.raw, nil); err != nil {
			return fmt.Errorf("release addresses with plugin %s: %w", c.IPAM.Type, err)
		}
		return nil
	}
	had, err := c.client().Release(ctx, api.LeaseRequest{Owner: c.ownerOf(args), Issued: c.issued})
	if errors.Is(err, api.ErrNotRunning) {
		return c.noteRelease(c.ownerOf(args))
	}
	if err != nil {
		return unavailable("release addresses", err)
	}
	c.forgetPod(ctx, args, had)
	return nil
}

// noteRelease leaves a file that makes the next router free the addresses of an owner.
func (c *conf) noteRelease(owner string) error {
	file := api.GoneFile(c.StateDir, owner)
	err := hostfile.Private(filepath.Dir(file))
	if err == nil {
		err = os.WriteFile(file, strconv.AppendInt(nil, c.issued, 10), 0o600)
	}
	if err != nil {
		return failed(types.ErrIOFailure, "release addresses: weft is not running, and a note for its next start cannot be written: %v", err)
	}
	return nil
}

// gc frees the addresses of all attachments of the network that are not valid.
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
			if _, err := c.client().Release(ctx, api.LeaseRequest{Owner: l.Owner}); err != nil {
				errs = append(errs, unavailable("free the addresses of "+l.Owner, err))
			}
		}
	}
	return errors.Join(errs...)
}

// checkHeld checks that the container still owns the addresses in the router's records.
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
			return failed(types.ErrInternal, "check %s: the router has not allocated %s to it", args.ContainerID, p.Addr())
		}
	}
	return nil
}

// status returns nil if addresses can be allocated.
func (c *conf) status(ctx context.Context, _ *skel.CmdArgs) error {
	if err := c.awaitRouter(ctx, statusTimeout); err != nil {
		return failed(types.ErrPluginNotAvailable, "weft: %v", err)
	}
	if !c.usesRouterIPAM() {
		return invoke.DelegateStatus(ctx, c.IPAM.Type, c.raw, nil)
	}
	return nil
}

const (
	// statusTimeout is how long STATUS waits for a router that does not run. When STATUS
	// fails Kubernetes removes all pods of the Node from their Services, although pods do
	// not notice that a router is replaced. The kubelet considers the runtime dead after 30
	// seconds without an answer.
	statusTimeout = 10 * time.Second
	// addTimeout is how long ADD waits for one. A pod whose ADD fails waits longer: the
	// kubelet tries again later and later.
	addTimeout  = 30 * time.Second
	routerEvery = 200 * time.Millisecond
)

// awaitRouter waits until the router can allocate addresses, for some time at most. The error
// names the socket: the configuration may have another one than the router.
func (c *conf) awaitRouter(ctx context.Context, atMost time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, atMost)
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
			return fmt.Errorf("waited %v for the router on %s (\"socket\" in the configuration of network %s): %w", atMost, c.Socket, c.Name, err)
		case <-time.After(routerEvery):
		}
	}
}

// unavailable returns an error of the specification. Its code makes the runtime try again
// later if that may help.
func unavailable(what string, err error) error {
	if errors.Is(err, api.ErrNotRunning) || api.ClassOf(err) == api.Unavailable {
		return failed(types.ErrTryAgainLater, "%s: %v", what, err)
	}
	return failed(types.ErrInternal, "%s: %v", what, err)
}

func toIPNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// fromIPNet is the inverse of toIPNet. It returns the zero Prefix for an invalid n.
func fromIPNet(n net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits != a.BitLen() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, ones)
}
