package fastpath_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
)

// slowSystem is a Machine on which attaching a program to a container takes long.
type slowSystem struct {
	*kerneltest.Machine
	attach time.Duration
}

func (s slowSystem) OpenKernel(o kernel.Options) (fastpath.Kernel, error) {
	k, err := s.Machine.OpenKernel(o)
	return slowKernel{k, s.attach}, err
}

type slowKernel struct {
	fastpath.Kernel
	attach time.Duration
}

func (k slowKernel) AttachContainer(ifindex int) error {
	time.Sleep(k.attach)
	return k.Kernel.AttachContainer(ifindex)
}

// Rules that are added while the controller waits for the kernel are in force soon after
// the wait, and the guard of the port does not wait at all.
func TestSlowKernelDoesNotDelayRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall = 10 * time.Second
		m := newMachine(t)
		r := startWith(t, m, slowSystem{m, stall}, defaults)
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
