package cni

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// A pod that gives itself another address reaches nobody with it, unless its annotation or its
// network says that it may.
func TestPodsAreGuarded(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 1})
	harness.Launch(t, lab, 1)
	const annotations = "io.kubernetes.cri.pod-annotations"
	h := newCNIHost(t, lab, 1, "1.0.0", map[string]any{"capabilities": map[string]bool{annotations: true}})
	free := newCNIHost(t, lab, 1, "1.0.0", map[string]any{"allowSpoof": true})
	watch := h.mustAdd(h.pod("watch"))
	to := netip.AddrPortFrom(netip.MustParseAddr(watch.IPs[0].Address.IP.String()), 9999)
	var rx *net.UDPConn
	harness.Within(t, lab, harness.At(1, "watch"), func() (err error) {
		rx, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(to.Port())})
		return err
	})
	defer rx.Close()

	for name, c := range map[string]struct {
		host  *cniHost
		args  map[string]any
		allow bool
	}{
		"plain":     {h, nil, false},
		"refused":   {h, map[string]any{annotations: map[string]string{"weft.internal/allow-spoof": "no"}}, false},
		"annotated": {h, map[string]any{annotations: map[string]string{"weft.internal/allow-spoof": "true"}}, true},
		"network":   {free, nil, true},
	} {
		rc := c.host.pod(name)
		rc.CapabilityArgs = c.args
		c.host.mustAdd(rc)
		if got := spoofs(t, lab, rc, rx, to); got != c.allow {
			t.Errorf("%s: another address arrives: %v, want %v", name, got, c.allow)
		}
		list, err := api.NewClient(lab.Socket(1)).Attachments(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(a api.Attachment) bool { return a.ContainerID() == name })
		if i < 0 {
			t.Fatalf("%s is not attached: %+v", name, list)
		}
		harness.Eventually(t, "what was dropped is counted", func() bool {
			list, err := api.NewClient(lab.Socket(1)).Attachments(t.Context())
			return err == nil && list[i].AllowSpoof == c.allow && list[i].Spoofed > 0 == !c.allow
		})
		if err := c.host.del(rc); err != nil {
			t.Fatal(err)
		}
	}
}

// spoofs reports whether a datagram from an address that the pod gives itself arrives. Datagrams
// from its own address arrive before and after it.
func spoofs(t *testing.T, lab *testbed.Lab, rc *libcni.RuntimeConf, rx *net.UDPConn, to netip.AddrPort) (arrived bool) {
	t.Helper()
	other := netip.MustParseAddr("10.47.0.99")
	var own, foreign *net.UDPConn
	harness.Within(t, lab, harness.At(1, rc.ContainerID), func() error {
		l, err := netlink.LinkByName(rc.IfName)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: other.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
			return err
		}
		if own, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to)); err != nil {
			return err
		}
		foreign, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(other, 0)), net.UDPAddrFromAddrPort(to))
		return err
	})
	defer own.Close()
	defer foreign.Close()
	b := make([]byte, 100)
	// read reports whether a datagram with a text arrives, and whether a foreign one does before.
	read := func(text string) bool {
		for {
			n, from, err := rx.ReadFromUDPAddrPort(b)
			if err != nil {
				return false
			}
			arrived = arrived || from.Addr() == other
			if string(b[:n]) == text {
				return true
			}
		}
	}
	for i, deadline := 0, time.Now().Add(harness.Timeout); time.Now().Before(deadline); i++ {
		before, after := fmt.Sprint(rc.ContainerID, " before ", i), fmt.Sprint(rc.ContainerID, " after ", i)
		_ = rx.SetReadDeadline(time.Now().Add(time.Second))
		_, err := own.Write([]byte(before))
		if err != nil || !read(before) {
			continue
		}
		_, _ = foreign.Write([]byte("foreign"))
		if _, err := own.Write([]byte(after)); err == nil && read(after) {
			return arrived
		}
	}
	t.Fatal("no datagram from the pod's own address arrives")
	return false
}
