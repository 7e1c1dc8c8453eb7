package fastpath_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/wire"
)

// While the kernel takes its time, the newest report about a neighbour replaces older
// ones, and a session that ended is not mistaken for the next.
func TestReportsAreCoalesced(t *testing.T) {
	willing := wire.Control{Type: wire.Fast, ShortID: 2, Port: port}
	for name, c := range map[string]struct {
		report func(r *router)
		way    kerneltest.Way
		known  bool
	}{
		"the same session":     {func(*router) {}, kerneltest.Express, true},
		"a session that ended": {func(r *router) { r.Down(nameOf(2)) }, kerneltest.Express, false},
		"ended and began":      {func(r *router) { r.Down(nameOf(2)); r.meet(2) }, kerneltest.Express, true},
		"ended, began, ended":  {func(r *router) { r.Down(nameOf(2)); r.meet(2); r.Down(nameOf(2)) }, kerneltest.Express, false},
		"unwilling":            {func(r *router) { r.Control(nameOf(2), wire.Control{Type: wire.Fast, Verdict: wire.FastOff}) }, kerneltest.ToRouter, true},
		"unwilling, then willing": {func(r *router) {
			r.Control(nameOf(2), wire.Control{Type: wire.Fast, Verdict: wire.FastOff})
			r.Control(nameOf(2), willing)
		}, kerneltest.Express, true},
		"unwilling, in an earlier session": {func(r *router) {
			r.Control(nameOf(2), wire.Control{Type: wire.Fast, Verdict: wire.FastOff})
			r.Down(nameOf(2))
			r.meet(2)
		}, kerneltest.Express, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWithPeer2(t, newMachine(t))
				r.want(kerneltest.Express, 2)
				resume := r.m.Stall()
				r.m.AddContainer(20) // the controller is in the kernel now
				synctest.Wait()
				c.report(r)
				resume()
				pass(time.Second)
				r.want(c.way, 2)
				if _, ok := r.Link(nameOf(2)); ok != c.known {
					t.Errorf("status of the link is there: %v", ok)
				}
			})
		})
	}
}

// While the kernel takes its time, Keeps is as the kernel forwards in the end.
func TestKeepsWhileReportsWait(t *testing.T) {
	for name, c := range map[string]struct {
		before func(r *router) // reports that the controller handles
		report func(r *router) // reports that wait
		keeps  bool
		way    kerneltest.Way
	}{
		"session ends": {
			func(*router) {},
			func(r *router) { r.Down(nameOf(2)) },
			true, kerneltest.Express,
		},
		"next session begins and ends": {
			func(r *router) { r.Down(nameOf(2)) },
			func(r *router) { r.meet(2); r.Down(nameOf(2)) },
			true, kerneltest.Express,
		},
		"next session begins, is routed, and ends": {
			func(r *router) { r.Down(nameOf(2)) },
			func(r *router) { r.meet(2); r.routes([]byte{2}, nil); r.Down(nameOf(2)); r.routes(nil, nil) },
			true, kerneltest.Express,
		},
		"session is replaced": {
			func(*router) {},
			func(r *router) { r.Down(nameOf(2)); r.meet(2) },
			true, kerneltest.Express,
		},
		"session is replaced and routed": {
			func(*router) {},
			func(r *router) { r.Down(nameOf(2)); r.meet(2); r.routes([]byte{2}, nil) },
			true, kerneltest.Express,
		},
		"session is replaced by one to another address": {
			func(*router) {},
			func(r *router) {
				s := sessionOf(2)
				s.Addr = addrOf(9)
				r.Down(nameOf(2))
				r.Up(nameOf(2), s)
				r.routes(nil, nil)
			},
			false, kerneltest.ToRouter,
		},
		"session ends after the path": {
			func(r *router) { r.silence(2, true); pass(5 * time.Second) },
			func(r *router) { r.Down(nameOf(2)); r.routes(nil, nil) },
			true, kerneltest.Express, // as there is no other way
		},
		"session ends long after the path": {
			func(r *router) { r.silence(2, true); pass(2 * time.Minute) },
			func(r *router) { r.Down(nameOf(2)); r.routes(nil, nil) },
			false, kerneltest.ToRouter,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWithPeer2(t, newMachine(t))
				r.want(kerneltest.Express, 2)
				c.before(r)
				pass(100 * time.Millisecond)
				resume := r.m.Stall()
				r.m.AddContainer(20)
				synctest.Wait()
				c.report(r)
				resume()
				pass(time.Second)
				r.want(c.way, 2)
				if r.Keeps(nameOf(2)) != c.keeps {
					t.Errorf("Keeps() is %v", !c.keeps)
				}
			})
		})
	}
}

