package fastpath_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/wire"
)

func TestLinkComesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.routes([]byte{2, 3}, map[byte]byte{3: 2})
		r.meet(2)
		pass(time.Second)
		r.want(kerneltest.Express, 2, 3) // 3 is behind 2
		s, ok := r.Link(nameOf(2))
		if !ok || !s.Up || s.Mode != fastpath.Express || s.Reason != nil || s.Encrypted || s.RTT != rtt || s.MTU != mtu {
			t.Errorf("status %+v", s)
		}
		if c := r.lastOffer(2); c.Type != wire.Fast || c.Verdict != wire.FastWilling || c.ShortID != 1 || c.Port != port {
			t.Errorf("offer %+v", c)
		}
		r.silence(2, true)
		pass(3 * time.Second)
		r.want(kerneltest.ToRouter, 2, 3)
		if id, ok := r.m.Remote(addrOf(2)); !ok || id != 2 {
			t.Error("a neighbour that does not answer may still send")
		}
	})
}

// The kernel gets from whom frames of other peers may come, also for a while after the
// routes changed.
func TestKernelKnowsWhoMayRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		relays := func(want ...uint16) {
			t.Helper()
			var padded [plan.MaxFrom]uint16
			copy(padded[:], want)
			if got := r.m.Peer(4).From; got != padded {
				t.Errorf("frames of peer 4 may come from %v, want %v", got, want)
			}
		}
		r.routes([]byte{2, 3, 4}, map[byte]byte{4: 2})
		r.meet(2, 3)
		pass(time.Second)
		relays(2)
		r.routes([]byte{2, 3, 4}, map[byte]byte{4: 3})
		pass(origin.Grace - time.Second)
		relays(2, 3)
		pass(time.Second)
		relays(3)
		r.routes([]byte{2, 3}, nil) // nothing leads to it
		pass(time.Second)
		relays()
	})
}

// A router that is replaced must not interrupt flows: what the kernel contains stays
// while the next router gets to know its neighbours.
func TestAdoptsWhatAnEarlierRouterLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.AddContainer(20)
		r := start(t, m, defaults)
		r.routes([]byte{2, 3}, nil)
		r.meet(2, 3)
		pass(time.Second)
		m.See(macOf(1, 1), 1, 20)
		r.macs.Learn(macOf(2, 1), nameOf(2), time.Hour+time.Second)
		r.Learned(macOf(2, 1))
		pass(time.Second)
		r.want(kerneltest.Express, 2, 3)
		r.stop()
		r.want(kerneltest.Express, 2, 3)
		m.Log()

		r = start(t, m, defaults)
		pass(10 * time.Second)
		r.want(kerneltest.Express, 2, 3) // nobody is known yet
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(10 * time.Second)
		r.want(kerneltest.Express, 2, 3)
		for _, a := range []struct {
			mac  [6]byte
			peer byte
		}{{macOf(1, 1), 1}, {macOf(2, 1), 2}} {
			if at, ok := r.macs.Lookup(a.mac, time.Hour); !ok || at != nameOf(a.peer) {
				t.Errorf("%x is not learned from the kernel", a.mac)
			}
		}
		pass(time.Minute)
		r.want(kerneltest.Express, 2)
		r.want(kerneltest.ToRouter, 3) // nobody confirmed it in time
		r.never("peer 2: router", "peer 2: deleted")
		if got := m.Programs(); !slices.Equal(got, []int{kerneltest.Uplink, 20}) {
			t.Errorf("programs on %v", got)
		}
	})
}

// What may no longer leave in clear text ends when the router opens the kernel, not when
// it knows its peers.
func TestAdoptsNothingThatMustBeEncrypted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, defaults)
		r.routes([]byte{2, 3}, nil)
		r.meet(2, 3)
		pass(time.Second)
		r.stop()
		s := defaults
		s.Encrypt, s.Trusted = true, []netip.Prefix{netip.PrefixFrom(addrOf(2), 32)}
		r = open(t, m, s)
		defer r.stop()
		r.want(kerneltest.Express, 2)
		r.want(kerneltest.ToRouter, 3)
		if _, ok := m.Remote(addrOf(3)); ok {
			t.Error("frames in clear text are still accepted from a peer outside the trusted subnets")
		}
	})
}

