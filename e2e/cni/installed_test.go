package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/kube"
)

// chainedFolder contains the chained plugins where they cannot be built, as in the virtual
// machine of `make test-vm`.
const chainedFolder = "testdata/chained"

// chainedPlugins puts the plugins of the CNI project that the image contains into a
// directory.
func chainedPlugins(t testing.TB, dir string) {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		if err := os.CopyFS(dir, os.DirFS(chainedFolder)); err != nil {
			t.Fatal(err)
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "tool")
	cmd.Dir, cmd.Env = "../../prog/weft-kube/chained", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the chained plugins: %v\n%s", err, out)
	}
}

// installedCNI is a host with the files that the agent installs on a Node.
type installedCNI struct {
	*cniHost
	conflist string // the file
	said     string // the file with the verbs of weft-cni's calls, one a line
}

func installCNI(t *testing.T, lab *testbed.Lab, host int) *installedCNI {
	t.Helper()
	h := newCNIHost(t, lab, host, "1.0.0", nil)
	dir := t.TempDir()
	chainedPlugins(t, dir)
	i := &installedCNI{cniHost: h, said: filepath.Join(dir, "said")}
	script := fmt.Sprintf("#!/bin/sh\necho \"$CNI_COMMAND\" >>%q\nexec %q\n", i.said, filepath.Join(h.cni.Path[0], "weft-cni"))
	program := filepath.Join(dir, "weft-cni")
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	plugin := &kube.Plugin{Program: program, BinDir: t.TempDir(), ConfDir: t.TempDir(), Hairpin: true}
	if _, err := plugin.Install(); err != nil {
		t.Fatal(err)
	}
	files, err := libcni.ConfFiles(plugin.ConfDir, []string{".conflist"})
	if err != nil || len(files) != 1 {
		t.Fatalf("configurations %q, %v", files, err)
	}
	i.conflist, h.cni.Path = files[0], []string{plugin.BinDir}
	i.load(nil)
	return i
}

