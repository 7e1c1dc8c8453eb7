package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/bindings"
)

// ownBindings finds the bindings of this host, and announces them. The kernel says which containers
// live, and what weft gave to them, whoever connected them:
//
//	aliases of ports ---(view of the keeper)---> saw    ---+
//	addresses of the bridge, by the records ---> expose ---+--> list --> announce
//	MAC addresses that containers have now  ---> sweep  ---+
//
// So a router that starts again finds the same bindings, and one that ended while it connected a
// container announces nothing that does not live.
//
// A container that was given a MAC address and took another one is not bound. Nothing tells the host
// of that, so it is found by looking.
type ownBindings struct {
	// Constant.
	bridge   string
	guarded  bool // frames with other MAC addresses than those given are dropped
	announce func([]bindings.Binding) error
	macs     func(bridge string) (map[string]net.HardwareAddr, error) // netdev.PortMACs
	log      *slog.Logger
	wake     chan struct{} // of capacity 1

	mu      sync.Mutex
	ports   []netdev.GivenPort // as the keeper saw them last
	mac     net.HardwareAddr   // of the bridge
	exposed []netip.Prefix

	// run only.
	taken map[string]string       // MAC addresses that containers took, by port
	held  map[bindings.MAC]string // which port has each MAC address
	fault string                  // last logged
}

func newOwnBindings(bridge string, log *slog.Logger) *ownBindings {
	return &ownBindings{bridge: bridge, macs: netdev.PortMACs, log: log, wake: make(chan struct{}, 1), taken: make(map[string]string)}
}

// saw takes the ports of containers from what the keeper saw.
func (o *ownBindings) saw(v *netdev.View) {
	ports := netdev.GivenPorts(v)
	var mac net.HardwareAddr
	if l := v.Links[o.bridge]; l != nil {
		mac = l.MAC
	}
	same := func(a, b netdev.GivenPort) bool {
		return a.Name == b.Name && a.Index == b.Index && a.Owner == b.Owner && bytes.Equal(a.MAC, b.MAC) && slices.Equal(a.Addrs, b.Addrs)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.EqualFunc(ports, o.ports, same) && bytes.Equal(mac, o.mac) {
		return
	}
	o.ports, o.mac = ports, mac
	o.wakeUp()
}

// expose takes the addresses that the bridge must have.
func (o *ownBindings) expose(ps []netip.Prefix) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.exposed = ps
	o.wakeUp()
}

func (o *ownBindings) wakeUp() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run announces every change until ctx ends.
func (o *ownBindings) run(ctx context.Context) {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-sweep.C:
			o.look()
		}
		o.update()
	}
}

// look finds containers that took another MAC address than they were given.
func (o *ownBindings) look() {
	now, err := o.macs(o.bridge)
	if err != nil {
		o.log.Warn("the MAC addresses of containers could not be read", "err", err)
		return
	}
	o.mu.Lock()
	ports := o.ports
	o.mu.Unlock()
	taken := make(map[string]string)
	for _, p := range ports {
		mac := now[p.Name]
		if mac == nil || bytes.Equal(mac, p.MAC) {
			continue
		}
		taken[p.Name] = mac.String()
		if o.taken[p.Name] != mac.String() {
			attrs := []any{"owner", p.Owner, "port", p.Name, "given", p.MAC.String(), "mac", mac.String()}
			if o.guarded && !p.AllowSpoof {
				o.log.Warn("a container took another MAC address than it was given, and its frames are dropped: give it the address back, or attach it with --allow-spoof", attrs...)
			} else {
				o.log.Warn("a container took another MAC address than it was given; other hosts find it by learning", attrs...)
			}
		}
	}
	o.taken = taken
}

// update announces the bindings of this host. The daemon calls it once before run.
func (o *ownBindings) update() {
	o.mu.Lock()
	ports, mac, exposed := o.ports, o.mac, o.exposed
	o.mu.Unlock()
	list, held, faults := listBindings(ports, o.taken, o.held)
	o.held = held
	if b, ok := bindingOf(mac, bindings.Exposed, exposed); ok && len(exposed) > 0 {
		if port, twice := held[b.MAC]; twice {
			faults = append(faults, fmt.Sprintf("the container at the port %s was given the MAC address of the bridge", port))
			list = slices.DeleteFunc(list, func(c bindings.Binding) bool { return c.MAC == b.MAC })
		}
		list = append(list, b)
	}
	n := len(list)
	err := o.announce(list)
	for errors.Is(err, bindings.ErrFull) && len(list) > 0 {
		list = list[:len(list)/2]
		err = o.announce(list)
	}
	if err != nil {
		faults = append(faults, err.Error())
	}
	if len(list) < n {
		faults = append(faults, fmt.Sprintf("there are too many: only %d of %d are announced", len(list), n))
	}
	if fault := strings.Join(faults, "; "); fault != o.fault {
		o.fault = fault
		if fault != "" {
			o.log.Warn("some addresses of containers are not announced to other hosts, which find them by learning", "reason", fault)
		}
	}
}

// listBindings returns the bindings of ports of containers, except of those that took another MAC
// address. If two ports were given one MAC address, it is bound to the one that held it before. It
// returns which port holds each MAC address, and what is wrong.
func listBindings(ports []netdev.GivenPort, taken map[string]string, held map[bindings.MAC]string) (list []bindings.Binding, now map[bindings.MAC]string, faults []string) {
	now = make(map[bindings.MAC]string)
	for _, former := range []bool{true, false} {
		for _, p := range ports {
			b, ok := bindingOf(p.MAC, kindOf(p.Owner), p.Addrs)
			if !ok || taken[p.Name] != "" || (held[b.MAC] == p.Name) != former {
				continue
			}
			if other, twice := now[b.MAC]; twice {
				faults = append(faults, fmt.Sprintf("%s was given to two containers, at the ports %s and %s", b.MAC, other, p.Name))
				continue
			}
			now[b.MAC] = p.Name
			list = append(list, b)
		}
	}
	return list, now, faults
}

// kindOf returns what an owner of addresses is.
func kindOf(owner string) bindings.Kind {
	if strings.HasPrefix(owner, api.OwnerNetns) {
		return bindings.Port
	}
	return bindings.Container
}

// bindingOf returns the binding of a MAC address. Addresses that cannot be bound are left out. It is
// false if the MAC address cannot be bound.
func bindingOf(mac net.HardwareAddr, kind bindings.Kind, ps []netip.Prefix) (b bindings.Binding, ok bool) {
	if len(mac) != len(b.MAC) || !bindings.MAC(mac).IsUnicast() {
		return b, false
	}
	b = bindings.Binding{MAC: bindings.MAC(mac), Kind: kind}
	for _, p := range ps {
		if bindings.Bindable(p.Addr()) && !slices.Contains(b.Addrs, p.Addr()) && len(b.Addrs) < bindings.MaxAddrs {
			b.Addrs = append(b.Addrs, p.Addr())
		}
	}
	return b, true
}
