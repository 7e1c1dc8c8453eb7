package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// cniHost runs the plugin on a host of a lab as a container runtime does, through
// libcni.
type cniHost struct {
	t    testing.TB
	lab  *testbed.Lab
	host int
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func newCNIHost(t testing.TB, lab *testbed.Lab, host int, version string, conf map[string]any) *cniHost {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"weft-cni", "weft-ipam"} {
		if err := os.Symlink(exe, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	plugin := map[string]any{
		"type": "weft-cni", "socket": lab.Socket(host), "stateDir": lab.StateDir(host),
		"capabilities": map[string]bool{"ips": true, "mac": true},
	}
	maps.Copy(plugin, conf)
	b, err := json.Marshal(map[string]any{"cniVersion": version, "name": "pods", "plugins": []any{plugin}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	// Otherwise libcni makes it at its first use, which is not safe for many at once.
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	return &cniHost{t, lab, host, libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), exec), list}
}

// pod makes a namespace.
func (h *cniHost) pod(name string) *libcni.RuntimeConf {
	h.t.Helper()
	p := harness.At(h.host, name)
	if err := h.lab.AddNamespace(p); err != nil {
		h.t.Fatal(err)
	}
	return &libcni.RuntimeConf{ContainerID: name, NetNS: h.lab.Netns(p), IfName: "eth0"}
}

func (h *cniHost) do(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), harness.ConvergeTimeout)
	defer cancel()
	return netdev.Do(h.lab.Netns(harness.At(h.host, "")), func() error { return f(ctx) })
}

func (h *cniHost) add(rc *libcni.RuntimeConf) (*current.Result, error) {
	var r types.Result
	err := h.do(func(ctx context.Context) (err error) {
		r, err = h.cni.AddNetworkList(ctx, h.list, rc)
		return err
	})
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(r)
}

func (h *cniHost) mustAdd(rc *libcni.RuntimeConf) *current.Result {
	h.t.Helper()
	r, err := h.add(rc)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *cniHost) del(rc *libcni.RuntimeConf) error {
	return h.do(func(ctx context.Context) error { return h.cni.DelNetworkList(ctx, h.list, rc) })
}

func (h *cniHost) check(rc *libcni.RuntimeConf) error {
	return h.do(func(ctx context.Context) error { return h.cni.CheckNetworkList(ctx, h.list, rc) })
}

func (h *cniHost) leases() []api.Lease {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), harness.StepTimeout)
	defer cancel()
	list, err := api.NewClient(h.lab.Socket(h.host)).Leases(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	return list
}

func (h *cniHost) wantLeases(n int) {
	h.t.Helper()
	if got := h.leases(); len(got) != n {
		h.t.Errorf("leases: %+v, want %d", got, n)
	}
}

// code is that of a plugin's error, 0 for none.
func code(err error) uint {
	if e := (*types.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// wantBinding wants a host to know soon at which MAC address on h1 an address is, nowhere for "".
func wantBinding(t *testing.T, lab *testbed.Lab, host int, a netip.Addr, mac string) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("h%d knows that %s is at %q", host, a, mac), func() bool {
		for _, b := range harness.Report(t, lab, host).Bindings.Entries {
			if slices.Contains(b.Addresses, a) {
				return b.MAC == mac && b.Kind == "container" && b.NickName == "h1" && b.Refused == ""
			}
		}
		return mac == ""
	})
}

func TestCNIVerbs(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	far := harness.AddContainer(t, lab, 2, "far")[0].Addr()
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		h := newCNIHost(t, lab, 1, version, nil)
		rc := h.pod("pod" + strings.ReplaceAll(version, ".", ""))
		r := h.mustAdd(rc)
		if len(r.IPs) != 1 || len(r.Interfaces) != 2 || r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Sandbox != rc.NetNS || *r.IPs[0].Interface != 1 {
			t.Fatalf("%s: %+v", version, r)
		}
		place := harness.At(1, rc.ContainerID)
		harness.Reach(t, lab, place, far)
		// The default route leads to the host, and the host reaches the pod.
		gw, _ := netip.AddrFromSlice(r.IPs[0].Gateway)
		harness.Reach(t, lab, place, gw.Unmap())
		harness.Reach(t, lab, place, testbed.Addr4(1))
		own, _ := netip.AddrFromSlice(r.IPs[0].Address.IP)
		harness.Reach(t, lab, harness.At(1, ""), own.Unmap())
		harness.Reach(t, lab, place, own.Unmap())
		h.wantLeases(1)
		wantBinding(t, lab, 2, own.Unmap(), r.Interfaces[1].Mac)
		if version != "0.3.1" {
			if err := h.check(rc); err != nil {
				t.Errorf("%s: check: %v", version, err)
			}
		}
		// As after a crash of the runtime.
		if again := h.mustAdd(rc); again.IPs[0].Address.String() != r.IPs[0].Address.String() || again.Interfaces[1].Mac != r.Interfaces[1].Mac {
			t.Errorf("%s: added again, %+v became %+v", version, r, again)
		}
		for range 2 {
			if err := h.del(rc); err != nil {
				t.Errorf("%s: del: %v", version, err)
			}
			h.wantLeases(0)
		}
		wantBinding(t, lab, 2, own.Unmap(), "")
		err := netdev.Do(rc.NetNS, func() error { _, err := netlink.LinkByName("eth0"); return err })
		if !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("%s: after del eth0 is there: %v", version, err)
		}
	}
}