// What an earlier router left and nobody confirms goes also where nothing else happens.
func TestAdoptedEntriesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := startWithPeer2(t, m)
		r.stop()
		r = start(t, m, defaults)
		pass(time.Minute - time.Millisecond)
		r.want(kerneltest.Express, 2)
		pass(2 * time.Millisecond)
		r.want(kerneltest.ToRouter, 2)
		if _, ok := m.Remote(addrOf(2)); ok {
			t.Error("the address is still a neighbour's")
		}
	})
}

// Frames keep using the kernel when the session has ended and the peer's kernel echoes,
// wherever routes lead: that kernel accepts frames of this host from nobody else. Routes may
// change before the session ends.
func TestPeerWhoseRouterIsAwayStaysFast(t *testing.T) {
	for name, c := range map[string]struct {
		peers []byte
		over  map[byte]byte
		first bool // the routes change before the session ends
	}{
		"routes as they were":     {[]byte{2, 3}, nil, false},
		"without the peer":        {[]byte{3}, nil, false},
		"without the peer before": {[]byte{3}, nil, true},
		"over another":            {[]byte{2, 3}, map[byte]byte{2: 3}, false},
		"over another before":     {[]byte{2, 3}, map[byte]byte{2: 3}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newMachine(t), defaults)
				r.routes([]byte{2, 3}, nil)
				r.meet(2, 3)
				pass(time.Second)
				r.m.Log()
				r.macs.Learn(macOf(2, 1), nameOf(2), time.Hour)
				if c.first {
					r.routes(c.peers, c.over)
					pass(time.Second)
				}
				r.Down(nameOf(2))
				r.routes(c.peers, c.over)
				if !r.Keeps(nameOf(2)) {
					t.Error("Keeps() is false")
				}
				pass(time.Minute)
				r.wantOpen(2)
				if k, ok := r.Kept()[nameOf(2)]; !ok || k.Addr != addrOf(2) || time.Until(k.Until).Round(time.Minute) != 9*time.Minute {
					t.Errorf("status %+v", r.Kept())
				}
				if next := r.m.NextHop(2); next != addrOf(2) {
					t.Errorf("frames go to %s", next)
				}
				r.meet(2) // its router is back
				pass(time.Second)
				if len(r.Kept()) > 0 {
					t.Errorf("status of a session %+v", r.Kept())
				}
				r.routes([]byte{2, 3}, nil) // and sleeve, too
				pass(time.Second)
				r.want(kerneltest.Express, 2)
				r.never("peer 2: router", "peer 2: deleted", "peer 2: device")
			})
		})
	}
}

// A session that is replaced before the routes know that it ended, and routes that do not
// lead to a neighbour whose kernel answers: the kernel keeps forwarding, with the MAC
// addresses, until the neighbour's kernel is silent.
func TestSessionIsReplacedBeforeTheRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		m := macOf(2, 1)
		r.macs.Learn(m, nameOf(2), time.Hour)
		r.Learned(m)
		pass(time.Second)
		r.m.Log()
		r.Down(nameOf(2))
		r.meet(2)
		pass(100 * time.Millisecond)
		r.routes(nil, nil) // because of Down
		if !r.Keeps(nameOf(2)) {
			t.Error("Keeps() is false while the kernel forwards to the peer")
		}
		pass(time.Minute)
		r.want(kerneltest.Express, 2)
		r.never("peer 2: router", "peer 2: deleted")
		r.routes([]byte{2}, nil)
		pass(time.Second)
		r.want(kerneltest.Express, 2)
		r.routes(nil, nil)
		pass(time.Minute)
		r.want(kerneltest.Express, 2)
		r.never("peer 2: router", "peer 2: deleted")
		r.silence(2, true)
		pass(2 * time.Minute)
		r.want(kerneltest.ToRouter, 2)
		if _, known := r.macs.Lookup(m, time.Hour); known || r.Keeps(nameOf(2)) {
			t.Errorf("its MAC address is known: %v; kept: %v", known, r.Keeps(nameOf(2)))
		}
	})
}