// load reads the configuration as a runtime does, lets edit change it, and points it at
// the lab's router.
func (i *installedCNI) load(edit func(conf map[string]any)) {
	i.t.Helper()
	b, err := os.ReadFile(i.conflist)
	if err != nil {
		i.t.Fatal(err)
	}
	if edit != nil {
		var conf map[string]any
		if err := json.Unmarshal(b, &conf); err != nil {
			i.t.Fatal(err)
		}
		edit(conf)
		if b, err = json.Marshal(conf); err != nil {
			i.t.Fatal(err)
		}
	}
	if i.list, err = libcni.ConfListFromBytes(b); err != nil {
		i.t.Fatal(err)
	}
	i.list.Plugins[0], err = libcni.InjectConf(i.list.Plugins[0], map[string]any{
		"socket": i.lab.Socket(i.host), "stateDir": i.lab.StateDir(i.host),
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

// beforeChoice is the configuration as a runtime sees it that does not know version 1.1.0
// and therefore ignores `cniVersions`.
func beforeChoice(conf map[string]any) { delete(conf, "cniVersions") }

// wantVerbs wants the plugin to have been called with these verbs since the last time.
func (i *installedCNI) wantVerbs(want ...string) {
	i.t.Helper()
	b, err := os.ReadFile(i.said)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		i.t.Fatal(err)
	}
	if got := strings.Fields(string(b)); !slices.Equal(got, want) {
		i.t.Errorf("weft-cni was called by %q, want %q", got, want)
	}
	if err := os.RemoveAll(i.said); err != nil {
		i.t.Fatal(err)
	}
}

func (i *installedCNI) askStatus() error {
	return i.do(func(ctx context.Context) error { return i.cni.GetStatusNetworkList(ctx, i.list) })
}

func (i *installedCNI) collect(valid ...types.GCAttachment) error {
	return i.do(func(ctx context.Context) error {
		return i.cni.GCNetworkList(ctx, i.list, &libcni.GCArgs{ValidAttachments: valid})
	})
}

// A runtime uses the newest version that it knows of the installed configuration: a runtime
// that knows STATUS and GC calls both, and an older one stays with 1.0.0.
func TestInstalledCNISpeaksToOldAndNewRuntimes(t *testing.T) {
	t.Parallel()
	i := installCNI(t, harness.Up(t, testbed.Config{Hosts: 1}), 1)
	old, kept, gone := i.pod("old"), i.pod("kept"), i.pod("gone")

	i.load(beforeChoice)
	if i.list.CNIVersion != "1.0.0" {
		t.Errorf("a runtime from before 1.1.0 takes version %s", i.list.CNIVersion)
	}
	if r := i.mustAdd(old); len(r.IPs) != 1 {
		t.Errorf("added by 1.0.0: %+v", r)
	}
	if err := errors.Join(i.check(old), i.askStatus()); err != nil {
		t.Error(err)
	}
	i.wantVerbs("ADD", "CHECK")

	// The runtime is replaced by one that knows 1.1.0. Its pods stay.
	i.load(nil)
	if i.list.CNIVersion != "1.1.0" {
		t.Errorf("a runtime of 1.1.0 takes version %s", i.list.CNIVersion)
	}
	i.mustAdd(kept)
	i.mustAdd(gone)
	if err := errors.Join(i.check(old), i.askStatus()); err != nil {
		t.Error(err)
	}
	i.wantVerbs("ADD", "ADD", "CHECK", "STATUS")
	valid := []types.GCAttachment{{ContainerID: "old", IfName: "eth0"}, {ContainerID: "kept", IfName: "eth0"}}
	if err := i.collect(valid...); err != nil {
		t.Error(err)
	}
	i.wantVerbs("DEL", "GC") // for the pod that is down, and for all
	i.wantLeases(2)

	if err := i.check(old); err != nil {
		t.Error(err)
	}
	i.wantVerbs("CHECK")

	// A runtime that lost its record of the other pods.
	i.cni = libcni.NewCNIConfigWithCacheDir(i.cni.Path, t.TempDir(), nil)
	if err := i.collect(valid[:1]...); err != nil {
		t.Error(err)
	}
	i.wantVerbs("GC")
	if got := i.leases(); len(got) != 1 || got[0].Owner != "cni:weft:old:eth0" {
		t.Errorf("leases: %+v", got)
	}
	if err := i.del(old); err != nil {
		t.Error(err)
	}
	i.wantLeases(0)
}

// A Node stays ready while its router is replaced, and not while it is away for longer.
func TestInstalledCNIStatusWaitsForTheRouter(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	i := installCNI(t, lab, 1)
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() { asked <- i.askStatus() }()
	harness.Eventually(t, "the plugin is asked", func() bool { _, err := os.Stat(i.said); return err == nil })
	harness.Launch(t, lab, 1)
	if err := <-asked; err != nil {
		t.Errorf("status while the router is replaced: %v", err)
	}
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	if err := i.askStatus(); code(err) != types.ErrPluginNotAvailable {
		t.Errorf("status without a router: code %d, %v", code(err), err)
	}
}

// A pod that is made while the router is replaced waits for it, and does not fail.
func TestInstalledCNIAddWaitsForTheRouter(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	for _, end := range []struct {
		how string
		end func() error
	}{
		{"killed", func() error { return lab.Kill(1) }},
		{"stopped", func() error { harness.Weft(t, lab, 1, "stop"); return nil }},
	} {
		if err := end.end(); err != nil {
			t.Fatal(err)
		}
		added := make(chan error, 1)
		rc := h.pod(end.how)
		go func() { _, err := h.add(rc); added <- err }()
		harness.Launch(t, lab, 1)
		if err := <-added; err != nil {
			t.Errorf("%s: ADD while the router is replaced: %v", end.how, err)
		}
	}
}

// limits are a pod's bandwidth limits in bits per second; 0 is none.
type limits struct{ ingress, egress int }

func (l limits) capability() map[string]any {
	set := make(map[string]int)
	for way, rate := range map[string]int{"ingress": l.ingress, "egress": l.egress} {
		if rate > 0 {
			set[way+"Rate"], set[way+"Burst"] = rate, 8<<20
		}
	}
	return map[string]any{"bandwidth": set}
}

// shaper returns the token bucket of an interface of the host.
func (i *installedCNI) shaper(iface string) *netlink.Tbf {
	i.t.Helper()
	var found *netlink.Tbf
	err := i.do(func(context.Context) error {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		list, err := netdev.Dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
		for _, q := range list {
			if tbf, ok := q.(*netlink.Tbf); ok {
				found = tbf
			}
		}
		return err
	})
	if err != nil || found == nil {
		i.t.Fatalf("no token bucket on %s, %v", iface, err)
	}
	return found
}

// The chained plugin limits what a pod receives and sends, also on a host that uses express:
// everything that a pod of another host sends to it crosses one token bucket, and everything
// that it sends crosses the other.
func TestBandwidthOfAPodIsLimited(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	far := harness.AddContainer(t, lab, 2, "far")[0].Addr()
	near := harness.AddContainer(t, lab, 1, "near")[0].Addr()
	harness.FastdpBetween(t, lab, 1, 2)
	i := installCNI(t, lab, 1)
	// Without TCX the kernel refuses the plugin's ingress qdisc if a program of weft is there
	// already.
	sender := i.pod("sender")
	sender.CapabilityArgs = limits{egress: 1e6}.capability()
	r := i.mustAdd(sender)
	if out := i.shaper(r.Interfaces[len(r.Interfaces)-1].Name).Rate * 8; out != 1e6 {
		t.Errorf("%d bits a second go out; want 1000000", out)
	}
	if err := i.del(sender); err != nil {
		t.Error(err)
	}
	rc := i.pod("shaped")
	want := limits{ingress: 400e6, egress: 800e6}
	rc.CapabilityArgs = want.capability()
	r = i.mustAdd(rc)
	veth, ifb := r.Interfaces[0].Name, r.Interfaces[len(r.Interfaces)-1].Name
	if in, out := i.shaper(veth).Rate*8, i.shaper(ifb).Rate*8; in != uint64(want.ingress) || out != uint64(want.egress) {
		t.Errorf("%s lets %d bits a second through, %s %d; want %+v", veth, in, ifb, out, want)
	}
	pod, _ := netip.AddrFromSlice(r.IPs[0].Address.IP)
	for _, c := range []struct {
		from, to testbed.Place
		addr     netip.Addr
		by       string
	}{
		{harness.At(2, "far"), harness.At(1, "shaped"), pod.Unmap(), veth},
		{harness.At(1, "shaped"), harness.At(2, "far"), far, ifb},
		{harness.At(1, "near"), harness.At(1, "shaped"), pod.Unmap(), veth},
		{harness.At(1, "shaped"), harness.At(1, "near"), near, ifb},
	} {
		harness.Reach(t, lab, c.from, c.addr)
		before := i.shaper(c.by).Statistics.Basic.Bytes
		s := harness.StartStream(t, lab, c.from, c.to, c.addr)
		harness.Eventually(t, "the stream carries", func() bool { return s.Received.Load() > 2<<20 })
		s.Whole(t)
		if through := i.shaper(c.by).Statistics.Basic.Bytes - before; through < s.Received.Load() {
			t.Errorf("%s to %s: %d bytes arrived, and %d of them by %s", c.from, c.to, s.Received.Load(), through, c.by)
		}
	}
	if err := i.check(rc); err != nil {
		t.Error(err)
	}
	if err := i.del(rc); err != nil {
		t.Error(err)
	}
	i.wantNothingOf(rc, veth, ifb)
}

// wantNothingOf wants neither addresses nor interfaces.
func (i *installedCNI) wantNothingOf(rc *libcni.RuntimeConf, ifaces ...string) {
	i.t.Helper()
	i.wantLeases(0)
	gone := func(name string) error {
		l, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		return fmt.Errorf("interface %s is left: %v, %w", name, l, err)
	}
	err := netdev.Do(rc.NetNS, func() error { return gone("eth0") })
	for _, name := range ifaces {
		err = errors.Join(err, i.do(func(context.Context) error { return gone(name) }))
	}
	if err != nil {
		i.t.Error(err)
	}
}

// If a plugin after weft's fails, as bandwidth does on a kernel without ifb, the runtime
// learns why, and its DEL leaves nothing.
func TestBandwidthThatTheKernelLacks(t *testing.T) {
	t.Parallel()
	i := installCNI(t, harness.Up(t, testbed.Config{Hosts: 1}), 1)
	const words = "adding link: operation not supported"
	script := fmt.Sprintf("#!/bin/sh\n[ \"$CNI_COMMAND\" != ADD ] || { echo '{\"code\":999,\"msg\":%q}'; exit 1; }\n", words)
	if err := os.WriteFile(filepath.Join(i.cni.Path[0], "weft-bandwidth"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	rc := i.pod("shaped")
	rc.CapabilityArgs = limits{1e6, 1e6}.capability()
	if _, err := i.add(rc); err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "weft-bandwidth") {
		t.Errorf("add: %v, want the name of the plugin and %q", err, words)
	}
	if err := i.del(rc); err != nil {
		t.Error(err)
	}
	i.wantNothingOf(rc)
}
