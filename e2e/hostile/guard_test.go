package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
)

// robbery is a mesh of two hosts. A container of h1 sends frames with the addresses of others, one
// of which is on its host and one on h2:
//
//	h1: thief, near        h2: far
type robbery struct {
	*testbed.Lab
	t     *testing.T
	thief *harness.Wire
	mac   [6]byte // of the thief
	addr  netip.Addr
	preys []*prey
	sent  uint32
}

// prey is a container that may be deceived.
type prey struct {
	what string
	*harness.Wire
	mac  [6]byte
	addr netip.Addr
}

func newRobbery(t *testing.T, flags ...string) *robbery {
	t.Helper()
	r := &robbery{t: t, Lab: harness.New(t, testbed.Config{Hosts: 2, Flags: flags})}
	harness.Launch(t, r.Lab, 1)
	harness.Launch(t, r.Lab, 2, testbed.Addr4(1).String())
	harness.Converge(t, r.Lab)
	r.addr = harness.AddContainer(t, r.Lab, 1, "thief")[0].Addr()
	r.thief = harness.OpenWire(t, r.Lab, harness.At(1, "thief"), netdev.IfaceName)
	r.mac = r.macOf(harness.At(1, "thief"))
	for what, host := range map[string]int{"near": 1, "far": 2} {
		p := &prey{what: what, addr: harness.AddContainer(t, r.Lab, host, what)[0].Addr()}
		p.Wire, p.mac = harness.OpenWire(t, r.Lab, harness.At(host, what), netdev.IfaceName), r.macOf(harness.At(host, what))
		r.preys = append(r.preys, p)
		harness.Reach(t, r.Lab, harness.At(1, "thief"), p.addr)
	}
	return r
}

func (r *robbery) macOf(place testbed.Place) (mac [6]byte) {
	r.t.Helper()
	harness.Within(r.t, r.Lab, place, func() error {
		i, err := net.InterfaceByName(netdev.IfaceName)
		if err == nil {
			mac = [6]byte(i.HardwareAddr)
		}
		return err
	})
	return mac
}

// datagram is a frame with a UDP packet, which has a number.
func (r *robbery) datagram(dst, src [6]byte, from, to netip.Addr) []byte {
	r.sent++
	ip := []byte{0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip))
	udp := append([]byte{0, 9, 0, 9, 0, 40, 0, 0}, make([]byte, 32)...)
	binary.BigEndian.PutUint32(udp[8:], r.sent)
	return slices.Concat(dst[:], src[:], []byte{8, 0}, ip, udp)
}

// arrives sends frames, and a datagram of the thief's own behind them, until that arrives at p. It
// reports whether one of the frames arrived too.
func (r *robbery) arrives(p *prey, frames ...[]byte) (arrived bool) {
	r.t.Helper()
	b := make([]byte, 1<<16)
	for deadline := time.Now().Add(harness.Timeout); time.Now().Before(deadline); {
		mark := r.datagram(p.mac, r.mac, r.addr, p.addr)
		for _, f := range append(slices.Clone(frames), mark) {
			if err := r.thief.Send(f); err != nil {
				r.t.Fatal(err)
			}
		}
		for marked := false; !marked; {
			n, err := p.Read(b)
			if err != nil {
				break // the mark is lost, or late
			}
			marked = bytes.Equal(b[:n], mark)
			arrived = arrived || slices.ContainsFunc(frames, func(f []byte) bool { return bytes.Equal(b[:n], f) })
			if marked {
				return arrived
			}
		}
	}
	r.t.Fatalf("%s: no datagram of the thief's own arrives", p.what)
	return false
}