// MAC addresses that a resumed session kept are forgotten when it ends with the path.
func TestResumedPeerThatGoesForGoodIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		m := macOf(2, 1)
		r.macs.Learn(m, nameOf(2), time.Hour)
		r.Learned(m)
		r.Down(nameOf(2))
		r.routes(nil, nil)
		pass(time.Second)
		r.meet(2)
		pass(time.Second)
		r.want(kerneltest.Express, 2)
		r.silence(2, true)
		pass(2 * time.Minute)
		r.want(kerneltest.ToRouter, 2)
		r.Down(nameOf(2))
		pass(time.Second)
		if _, known := r.macs.Lookup(m, time.Hour); known || r.Keeps(nameOf(2)) {
			t.Errorf("its MAC address is known: %v; kept: %v", known, r.Keeps(nameOf(2)))
		}
	})
}

// The kernel of a neighbour is silent. Frames take another way if they have one. If they have
// none, they keep going straight to it for a minute: on a busy host echoes are seconds late.
func TestSilentPathIsTheLastResort(t *testing.T) {
	for name, c := range map[string]struct {
		before  func(r *router) // while the kernel echoes
		over    map[byte]byte   // routes meanwhile
		reached bool
		next    netip.Addr // of frames, if the kernel forwards them
	}{
		"its router is away":          {func(r *router) { r.Down(nameOf(2)) }, nil, false, addrOf(2)},
		"a session without a link":    {func(*router) {}, nil, false, addrOf(2)},
		"away, a relay leads to it":   {func(r *router) { r.Down(nameOf(2)) }, map[byte]byte{2: 3}, true, addrOf(3)},
		"a session, and over a relay": {func(*router) {}, map[byte]byte{2: 3}, true, addrOf(3)},
		"a session, and sleeve":       {func(*router) {}, nil, true, netip.Addr{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newMachine(t), defaults)
				r.routes([]byte{2, 3}, nil)
				r.meet(2, 3)
				pass(time.Second)
				m := macOf(2, 1)
				r.macs.Learn(m, nameOf(2), time.Hour)
				r.Learned(m)
				c.before(r)
				if c.reached {
					r.routes([]byte{2, 3}, c.over)
				} else {
					r.Routes(unreached(r.routesTo([]byte{2, 3}, nil), 2))
				}
				pass(time.Second)
				r.m.Log()
				way := func() {
					t.Helper()
					want := kerneltest.ToRouter
					if c.next.IsValid() {
						want = kerneltest.Express
					}
					r.want(want, 2)
					if next := r.m.NextHop(2); c.next.IsValid() && next != c.next {
						t.Errorf("frames go to %s, want %s", next, c.next)
					}
				}
				r.silence(2, true)
				pass(5 * time.Second)
				way()
				if !c.reached && !r.Keeps(nameOf(2)) {
					t.Error("Keeps() is false")
				}
				if len(r.Kept()) > 0 {
					t.Errorf("status says that the path works: %+v", r.Kept())
				}
				pass(50 * time.Second)
				way()
				if !c.reached {
					r.silence(2, false)
					pass(20 * time.Second)
					way()
					r.never("peer 2: router", "peer 2: deleted", "peer 2: device")
					r.wantMAC(2)
					r.silence(2, true)
				}
				pass(65 * time.Second)
				if c.reached {
					way()
					return
				}
				r.want(kerneltest.ToRouter, 2)
				if _, known := r.macs.Lookup(m, time.Hour); known || r.Keeps(nameOf(2)) {
					t.Errorf("its MAC address is known: %v; kept: %v", known, r.Keeps(nameOf(2)))
				}
			})
		})
	}
}