// Configurations of the first versions of the specification, whose results have addresses
// only, and those without a version.
func TestFirstCNIVersions(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	for i, version := range []string{"", "0.1.0", "0.2.0", "0.3.0"} {
		h := newCNIHost(t, lab, 1, version, nil)
		rc := h.pod(fmt.Sprint("pod", i))
		r := h.mustAdd(rc)
		if len(r.IPs) != 1 {
			t.Fatalf("version %q: %+v", version, r)
		}
		gw, _ := netip.AddrFromSlice(r.IPs[0].Gateway)
		harness.Reach(t, lab, harness.At(1, rc.ContainerID), gw.Unmap())
		if err := h.del(rc); err != nil {
			t.Errorf("version %q: del: %v", version, err)
		}
		h.wantLeases(0)
	}
}

func TestCNICheckFindsWhatIsGone(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	for n, c := range []struct {
		words string
		spoil func(l netlink.Link, rc *libcni.RuntimeConf, r *current.Result) error
	}{
		{"lost its address", func(l netlink.Link, _ *libcni.RuntimeConf, r *current.Result) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: &r.IPs[0].Address})
		}},
		{"route 0.0.0.0/0 is missing", func(l netlink.Link, _ *libcni.RuntimeConf, r *current.Result) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: r.IPs[0].Gateway, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
		}},
		{"has MAC address", func(l netlink.Link, _ *libcni.RuntimeConf, _ *current.Result) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9})
		}},
		{"is not on bridge", func(l netlink.Link, _ *libcni.RuntimeConf, _ *current.Result) error { return netlink.LinkDel(l) }},
		{"the router has not allocated", func(_ netlink.Link, rc *libcni.RuntimeConf, _ *current.Result) error {
			_, err := api.NewClient(lab.Socket(1)).Release(context.Background(), api.LeaseRequest{Owner: "cni:pods:" + rc.ContainerID + ":eth0"})
			return err
		}},
	} {
		rc := h.pod(fmt.Sprint("pod", n))
		r := h.mustAdd(rc)
		if err := h.check(rc); err != nil {
			t.Errorf("%s: before: %v", c.words, err)
		}
		err := netdev.Do(rc.NetNS, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return c.spoil(l, rc, r)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.check(rc); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", c.words, err)
		}
		if err := h.del(rc); err != nil {
			t.Errorf("%s: del: %v", c.words, err)
		}
	}
	h.wantLeases(0)
}

// DEL frees addresses, with or without the pod and the router.
func TestCNIDelWorksWithoutPodOrRouter(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	gone := h.pod("gone")
	h.mustAdd(gone)
	if err := netdev.DeleteNS(strings.TrimPrefix(gone.NetNS, "/run/netns/")); err != nil {
		t.Fatal(err)
	}
	if err := h.del(gone); err != nil {
		t.Error(err)
	}
	h.wantLeases(0)
	if err := h.del(h.pod("never")); err != nil {
		t.Error(err)
	}

	early, back := h.pod("early"), h.pod("back")
	h.mustAdd(early)
	was := h.mustAdd(back)
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	for _, rc := range []*libcni.RuntimeConf{early, back} {
		if err := h.del(rc); err != nil {
			t.Errorf("without a router: %v", err)
		}
	}
	if _, err := h.add(h.pod("late")); code(err) != types.ErrTryAgainLater {
		t.Errorf("without a router: code %d, %v", code(err), err)
	}
	if err := h.do(func(ctx context.Context) error { return h.status(ctx) }); code(err) != types.ErrPluginNotAvailable {
		t.Errorf("status without a router: code %d, %v", code(err), err)
	}
	harness.Launch(t, lab, 1)
	// A pod that is added again before the router noticed its end keeps its addresses.
	now := h.mustAdd(back)
	harness.Eventually(t, "the address of the one that left is free", func() bool { return len(h.leases()) == 1 })
	if err := h.check(back); err != nil {
		t.Errorf("was %v, is %v: %v", was.IPs[0], now.IPs[0], err)
	}
}

