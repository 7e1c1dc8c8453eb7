package fastpath_test

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
)

// altered is a Machine on which a test alters some calls.
type altered struct {
	*kerneltest.Machine
	attach  time.Duration // how long it takes to attach a program to a container
	express atomic.Bool   // SetExpress fails
	list    atomic.Bool   // Containers fails
	put     atomic.Bool   // PutPeer fails
}

var errRefused = errors.New("refused by the test")

func (a *altered) OpenKernel(o kernel.Options) (fastpath.Kernel, error) {
	k, err := a.Machine.OpenKernel(o)
	return alteredKernel{k, a}, err
}

func (a *altered) Watch() (fastpath.Watch, error) {
	w, err := a.Machine.Watch()
	return alteredWatch{w, a}, err
}

type alteredKernel struct {
	fastpath.Kernel
	a *altered
}

func (k alteredKernel) AttachContainer(ifindex int) error {
	time.Sleep(k.a.attach)
	return k.Kernel.AttachContainer(ifindex)
}

func (k alteredKernel) SetExpress(on bool) error {
	if k.a.express.Load() {
		return errRefused
	}
	return k.Kernel.SetExpress(on)
}

func (k alteredKernel) PutPeer(id uint16, e kernel.PeerEntry) error {
	if k.a.put.Load() {
		return errRefused
	}
	return k.Kernel.PutPeer(id, e)
}

type alteredWatch struct {
	fastpath.Watch
	a *altered
}

func (w alteredWatch) Containers(bridge string, but ...string) ([]netdev.Port, error) {
	if w.a.list.Load() {
		return nil, errRefused
	}
	return w.Watch.Containers(bridge, but...)
}

// Rules that are added while the controller waits for the kernel are in force soon after
// the wait, and the guard of the port does not wait at all.
func TestSlowKernelDoesNotDelayRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall = 10 * time.Second
		m := newMachine(t)
		r := startWith(t, m, &altered{Machine: m, attach: stall}, defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(5 * time.Second)
		r.want(kerneltest.Express, 2)
		m.AddContainer(20)
		time.Sleep(time.Millisecond)
		m.SetFilter(netdev.Filter{}, nil) // a report that has to wait
		time.Sleep(stall / 2)
		m.SetFilter(netdev.Filter{Family: netdev.FilterBridge, Table: "wall"}, nil)
		m.FlushRules()
		pass(2 * time.Second)
		if !m.Guarded() {
			t.Error("nothing guards the port while the controller waits for the kernel")
		}
		pass(stall / 2) // up to 2 s after the wait
		r.want(kerneltest.Bridged, 2)

		// Changes after the wait are found as fast as ever.
		m.SetFilter(netdev.Filter{}, nil)
		pass(2 * time.Second)
		r.want(kerneltest.Express, 2)
		m.FlushRules()
		pass(2 * time.Second)
		if !m.Guarded() {
			t.Error("the guard of the port is not reinstalled after the wait")
		}
	})
}

// A switch of express that the kernel refuses is tried again, and status has the mode in
// force.
func TestExpressIsSwitchedAgainAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		a := &altered{Machine: m}
		r := startWith(t, m, a, defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Second)
		for _, c := range []struct {
			filter netdev.Filter
			before kerneltest.Way
			after  kerneltest.Way
			mode   fastpath.Mode
		}{
			{netdev.Filter{Family: netdev.FilterBridge, Table: "wall"}, kerneltest.Express, kerneltest.Bridged, fastpath.Express},
			{netdev.Filter{}, kerneltest.Bridged, kerneltest.Express, fastpath.Bridged},
		} {
			a.express.Store(true)
			m.SetFilter(c.filter, nil)
			pass(5 * time.Second)
			r.want(c.before, 2)
			if s := r.Status(nil, nil); s.Mode != c.mode {
				t.Errorf("status has mode %s, and frames go by %s", s.Mode, c.before)
			}
			a.express.Store(false)
			pass(3 * time.Second)
			r.want(c.after, 2)
		}
	})
}

// If the containers cannot be listed, routes are followed nevertheless, and the list is
// read again.
func TestContainersCannotBeListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		a := &altered{Machine: m}
		r := startWith(t, m, a, defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Second)
		a.list.Store(true)
		m.AddContainer(20)
		m.SetUnderlay(7, netdev.Underlay{Ethernet: true})
		m.SetRoute(addrOf(2), netdev.Hop{Ifindex: 7, Local: addrOf(1), Gateway: addrOf(2)})
		pass(time.Second)
		if got := m.Programs(); !slices.Equal(got, []int{7}) {
			t.Errorf("programs on %v, want one on the new way to the peer", got)
		}
		a.list.Store(false)
		pass(3 * time.Second)
		if got := m.Programs(); !slices.Equal(got, []int{7, 20}) {
			t.Errorf("programs on %v, want one on the container, too", got)
		}
	})
}

// An entry of the maps that the kernel refuses is written again, although nothing changes.
func TestTablesAreWrittenAgainAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		a := &altered{Machine: m}
		r := startWith(t, m, a, defaults)
		a.put.Store(true)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(5 * time.Second)
		r.want(kerneltest.ToRouter, 2)
		a.put.Store(false)
		pass(10 * time.Second)
		r.want(kerneltest.Express, 2)
	})
}

// Packets to neighbours have routes of their own, from the first probe on, which follow
// those of the host.
func TestOwnRoutesFollowTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, defaults)
		r.routes([]byte{2, 3}, nil)
		r.silence(2, true)
		r.meet(2, 3)
		pass(time.Second)
		want := func(gateways map[netip.Addr]netip.Addr) {
			t.Helper()
			got := m.OwnRoutes()
			if len(got) != len(gateways) {
				t.Errorf("routes %v, want to %v", got, gateways)
			}
			for to, via := range gateways {
				if h := got[to]; h.Gateway != via || h.MTU != 1500 || h.Ifindex != kerneltest.Uplink {
					t.Errorf("route to %v: %+v, want via %v", to, h, via)
				}
			}
		}
		want(map[netip.Addr]netip.Addr{addrOf(2): addrOf(2), addrOf(3): addrOf(3)})
		m.SetRoute(addrOf(3), netdev.Hop{Ifindex: kerneltest.Uplink, Local: addrOf(1), Gateway: addrOf(9)})
		pass(time.Second)
		want(map[netip.Addr]netip.Addr{addrOf(2): addrOf(2), addrOf(3): addrOf(9)})
		r.Down(nameOf(2))
		pass(time.Second)
		want(map[netip.Addr]netip.Addr{addrOf(3): addrOf(9)})
	})
}