// A path that was silent for long is used again when the kernel answers, though the router of the
// neighbour is still away.
func TestPathComesBackBeforeTheRouter(t *testing.T) {
	for name, before := range map[string]bool{"silent before the end": true, "silent after the end": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWithPeer2(t, newMachine(t))
				down := func() {
					r.Down(nameOf(2))
					r.routes(nil, nil)
					pass(time.Second)
				}
				if !before {
					down()
				}
				r.silence(2, true)
				pass(70 * time.Second)
				r.want(kerneltest.ToRouter, 2)
				if before {
					down()
				}
				r.silence(2, false)
				pass(20 * time.Second)
				r.want(kerneltest.Express, 2)
				if !r.Keeps(nameOf(2)) {
					t.Error("the path is not kept")
				}
				r.meet(2)
				r.routes([]byte{2}, nil)
				pass(time.Second)
				r.want(kerneltest.Express, 2)
				r.Down(nameOf(2))
				r.routes(nil, nil)
				pass(10*time.Minute + time.Second)
				r.want(kerneltest.ToRouter, 2)
			})
		})
	}
}

func TestPeerThatGoesForGoodIsForgotten(t *testing.T) {
	for name, silent := range map[string]bool{"its kernel ends too": true, "its router stays away": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWithPeer2(t, newMachine(t))
				// The kernel keeps the address in use, or it would age.
				m := macOf(2, 1)
				r.macs.Learn(m, nameOf(2), time.Hour)
				r.Learned(m)
				r.Down(nameOf(2))
				r.routes(nil, nil)
				r.silence(2, silent)
				if silent {
					pass(70 * time.Second)
				} else {
					for range 10 {
						pass(time.Minute)
						r.m.See(m, 2, 0)
					}
					pass(time.Second)
				}
				r.want(kerneltest.ToRouter, 2)
				if _, known := r.macs.Lookup(m, time.Hour); known || r.Keeps(nameOf(2)) {
					t.Errorf("its MAC address is known: %v; kept: %v", known, r.Keeps(nameOf(2)))
				}
			})
		})
	}
}

// Rules that filter bridged frames must see them: express is switched off and on with
// the rules, in the kernel and in status.
func TestExpressFollowsTheRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		for range 3 {
			for _, f := range []struct {
				filter netdev.Filter
				err    error
				text   string
			}{
				{netdev.Filter{Family: netdev.FilterBridge, Table: "wall"}, nil, "table bridge wall"},
				{netdev.Filter{}, errors.New("no permission"), "no permission"}, // there may be rules
			} {
				r.m.SetFilter(f.filter, f.err)
				pass(5 * time.Second)
				r.want(kerneltest.Bridged, 2)
				if s, _ := r.Link(nameOf(2)); !s.Up || s.Mode != fastpath.Bridged || !errors.Is(s.Reason, fastpath.ErrFiltered) || !strings.Contains(s.Reason.Error(), f.text) {
					t.Errorf("status with rules: %+v", s)
				}
				if s := r.Status(nil, nil); s.Mode != fastpath.Bridged || !errors.Is(s.Reason, fastpath.ErrFiltered) {
					t.Errorf("status of the host with rules: %+v", s)
				}
			}
			r.m.SetFilter(netdev.Filter{}, nil)
			pass(5 * time.Second)
			r.want(kerneltest.Express, 2)
			if s, _ := r.Link(nameOf(2)); s.Mode != fastpath.Express || s.Reason != nil {
				t.Errorf("status without rules: %+v", s)
			}
		}
	})
}