// status uses the newest version, because older ones have no such verb.
func (h *cniHost) status(ctx context.Context) error {
	list := *h.list
	list.CNIVersion = "1.1.0"
	return h.cni.GetStatusNetworkList(ctx, &list)
}

func TestCNIGarbage(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.1.0", nil)
	a, b := h.pod("a"), h.pod("b")
	h.mustAdd(a)
	h.mustAdd(b)
	if err := h.do(h.status); err != nil {
		t.Error(err)
	}
	collect := func(valid ...types.GCAttachment) {
		t.Helper()
		err := h.do(func(ctx context.Context) error {
			return h.cni.GCNetworkList(ctx, h.list, &libcni.GCArgs{ValidAttachments: valid})
		})
		if err != nil {
			t.Error(err)
		}
	}
	collect(types.GCAttachment{ContainerID: "a", IfName: "eth0"}, types.GCAttachment{ContainerID: "b", IfName: "eth1"})
	if got := h.leases(); len(got) != 1 || got[0].Owner != "cni:pods:a:eth0" {
		t.Errorf("leases: %+v", got)
	}
	// GC of a runtime that knows no attachment frees those of its own network only.
	other := newCNIHost(t, lab, 1, "1.1.0", nil)
	other.list.Name = "others"
	other.mustAdd(other.pod("c"))
	harness.AddContainer(t, lab, 1, "attached")
	owned := func() int { return harness.Report(t, lab, 1).IPAM.ActiveIPs }
	before := owned()
	collect()
	if got := h.leases(); len(got) != 1 || got[0].Owner != "cni:others:c:eth0" {
		t.Errorf("leases: %+v", got)
	}
	if got := owned(); got != before-1 {
		t.Errorf("%d addresses are in use, %d were; want one less", got, before)
	}
}

func TestCNIRefusesAndLeavesNothing(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	for n, c := range []struct {
		conf  map[string]any
		args  map[string]any
		code  uint
		words string
	}{
		{map[string]any{"mtu": -1}, nil, types.ErrInvalidNetworkConfig, "mtu -1"},
		{map[string]any{"ipam": map[string]any{"subnet": "10.32"}}, nil, types.ErrInvalidNetworkConfig, "ipam.subnet"},
		{map[string]any{"ipam": map[string]any{"gateway": "x"}}, nil, types.ErrInvalidNetworkConfig, "ipam.gateway"},
		{map[string]any{"bridge": "nobridge", "mtu": 1376}, nil, types.ErrInternal, "nobridge"},
		{map[string]any{"bridge": "nobridge"}, nil, types.ErrTryAgainLater, "nobridge"},
		{map[string]any{"ipam": map[string]any{"subnet": "192.168.0.0/16"}}, nil, types.ErrInternal, "outside the range"},
		{nil, map[string]any{"ips": []string{"10.32.0.9"}}, types.ErrInvalidNetworkConfig, "runtimeConfig.ips"},
		{nil, map[string]any{"mac": "1"}, types.ErrInvalidNetworkConfig, "runtimeConfig.mac"},
		{map[string]any{"ipam": map[string]any{"routes": []any{map[string]any{"dst": "10.99.0.0/16", "gw": "203.0.113.1"}}}}, nil, types.ErrInternal, "10.99.0.0/16"},
	} {
		h := newCNIHost(t, lab, 1, "1.0.0", c.conf)
		rc := h.pod(fmt.Sprint("pod", n))
		rc.CapabilityArgs = c.args
		if _, err := h.add(rc); code(err) != c.code || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%v %v: code %d, want %d: %v", c.conf, c.args, code(err), c.code, err)
		}
		h.wantLeases(0)
		err := netdev.Do(rc.NetNS, func() error { _, err := netlink.LinkByName("eth0"); return err })
		if !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("%v: eth0 is left: %v", c.conf, err)
		}
	}
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	own := &libcni.RuntimeConf{ContainerID: "host", NetNS: lab.Netns(harness.At(1, "")), IfName: "eth9"}
	if _, err := h.add(own); code(err) != types.ErrInvalidNetNS {
		t.Errorf("host's namespace: code %d, %v", code(err), err)
	}
	h.wantLeases(0)
}