// Whatever the router reports, and whenever: the MAC addresses behind a peer that no route
// leads to are known exactly as long as Keeps says, and Keeps is true wherever the kernel
// forwards.
func TestKeepsAfterRandomReports(t *testing.T) {
	rng := seed.Rand(t)
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		n, m := nameOf(2), macOf(2, 1)
		session, reached := false, false
		setRoutes := func(reach bool) { // as the router does
			was := reached
			if reached = reach; reach {
				r.routes([]byte{2}, nil)
			} else {
				r.routes(nil, nil)
			}
			if was && !reach && !r.Keeps(n) {
				r.macs.Forget(n)
			}
		}
		for step := range 2000 {
			resume := func() {}
			if rng.IntN(3) > 0 {
				resume = r.m.Stall()
				r.m.AddContainer(20)
				synctest.Wait()
			}
			for range rng.IntN(6) {
				switch rng.IntN(6) {
				case 0, 1:
					if session {
						r.Down(n)
					} else {
						r.meet(2)
					}
					session = !session
				case 2:
					setRoutes(!reached)
				case 3:
					setRoutes(reached)
				case 4:
					r.silence(2, rng.IntN(3) == 0)
				case 5:
					time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				}
			}
			resume()
			pass(5 * time.Second)
			fast := r.m.Way(2) != kerneltest.ToRouter
			_, known := r.macs.Lookup(m, r.m.BootTime())
			switch keeps := r.Keeps(n); {
			case reached:
			case fast && !keeps:
				t.Fatalf("step %d: the kernel forwards, and Keeps() is false", step)
			case known && !keeps:
				t.Fatalf("step %d: nobody forgot the MAC address", step)
			case keeps && !fast && !session:
				t.Fatalf("step %d: Keeps() is true for a peer that is away", step)
			}
			if reached || fast {
				r.macs.Learn(m, n, r.m.BootTime())
			}
		}
	})
}

// A slow call to the kernel does not make a peer silent: echoes that wait behind it count,
// and so does the answer to a probe that was sent late because of it.
func TestSlowKernelIsNotASilentPeer(t *testing.T) {
	for name, c := range map[string]struct{ until, stall time.Duration }{
		"an echo waits":       {rtt / 2, 1500 * time.Millisecond},
		"an echo waits long":  {rtt / 2, time.Minute},
		"no probe was sent":   {100 * time.Millisecond, 2500 * time.Millisecond},
		"for a long time":     {100 * time.Millisecond, time.Minute},
		"probe is due at end": {100 * time.Millisecond, 2900 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWithPeer2(t, newMachine(t))
				r.m.Log()
				time.Sleep(time.Second + c.until) // since the last probe was sent
				resume := r.m.Stall()
				r.m.AddContainer(20)
				time.Sleep(c.stall)
				resume()
				pass(3 * time.Second)
				r.want(kerneltest.Express, 2)
				r.never("peer 2: router")
			})
		})
	}
}

// A peer that fell silent meanwhile is found soon.
func TestPeerFallsSilentWhileTheKernelIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Second + 100*time.Millisecond)
		resume := r.m.Stall()
		r.m.AddContainer(20)
		r.silence(2, true)
		time.Sleep(10 * time.Second)
		resume()
		pass(1500 * time.Millisecond)
		r.want(kerneltest.ToRouter, 2)
	})
}

func TestOffDoesNothing(t *testing.T) {
	c := fastpath.Off(fastpath.ErrDisabled)
	if err := c.Run(t.Context()); err != nil {
		t.Error(err)
	}
	c.Up(nameOf(2), sessionOf(2))
	c.Control(nameOf(2), wire.Control{})
	c.Down(nameOf(2))
	c.Routes(&topology.Routes{})
	c.Learned(macOf(2, 1))
	if _, ok := c.Link(nameOf(2)); ok || c.Attached() || c.Keeps(nameOf(2)) || c.FDB() != nil || c.Echoed(fastpath.Echo{}) {
		t.Error("a fast path is there")
	}
	if s := c.Status(nil, nil); s.Mode != fastpath.Disabled || !errors.Is(s.Reason, fastpath.ErrDisabled) {
		t.Errorf("status %+v", s)
	}
	c.Close()
	c.Close()
}

func TestCloseLeavesTheKernelAtWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := open(t, m, defaults)
		r.Close() // it never ran
		r.Close()
		if err := r.Run(t.Context()); err == nil {
			t.Error("Run after Close is no error")
		}
		r = start(t, m, defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Second)
		r.stop()
		r.stop()
		r.want(kerneltest.Express, 2)
		r.meet(2, 3) // nobody listens, and nobody waits
		r.Learned(macOf(2, 1))
		if s := r.Status(nil, nil); s.Drops != nil || r.FDB() != nil {
			t.Errorf("counters are read after Close: %+v", s)
		}
		r = start(t, m, defaults)
		synctest.Wait()
		if err := r.Run(context.Background()); err == nil {
			t.Error("a second Run is no error")
		}
	})
}