// Where the underlay is not what express needs, the VXLAN device or the bridge is used.
func TestModesOfAPeer(t *testing.T) {
	network := netip.MustParsePrefix("192.0.2.0/24")
	for name, c := range map[string]struct {
		change func(m *kerneltest.Machine, s *fastpath.Settings)
		way    kerneltest.Way
		mode   fastpath.Mode
		kind   error
		reason string
	}{
		"all is well": {func(*kerneltest.Machine, *fastpath.Settings) {}, kerneltest.Express, fastpath.Express, nil, ""},
		"--no-express": {
			func(_ *kerneltest.Machine, s *fastpath.Settings) { s.NoExpress = true },
			kerneltest.Device, fastpath.Device, fastpath.ErrDisabled, "switched off by --no-express",
		},
		"--no-express-to": {
			func(_ *kerneltest.Machine, s *fastpath.Settings) { s.NoExpressTo = []netip.Prefix{network} },
			kerneltest.Device, fastpath.Device, fastpath.ErrDisabled, "switched off by --no-express-to",
		},
		"kernel lacks express": {
			func(m *kerneltest.Machine, _ *fastpath.Settings) { m.RefuseExpress(errors.New("no such helper")) },
			kerneltest.Device, fastpath.Device, fastpath.ErrUnsupported, "no such helper",
		},
		"IPsec": {
			func(m *kerneltest.Machine, _ *fastpath.Settings) { m.SetIPsec(network) },
			kerneltest.Device, fastpath.Device, fastpath.ErrUnderlay, "IPsec",
		},
		"no Ethernet": {
			func(m *kerneltest.Machine, _ *fastpath.Settings) {
				m.SetUnderlay(kerneltest.Uplink, netdev.Underlay{})
			},
			kerneltest.Device, fastpath.Device, fastpath.ErrUnderlay, "Ethernet",
		},
		"rules and no express": {
			func(m *kerneltest.Machine, s *fastpath.Settings) {
				s.NoExpress = true
				m.SetFilter(netdev.Filter{Family: netdev.FilterBridge, Table: "wall"}, nil)
			},
			kerneltest.Device, fastpath.Device, fastpath.ErrDisabled, "switched off by --no-express",
		},
		"--no-fastdp": {
			func(_ *kerneltest.Machine, s *fastpath.Settings) { s.Off = true },
			kerneltest.ToRouter, fastpath.Disabled, fastpath.ErrDisabled, "switched off by --no-fastdp",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, s := newMachine(t), defaults
				c.change(m, &s)
				r := start(t, m, s)
				r.routes([]byte{2}, nil)
				r.meet(2)
				pass(time.Second)
				r.want(c.way, 2)
				st, _ := r.Link(nameOf(2))
				if st.Mode != c.mode || !errors.Is(st.Reason, c.kind) || c.kind != nil && !strings.Contains(st.Reason.Error(), c.reason) {
					t.Errorf("status %+v, want %s", st, c.mode)
				}
			})
		})
	}
}

// A card that computes wrong checksums inside VXLAN is found by the first probe.
func TestWrongChecksumsOfACard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.setCard(true)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(2 * time.Second)
		r.want(kerneltest.Device, 2)
		if !r.m.SoftwareChecksums() {
			t.Error("checksums are left to the card")
		}
		r.m.RemoveDevices() // which leaves them to the card again
		pass(2 * time.Second)
		if !r.m.SoftwareChecksums() {
			t.Error("checksums are left to the card after a repair")
		}
	})
}

// What other programs remove comes back.
func TestRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		r.m.RemoveDevices()
		pass(time.Second)
		if !r.m.Echoes(addrOf(2)) {
			t.Error("the devices are not made again")
		}
		r.m.FlushRules()
		pass(time.Second)
		if !r.m.Guarded() {
			t.Error("the rules that guard the port are not reinstalled")
		}
		r.m.Log()
		r.m.RemovePeer(2)
		pass(2 * time.Second)
		r.want(kerneltest.Express, 2)
		if log := r.m.Log(); !slices.Contains(log, "peer 2: fast to "+addrOf(2).String()+", express") {
			t.Errorf("the entry is not written again: %q", log)
		}
	})
}

func TestContainersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		r.m.AddContainer(20)
		r.m.AddContainer(21)
		pass(time.Second)
		programs := func(want ...int) {
			t.Helper()
			if got := r.m.Programs(); !slices.Equal(got, want) {
				t.Errorf("programs on %v, want %v", got, want)
			}
		}
		programs(kerneltest.Uplink, 20, 21)
		for i, ifindex := range []int{20, 21} {
			r.m.See(macOf(1, byte(i)), 1, ifindex)
		}
		pass(time.Second)
		entry := func(i byte, ifindex int, known bool) {
			t.Helper()
			if e, ok := r.m.MAC(macOf(1, i)); ok != known || int(e.Ifindex) != ifindex || (e.Flags&kernel.MACExpress != 0) != (ifindex != 0) {
				t.Errorf("container %d: %+v, %v", i, e, ok)
			}
		}
		entry(0, 20, true)
		entry(1, 21, true)
		// A queueing discipline limits one: express would bypass it.
		r.m.LimitContainer(20)
		r.m.RemoveInterface(21)
		pass(time.Second)
		programs(kerneltest.Uplink)
		entry(0, 0, true)
		entry(1, 0, false)
		if _, known := r.macs.Lookup(macOf(1, 1), time.Hour); known {
			t.Error("the MAC address of a container that left is known")
		}
	})
}

// Without the kernel's support the router does without, and neighbours get the reason.
func TestKernelRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		refuse   func(*kerneltest.Machine)
		attached bool
	}{
		"everything": {func(m *kerneltest.Machine) { m.RefuseKernel(kernel.ErrUnsupported) }, false},
		"VXLAN":      {func(m *kerneltest.Machine) { m.RefuseVXLAN(kernel.ErrUnsupported) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				c.refuse(m)
				r := start(t, m, defaults)
				r.routes([]byte{2}, nil)
				r.meet(2)
				pass(time.Minute)
				if r.Attached() != c.attached {
					t.Errorf("Attached() = %v", !c.attached)
				}
				r.want(kerneltest.ToRouter, 2)
				if offer := r.lastOffer(2); offer.Verdict != wire.FastNoKernel {
					t.Errorf("offer %+v", offer)
				}
				if s, ok := r.Link(nameOf(2)); !ok || s.Up || !errors.Is(s.Reason, fastpath.ErrUnsupported) || !errors.Is(s.Reason, kernel.ErrUnsupported) {
					t.Errorf("status %+v", s)
				}
				if s := r.Status(nil, nil); s.Mode != fastpath.Unsupported || !errors.Is(s.Reason, fastpath.ErrUnsupported) {
					t.Errorf("status of the host %+v", s)
				}
			})
		})
	}
}

// A neighbour that carries frames is found silent within 0.6 s, and the router hears at once
// that echoes are late. An idle neighbour is probed once a second.
func TestTrafficMakesProbesFrequent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, defaults)
		r.routes([]byte{2, 3, 4}, map[byte]byte{4: 2}) // frames to peer 4 use the link with peer 2
		r.meet(2, 3)
		pass(2 * time.Second)
		r.mu.Lock()
		up := r.up[nameOf(2)] && r.up[nameOf(3)]
		r.mu.Unlock()
		if !up {
			t.Fatal("the router does not know that the fast path is in use")
		}
		for range 30 {
			m.Carry(4, 10)
			pass(100 * time.Millisecond)
		}
		r.silence(2, true)
		r.silence(3, true)
		pass(605 * time.Millisecond)
		r.want(kerneltest.ToRouter, 2, 4)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.up[nameOf(2)] || r.checks[nameOf(2)] != 1 {
			t.Errorf("peer 2: in use %v, %d checks", r.up[nameOf(2)], r.checks[nameOf(2)])
		}
		if !r.up[nameOf(3)] {
			t.Error("the path to peer 3, which carries nothing, was given up in 0.6 s")
		}
	})
}