func TestCNIRequestedSettings(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1, Flags: []string{"--ipalloc-range6", "fd32::/64"}})
	h := newCNIHost(t, lab, 1, "1.0.0", map[string]any{"mtu": 1300, "dns": map[string]any{"nameservers": []string{"10.96.0.10"}}})
	both := h.pod("both")
	r := h.mustAdd(both)
	if len(r.IPs) != 2 || len(r.Routes) != 2 || r.IPs[0].Address.IP.To4() == nil || r.IPs[1].Address.IP.To4() != nil || r.DNS.Nameservers[0] != "10.96.0.10" {
		t.Errorf("two ranges: %+v", r)
	}
	if err := h.check(both); err != nil {
		t.Error(err)
	}
	for _, ip := range r.IPs {
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		harness.Reach(t, lab, harness.At(1, "both"), gw.Unmap())
	}
	rc := h.pod("fixed")
	rc.CapabilityArgs = map[string]any{"ips": []string{"10.32.7.7/12"}, "mac": "02:42:00:00:00:07"}
	r = h.mustAdd(rc)
	if len(r.IPs) != 1 || r.IPs[0].Address.String() != "10.32.7.7/12" || r.Interfaces[1].Mac != "02:42:00:00:00:07" || r.Interfaces[1].Mtu != 1300 {
		t.Errorf("address and MAC: %+v, %+v", r.IPs[0], r.Interfaces[1])
	}
	other := h.pod("other")
	other.CapabilityArgs = map[string]any{"ips": []string{"10.32.7.7/12"}}
	if _, err := h.add(other); err == nil {
		t.Error("one address was given twice")
	}
	h = newCNIHost(t, lab, 1, "1.0.0", map[string]any{"isDefaultGateway": false})
	if r := h.mustAdd(h.pod("alone")); len(r.Routes) != 0 || r.IPs[0].Gateway != nil {
		t.Errorf("no default gateway: %+v", r)
	}
	h = newCNIHost(t, lab, 1, "1.0.0", map[string]any{"ipam": map[string]any{
		"subnet": "10.40.0.0/16", "gateway": "10.40.0.99", "routes": []any{map[string]any{"dst": "10.99.0.0/16"}},
	}})
	rc = h.pod("routed")
	if r := h.mustAdd(rc); len(r.Routes) != 1 || r.IPs[0].Gateway.String() != "10.40.0.99" || !netip.MustParsePrefix("10.40.0.0/16").Contains(netip.MustParseAddr(r.IPs[0].Address.IP.String())) {
		t.Errorf("own routes: %+v", r)
	}
	if err := h.check(rc); err != nil {
		t.Error(err)
	}
	// Addresses only, for another plugin's interface.
	h = newCNIHost(t, lab, 1, "1.0.0", map[string]any{"type": "weft-ipam"})
	rc = h.pod("addresses")
	if r := h.mustAdd(rc); len(r.IPs) != 2 || len(r.Interfaces) != 0 {
		t.Errorf("addresses only: %+v", r)
	}
	if err := errors.Join(h.check(rc), h.del(rc)); err != nil {
		t.Error(err)
	}
}

// The result of earlier plugins in a chain reaches the later ones.
func TestCNIInAChain(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	conf := map[string]any{
		"type": "weft-cni", "socket": lab.Socket(1), "stateDir": lab.StateDir(1), "isDefaultGateway": false,
	}
	first := h.pod("first")
	r := h.mustAdd(first)
	// Each plugin gets the result of the one before it.
	prev, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	conf["prevResult"], conf["cniVersion"], conf["name"] = json.RawMessage(prev), "1.0.0", "second"
	b, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	net2, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	var got types.Result
	rc := &libcni.RuntimeConf{ContainerID: "first", NetNS: first.NetNS, IfName: "eth1"}
	err = h.do(func(ctx context.Context) (err error) { got, err = h.cni.AddNetwork(ctx, net2, rc); return err })
	if err != nil {
		t.Fatal(err)
	}
	all, err := current.NewResultFromResult(got)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, i := range all.Interfaces {
		names = append(names, i.Name)
	}
	if len(names) != 4 || names[1] != "eth0" || names[3] != "eth1" || len(all.IPs) != 2 || *all.IPs[1].Interface != 3 || len(all.Routes) != 1 {
		t.Errorf("interfaces %v, %+v", names, all)
	}
}

func TestCNIManyAtOnce(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	const pods = 100
	var rcs []*libcni.RuntimeConf
	for n := range pods {
		rcs = append(rcs, h.pod(fmt.Sprint("p", n)))
	}
	all := func(f func(rc *libcni.RuntimeConf) error) {
		t.Helper()
		var wg sync.WaitGroup
		for _, rc := range rcs {
			wg.Go(func() {
				if err := f(rc); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	all(func(rc *libcni.RuntimeConf) error { _, err := h.add(rc); return err })
	var addrs []netip.Prefix
	for _, l := range h.leases() {
		addrs = append(addrs, l.Addresses...)
	}
	slices.SortFunc(addrs, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	if n := len(slices.Compact(addrs)); n != pods {
		t.Errorf("%d addresses for %d pods", n, pods)
	}
	all(h.del)
	h.wantLeases(0)
}
