package fastpath_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/mac"
)

// A MAC address that only the kernel sees stays, one that neither saw for long goes from
// both tables, and one whose place the two have differently is written again.
func TestMACsAgeByTheirUseInTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.m.AddContainer(20)
		r.routes([]byte{2, 3}, nil)
		r.meet(2, 3)
		pass(time.Second)
		since := func() time.Duration { return r.m.BootTime() } // both begin an hour before the test
		own, heard, silent, moved := macOf(1, 1), macOf(2, 2), macOf(2, 3), macOf(2, 4)
		r.m.See(own, 1, 20)
		pass(time.Second)
		for _, m := range [][6]byte{heard, silent, moved} {
			r.macs.Learn(m, nameOf(2), since())
			r.Learned(m)
		}
		pass(time.Second)
		r.macs.Learn(moved, nameOf(3), since()) // and Learned was lost
		for range 15 {
			pass(time.Minute)
			r.m.See(own, 1, 20)
			r.m.See(heard, 2, 0)
			r.macs.Learn(moved, nameOf(3), since())
		}
		pass(2 * time.Minute)
		for _, c := range []struct {
			what string
			mac  [6]byte
			peer byte
		}{{"of this host", own, 1}, {"that the kernel hears", heard, 2}, {"that nobody hears", silent, 0}, {"that the router hears elsewhere", moved, 3}} {
			at, known := r.macs.Lookup(c.mac, since())
			if known != (c.peer != 0) || known && at != nameOf(c.peer) {
				t.Errorf("an address %s is behind %v in the table, %v", c.what, at, known)
			}
			if e, ok := r.m.MAC(c.mac); ok != known || e.Peer != uint16(c.peer) {
				t.Errorf("an address %s is behind peer %d in the kernel, %v", c.what, e.Peer, ok)
			}
		}
	})
}

// A container whose address is seen behind another peer has moved there, and is no
// longer reached by its old veth.
func TestMACMovesToAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.m.AddContainer(20)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Second)
		m := macOf(1, 1)
		r.m.See(m, 1, 20)
		pass(time.Second)
		if e, _ := r.m.MAC(m); e.Peer != 1 || e.Ifindex != 20 || e.Flags != kernel.MACExpress {
			t.Errorf("at first %+v", e)
		}
		r.m.See(m, 2, 0)
		pass(time.Second)
		if e, _ := r.m.MAC(m); e.Peer != 2 || e.Ifindex != 0 || e.Flags != 0 {
			t.Errorf("after the move %+v", e)
		}
		r.m.See(macOf(9, 9), 77, 0) // behind a peer that nobody knows
		pass(time.Second)
		if _, ok := r.m.MAC(macOf(9, 9)); ok {
			t.Error("an address of an unknown peer is written")
		}
	})
}

// What the kernel sees elsewhere does not move an address that is bound, and the kernel's map follows
// a binding that moves at once.
func TestBoundMACInTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.m.AddContainer(20)
		r.routes([]byte{2, 3}, nil)
		r.meet(2, 3)
		pass(time.Second)
		m := macOf(1, 1)
		want := func(what string, peer uint16, ifindex uint32) {
			t.Helper()
			pass(10 * time.Millisecond)
			if e, _ := r.m.MAC(m); e.Peer != peer || e.Ifindex != ifindex {
				t.Errorf("%s: %+v, want peer %d and interface %d", what, e, peer, ifindex)
			}
		}
		r.macs.Bind(m, nameOf(1))
		r.m.See(m, 1, 20)
		want("a container of this host", 1, 20)
		r.m.See(m, 2, 0)
		want("a thief behind another host", 1, 20)
		bind := func(n byte) {
			if r.macs.Bind(m, nameOf(n)) {
				r.Learned(m)
			}
		}
		bind(3)
		want("it moved to another host", 3, 0)
		r.m.See(m, 1, 20)
		want("seen at its former place", 3, 0)
		bind(1)
		want("it came back", 1, 0)
		r.m.See(m, 1, 20)
		want("it is seen again", 1, 20)
	})
}

// A queueing discipline that limits a container is found by the next comparison, too.
func TestMACsThatExpressLeadsPastALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.AddContainer(20)
		r := startWithPeer2(t, m)
		m.See(macOf(1, 1), 1, 20)
		pass(time.Second)
		r.stop()
		m.LimitContainer(20) // while no router runs
		r = start(t, m, defaults)
		r.routes([]byte{2}, nil)
		pass(2 * time.Minute)
		if e, ok := m.MAC(macOf(1, 1)); ok && e.Ifindex != 0 {
			t.Errorf("express bypasses the limit: %+v", e)
		}
	})
}

// The queue of learned addresses is bounded. What it has no space for is counted, and
// reaches the kernel all the same.
func TestLearnedNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		resume := r.m.Stall()
		const count = 3000
		for i := range count {
			m := [6]byte{2, 0, 0, 1, byte(i >> 8), byte(i)}
			r.macs.Learn(m, nameOf(2), r.m.BootTime())
			r.Learned(m)
		}
		r.Down(nameOf(2)) // nor do these
		r.meet(2)
		r.routes([]byte{2}, nil)
		resume()
		pass(time.Second)
		if n := r.Status(nil, nil).Overflows; n == 0 {
			t.Error("no overflow is counted")
		}
		for i := range count {
			m := [6]byte{2, 0, 0, 1, byte(i >> 8), byte(i)}
			if e, ok := r.m.MAC(m); !ok || e.Peer != 2 {
				t.Fatalf("address %d: %+v, %v", i, e, ok)
			}
		}
		r.want(kerneltest.Express, 2)
	})
}

// Where a container's address was is forgotten with the address: when it is seen again, by
// the router, it may be elsewhere.
func TestVethIsForgottenWithTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.m.AddContainer(20)
		r.routes([]byte{2}, nil)
		pass(time.Second)
		m := macOf(1, 1)
		r.m.See(m, 1, 20)
		pass(time.Second)
		if e, _ := r.m.MAC(m); e.Ifindex != 20 {
			t.Fatalf("entry %+v", e)
		}
		pass(mac.MaxAge + 2*time.Minute)
		if _, ok := r.m.MAC(m); ok {
			t.Fatal("the address is still known")
		}
		r.macs.Learn(m, nameOf(1), time.Hour+mac.MaxAge+3*time.Minute)
		r.Learned(m)
		pass(time.Second)
		if e, ok := r.m.MAC(m); !ok || e.Ifindex != 0 || e.Flags&kernel.MACExpress != 0 {
			t.Errorf("entry %+v", e)
		}
	})
}