// spoofed are frames for p with the addresses of the other one.
func (r *robbery) spoofed(p *prey) map[string][]byte {
	other := r.preys[0]
	if other == p {
		other = r.preys[1]
	}
	all := [6]byte{255, 255, 255, 255, 255, 255}
	arp := func(mac [6]byte, a netip.Addr) []byte {
		m := slices.Concat([]byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, mac[:], a.AsSlice(), p.mac[:], p.addr.AsSlice())
		return slices.Concat(all[:], r.mac[:], m, make([]byte, 18))
	}
	linkLocal := func(m [6]byte) []byte {
		return []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}
	}
	v6 := func(src []byte, next byte, payload ...byte) []byte {
		group := [16]byte{0xff, 2, 15: 1}
		head := []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(payload)), next, 255}
		return slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, r.mac[:], head, src, group[:], payload)
	}
	own := linkLocal(r.mac)
	advert := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, linkLocal(other.mac), []byte{2, 1}, r.mac[:])
	datagram := r.datagram(p.mac, r.mac, other.addr, p.addr)
	return map[string][]byte{
		"mac":       r.datagram(p.mac, other.mac, r.addr, p.addr),
		"ipv4":      datagram,
		"arp":       arp(r.mac, other.addr),
		"arp, mac":  arp(other.mac, r.addr),
		"ipv6":      v6(linkLocal(other.mac), 17, make([]byte, 8)...),
		"nd":        v6(own, 58, advert...),
		"nd hidden": v6(own, 0, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, advert...)...),
		"router":    v6(own, 58, 134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0),
		"fragment":  v6(own, 44, append([]byte{58, 0, 0, 1, 0, 0, 0, 1}, advert...)...),
		"tagged":    slices.Concat(datagram[:12], []byte{0x81, 0, 0, 0}, datagram[12:]),
	}
}

// nothingArrives checks that no spoofed frame arrives anywhere.
func (r *robbery) nothingArrives(when string) {
	r.t.Helper()
	for _, p := range r.preys {
		for what, frame := range r.spoofed(p) {
			// A tag is no part of what a packet socket shows.
			if what == "tagged" {
				plain := slices.Concat(frame[:12], frame[16:])
				if r.arrives(p, frame, plain) {
					r.t.Errorf("%s: %s is deceived: %s", when, p.what, what)
				}
				continue
			}
			if r.arrives(p, frame) {
				r.t.Errorf("%s: %s is deceived: %s", when, p.what, what)
			}
		}
	}
}

// port returns the port of the thief.
func (r *robbery) port() (p netdev.GivenPort) {
	r.t.Helper()
	harness.Within(r.t, r.Lab, harness.At(1, ""), func() error {
		v, err := netdev.ReadView()
		if err != nil {
			return err
		}
		for _, g := range netdev.GivenPorts(v) {
			if bytes.Equal(g.MAC, r.mac[:]) {
				p = g
			}
		}
		return nil
	})
	return p
}

// A container cannot send with the addresses of others, of its host or another, by whatever way
// frames go. The host says who tries.
func TestSpoofedFramesAreDropped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode  string
		flags []string
		is    func(t *testing.T, r *robbery) bool
	}{
		{"sleeve", []string{"--no-fastdp"}, nil},
		{"device", []string{"--no-express"}, fastdpIs(false)},
		{"bridged", nil, fastdpIs(false)},
		{"express", nil, fastdpIs(true)},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			r := newRobbery(t, c.flags...)
			if c.mode == "bridged" {
				for h := 1; h <= 2; h++ {
					harness.Within(t, r.Lab, harness.At(h, ""), testbed.FilterBridged)
				}
			}
			if c.is != nil {
				harness.Eventually(t, "mode "+c.mode, func() bool { return c.is(t, r) })
			}
			r.nothingArrives(c.mode)
			r.isNamed()
		})
	}
}

// fastdpIs reports whether both hosts use the fast datapath, with express or without.
func fastdpIs(express bool) func(*testing.T, *robbery) bool {
	return func(t *testing.T, r *robbery) bool {
		for h := 1; h <= 2; h++ {
			if l := harness.Link(t, r.Lab, h, harness.At(3-h, "").String()); l.Kind != "fastdp" || l.Express != express {
				return false
			}
		}
		return true
	}
}

