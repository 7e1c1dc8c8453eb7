package daemon

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// openKeeper makes the bridge, and declares the desired state of everything on it that does
// not belong to the data plane: ports of containers with their guards, exposed addresses with
// their rules, and sysctls. The data plane declares its own objects.
// sees is called with each view of the kernel in which ports of containers may have changed.
func openKeeper(c *Config, bridge netdev.Bridge, guard *spoofGuard, sees func(*netdev.View)) (*keeper.Keeper, error) {
	k, err := keeper.New(c.Log.With("part", "kernel"))
	if err != nil {
		return nil, err
	}
	err = k.Add(keeper.Object{
		ID: owned.ID{Kind: owned.Bridge, Name: bridge.Name}, Make: bridge.Ensure,
		Look: func(v *netdev.View) ([]string, error) { return bridge.Faults(v), nil },
	})
	if err == nil {
		err = k.KeepAll(owned.ContainerPort, func(v *netdev.View) []keeper.Object {
			sees(v)
			return containerPorts(v, bridge, guard)
		})
	}
	if err == nil {
		err = k.KeepAll(owned.SpoofGuard, guard.objects)
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// containerPorts returns the ports of containers, whoever made them.
func containerPorts(v *netdev.View, bridge netdev.Bridge, guard *spoofGuard) (list []keeper.Object) {
	for _, p := range netdev.ContainerPorts(v, bridge.Name, bridge.Sysctls) {
		list = append(list, keeper.Object{
			ID: owned.ID{Kind: owned.ContainerPort, Name: p.Name},
			Look: func(v *netdev.View) ([]string, error) {
				if v.Links[bridge.Name] == nil || v.Links[p.Name] == nil {
					return nil, owned.ErrWaits // for the bridge, or the container is gone
				}
				return p.Faults(v), nil
			},
			Make: func() error {
				// It may have been made a moment ago, and not be guarded yet.
				err := guard.protectNamed(p.Name)
				if err == nil {
					err = p.Ensure()
				}
				if errors.Is(err, unix.ENODEV) {
					return owned.ErrWaits
				}
				return err
			},
		})
	}
	return list
}

// ownSysctls returns the sysctls of weft's interfaces, and those that exposed addresses
// need.
func (es *exposures) ownSysctls(v *netdev.View, bridge netdev.Bridge) (list []keeper.Object) {
	all := bridge.SysctlsOf()
	for _, p := range netdev.ContainerPorts(v, bridge.Name, bridge.Sysctls) {
		all = append(all, p.IPv6Off())
	}
	for _, name := range []string{netdev.TAPName, netdev.PortName, netdev.PortPeerName, netdev.VXLANName} {
		if v.Links[name] != nil {
			all = append(all, netdev.BridgePort{Name: name, Sysctls: bridge.Sysctls}.IPv6Off())
		}
	}
	var forward [2]bool
	for _, e := range *es.wanted.Load() {
		forward[1] = forward[1] || e.Addr.Addr().Is6()
		forward[0] = forward[0] || e.Addr.Addr().Is4()
	}
	if forward[0] {
		all = append(all, netdev.Sysctl{Dir: bridge.Sysctls, Key: []string{"net", "ipv4", "ip_forward"}, Value: "1"})
	}
	if forward[1] {
		all = append(all, netdev.Sysctl{Dir: bridge.Sysctls, Key: []string{"net", "ipv6", "conf", "all", "forwarding"}, Value: "1"})
	}
	for _, s := range all {
		list = append(list, keeper.Object{
			ID: owned.ID{Kind: owned.Sysctl, Name: s.Name()}, Make: s.Ensure,
			Look: func(*netdev.View) ([]string, error) { return s.Faults() },
		})
	}
	return list
}

// addressObject is an address of the bridge.
func addressObject(a netdev.BridgeAddress) keeper.Object {
	return keeper.Object{
		ID: owned.ID{Kind: owned.Address, Name: a.Addr.String()}, Make: a.Ensure,
		Look: func(v *netdev.View) ([]string, error) {
			if v.Links[a.Bridge] == nil {
				return nil, owned.ErrWaits
			}
			if faults := a.Faults(v); len(faults) > 0 {
				return faults, nil
			}
			return a.RouteFaults()
		},
	}
}

// exposeRules is the object of the rules of all exposed addresses.
var exposeRules = owned.ID{Kind: owned.Rules, Name: "of exposed addresses"}

// keep declares the addresses, the rules and the sysctls.
func (es *exposures) keep(bridge netdev.Bridge) error {
	rules := func() netdev.ExposeRules { return netdev.ExposeRules{Bridge: es.bridge, All: *es.wanted.Load()} }
	return errors.Join(
		es.keeper.KeepAll(owned.Address, func(*netdev.View) (list []keeper.Object) {
			for _, e := range *es.wanted.Load() {
				list = append(list, addressObject(netdev.BridgeAddress{Bridge: es.bridge, Addr: e.Addr}))
			}
			return list
		}),
		es.keeper.KeepAll(owned.Sysctl, func(v *netdev.View) []keeper.Object { return es.ownSysctls(v, bridge) }),
		es.keeper.Keep(keeper.Object{
			ID:   exposeRules,
			Look: func(*netdev.View) ([]string, error) { return rules().Faults() },
			Make: func() error { return rules().Ensure() },
		}),
		es.keeper.KeepAll(owned.Isolation, func(v *netdev.View) []keeper.Object {
			if len(*es.wanted.Load()) == 0 {
				return nil // the rules of exposed addresses are gone, and these with them
			}
			// Its name has the networks: a new one is no change by other software.
			r := netdev.DockerRulesOf(v, es.bridge)
			return []keeper.Object{{
				ID: owned.ID{Kind: owned.Isolation, Name: r.String()}, Make: r.Ensure,
				Look: func(*netdev.View) ([]string, error) { return r.Faults() },
			}}
		}),
	)
}

// faultGrace is how old a fault is that is about to be repaired when it is shown.
const faultGrace = 2 * time.Second

// reportKernel adds the state of the objects in the kernel to a report.
func reportKernel(r *api.Report, k *keeper.Keeper, now time.Time) {
	r.Kernel.Repairs = make(map[string]uint64)
	for kind, n := range k.Repairs() {
		r.Kernel.Repairs[string(kind)] = n
	}
	for _, f := range k.Faults() {
		if !f.Lasting && now.Sub(f.Since) < faultGrace {
			continue
		}
		info, _ := owned.InfoOf(f.ID.Kind)
		r.Kernel.Faults = append(r.Kernel.Faults, api.KernelFault{
			Kind: string(f.ID.Kind), Name: f.ID.Name, Text: f.Text, Since: f.Since, Vital: info.Vital,
		})
		r.Warnings = append(r.Warnings, f.Text)
	}
}

// requirer looks at the objects without which no container can be connected.
type requirer interface {
	// Require repairs what it can. The error says in words what it cannot.
	Require() error
}

// connectable returns an error that the caller of a request sees if no container can be
// connected now.
func connectable(k requirer) error {
	if err := k.Require(); err != nil {
		return unavailable("no container can be connected now: %w", fmt.Errorf("%w; see: weft doctor", err))
	}
	return nil
}