// isNamed checks that the host says that the thief spoofs, and in how many words.
func (r *robbery) isNamed() {
	r.t.Helper()
	port := r.port()
	var report *api.Report
	harness.Eventually(r.t, "the thief is named", func() bool {
		report = summary(r.t, r.Lab, 1, api.NoLists)
		return slices.ContainsFunc(report.SpoofGuard.Containers, func(s api.Spoofing) bool { return s.Frames["tagged"] > 0 && s.Frames["nd"] > 0 })
	})
	list := report.SpoofGuard.Containers
	if len(list) != 1 || list[0].Port != port.Name || list[0].ID != port.Owner || list[0].Last == "" {
		r.t.Errorf("dropped are frames of %+v, want those of %s", list, port.Name)
	}
	for _, reason := range []string{"mac", "ipv4", "ipv6", "arp", "nd", "router", "malformed", "tagged"} {
		if list[0].Frames[reason] == 0 {
			r.t.Errorf("no frame is counted for %s: %v", reason, list[0].Frames)
		}
	}
	if !slices.ContainsFunc(report.Warnings, func(w string) bool { return strings.Contains(w, port.Name) && strings.Contains(w, "--allow-spoof") }) {
		r.t.Errorf("no warning: %q", report.Warnings)
	}
	log, err := os.ReadFile(r.LogFile(1))
	if err != nil {
		r.t.Fatal(err)
	}
	if n := strings.Count(string(log), "sends with addresses that are not its own"); n < 1 || n > 1+int(time.Since(began)/time.Minute) {
		r.t.Errorf("%d lines of the log name a container", n)
	}
}

var began = time.Now()

// The guard works without a router, is repaired, and can be switched off for a container.
func TestSpoofGuardStays(t *testing.T) {
	t.Parallel()
	r := newRobbery(t)
	port := r.port()
	deceived := func(p *prey) bool { return r.arrives(p, r.spoofed(p)["ipv4"]) }

	if err := r.Kill(1); err != nil {
		t.Fatal(err)
	}
	near := r.preys[slices.IndexFunc(r.preys, func(p *prey) bool { return p.what == "near" })]
	if deceived(near) {
		t.Error("a spoofed frame arrives while no router runs")
	}
	harness.Launch(t, r.Lab, 1, testbed.Addr4(2).String())
	harness.Converge(t, r.Lab)
	r.nothingArrives("after a restart of the router")

	harness.Within(t, r.Lab, harness.At(1, ""), func() error {
		l, err := link.LoadPinnedLink(fmt.Sprintf("%s/bpf/guard/port-%d", r.HostDir(1), port.Index), nil)
		if err == nil {
			return errors.Join(l.Detach(), l.Close())
		}
		return netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: port.Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 6783, Handle: 1, Protocol: unix.ETH_P_ALL,
		}})
	})
	if err := poll.Until(time.Second+harness.Slack, 20*time.Millisecond, poll.True(func() bool { return !deceived(near) })); err != nil {
		t.Error("the guard was removed, and is not repaired")
	}
	harness.Eventually(t, "the repair is counted", func() bool {
		return summary(t, r.Lab, 1, api.NoLists).Kernel.Repairs["spoof_guard"] > 0
	})

	// A second address counts from the moment when it is given until it is taken.
	more, err := api.ParseAddress("10.32.200.1/12")
	if err != nil {
		t.Fatal(err)
	}
	client, request := api.NewClient(r.Socket(1)), api.AttachRequest{Netns: r.Netns(harness.At(1, "thief")), Addresses: []api.Address{more}}
	for _, c := range []struct {
		change func(context.Context, api.AttachRequest) ([]netip.Prefix, error)
		want   bool
	}{{client.Attach, true}, {client.Detach, false}} {
		ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
		defer cancel()
		if _, err := c.change(ctx, request); err != nil {
			t.Fatal(err)
		}
		if r.arrives(near, r.datagram(near.mac, r.mac, more.Prefix.Addr(), near.addr)) != c.want {
			t.Errorf("a second address: a frame from it arrives: %v, want %v", !c.want, c.want)
		}
	}

	harness.AllowSpoof(t, r.Lab, harness.At(1, "thief"), true)
	for _, p := range r.preys {
		if !deceived(p) {
			t.Errorf("%s: no frame of a container that may spoof arrives", p.what)
		}
	}
	allowed := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
		defer cancel()
		list, err := api.NewClient(r.Socket(1)).Attachments(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(a api.Attachment) bool { return a.MAC == net.HardwareAddr(r.mac[:]).String() && a.AllowSpoof })
	}
	harness.Eventually(t, "the container is known to spoof", allowed)
	if err := r.Kill(1); err != nil {
		t.Fatal(err)
	}
	harness.Launch(t, r.Lab, 1, testbed.Addr4(2).String())
	harness.Converge(t, r.Lab)
	if !deceived(near) || !allowed() {
		t.Error("a restart forgets that the container may spoof")
	}
	harness.AllowSpoof(t, r.Lab, harness.At(1, "thief"), false)
	r.nothingArrives("after it was switched on again")
}
