package mesh

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// A hundred concurrent attaches on five hosts get a hundred different addresses.
func TestHundredConcurrentAttaches(t *testing.T) {
	t.Parallel()
	const hosts, each = 5, 20
	lab := harness.Up(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	got := make([]netip.Addr, hosts*each)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
			defer cancel()
			ps, err := lab.AddContainer(ctx, harness.At(i%hosts+1, fmt.Sprintf("c%d", i)), nil)
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = ps[0].Addr()
		})
	}
	wg.Wait()
	unique(t, got)
	harness.Reach(t, lab, harness.At(1, "c0"), got[each-1])
}

func unique(t *testing.T, addrs []netip.Addr) {
	t.Helper()
	sorted := slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			t.Errorf("address %s was given twice", sorted[i])
		}
	}
}

// A router that is killed during an allocation keeps its name, its addresses, its
// targets and its attached containers, and nobody gets an address that is in use.
func TestKillDuringAllocation(t *testing.T) {
	t.Parallel()
	const hosts = 3
	lab := harness.Up(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	var before []netip.Addr
	for n := 1; n <= hosts; n++ {
		before = append(before, harness.AddContainer(t, lab, n, "first")[0].Addr())
	}
	for victim := 1; victim <= hosts; victim++ {
		name := harness.Report(t, lab, victim).Router.Name
		harness.Weft(t, lab, victim, "connect", "192.168.77.99")
		var wg sync.WaitGroup
		var mu sync.Mutex
		during := slices.Clone(before)
		for i := range 30 {
			host := i%hosts + 1
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
				defer cancel()
				ps, err := lab.AddContainer(ctx, harness.At(host, fmt.Sprintf("v%dc%d", victim, i)), nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					during = append(during, ps[0].Addr())
				} else if host != victim {
					t.Error(err)
				}
			})
		}
		if err := lab.Kill(victim); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		harness.Launch(t, lab, victim, lab.Peers(victim)...)
		harness.Converge(t, lab)
		r := harness.Report(t, lab, victim)
		if r.Router.Name != name {
			t.Errorf("h%d was %s and is %s", victim, name, r.Router.Name)
		}
		if !slices.Contains(r.Router.Targets, "192.168.77.99") {
			t.Errorf("h%d lost a target: %v", victim, r.Router.Targets)
		}
		for n := 1; n <= hosts; n++ {
			during = append(during, harness.AddContainer(t, lab, n, fmt.Sprintf("after%d", victim))[0].Addr())
		}
		unique(t, during)
		other := victim%hosts + 1
		harness.Reach(t, lab, harness.At(other, "first"), before[victim-1])
		harness.Reach(t, lab, harness.At(victim, "first"), before[other-1])
	}
}

// weft stop leaves containers attached; launch --resume keeps the targets.
func TestStopAndResume(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	a := harness.AddContainer(t, lab, 2, "a")[0].Addr()
	harness.AddContainer(t, lab, 2, "b")
	c := harness.AddContainer(t, lab, 1, "c")[0].Addr()
	name := harness.Report(t, lab, 2).Router.Name
	harness.Weft(t, lab, 2, "stop")
	harness.Reach(t, lab, harness.At(2, "b"), a) // on the same host, without a router
	if out := harness.Weft(t, lab, 2, "stop"); out != "weft was not running\n" {
		t.Errorf("stop a second time: %q", out)
	}
	harness.Launch(t, lab, 2, "--resume")
	harness.Converge(t, lab)
	r := harness.Report(t, lab, 2)
	if r.Router.Name != name || !slices.Equal(r.Router.Targets, []string{testbed.Addr4(1).String()}) {
		t.Errorf("after stop and resume: %s with targets %v", r.Router.Name, r.Router.Targets)
	}
	if len(r.Attachments) != 2 {
		t.Errorf("after stop and resume: %v", r.Attachments)
	}
	harness.Reach(t, lab, harness.At(2, "a"), c)
}

// weft reset leaves nothing on the host and gives its addresses to others.
func TestResetLeavesNothing(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	harness.AddContainer(t, lab, 3, "a")
	harness.Weft(t, lab, 3, "expose")
	harness.Weft(t, lab, 3, "reset", "--state-dir", lab.StateDir(3))
	err := netdev.Do(lab.Netns(harness.At(3, "")), func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if n := l.Attrs().Name; n != "lo" && n != testbed.HostInterface {
				t.Errorf("reset left interface %s", n)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(lab.StateDir(3)); !os.IsNotExist(err) {
		t.Errorf("reset left the state folder with %v", left)
	}
	if _, err := os.Stat(lab.Socket(3)); !os.IsNotExist(err) {
		t.Errorf("reset left the socket: %v", err)
	}
	harness.Eventually(t, "h1 and h2 own all addresses", func() bool {
		total := 0.0
		for _, o := range harness.Report(t, lab, 1).IPAM.Owners {
			if o.NickName == "h1" || o.NickName == "h2" {
				total += o.NumIPs
			}
		}
		return total == 1<<20
	})
	// A stopped router cannot hand its addresses over, and says so.
	harness.Weft(t, lab, 2, "stop")
	code, out := harness.Try(t, lab, 2, "reset", "--state-dir", lab.StateDir(2))
	if code != cmd.ExitFailed || !strings.Contains(out, "--force") {
		t.Errorf("reset of a stopped router: exit code %d, %q", code, out)
	}
	harness.Weft(t, lab, 2, "reset", "--force", "--state-dir", lab.StateDir(2))
	harness.Weft(t, lab, 2, "reset", "--state-dir", lab.StateDir(2)) // twice is harmless
}

// Resetting all hosts one after the other loses no address space.
func TestRollingResetLosesNoSpace(t *testing.T) {
	t.Parallel()
	const hosts = 3
	lab := harness.Up(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	for n := 1; n <= hosts; n++ {
		harness.Weft(t, lab, n, "prime")
	}
	for n := 1; n <= hosts; n++ {
		other := n%hosts + 1
		harness.Weft(t, lab, n, "reset", "--state-dir", lab.StateDir(n))
		harness.Launch(t, lab, n, testbed.Addr4(other).String())
		harness.Converge(t, lab)
		harness.AddContainer(t, lab, n, fmt.Sprintf("c%d", n)) // needs space from the others
	}
	harness.Eventually(t, "all addresses belong to peers that are there", func() bool {
		r := harness.Report(t, lab, 1)
		total := 0.0
		for _, o := range r.IPAM.Owners {
			if o.Reachable {
				total += o.NumIPs
			}
		}
		return total == 1<<20
	})
}

// rmpeer takes over the ranges of a dead peer, and refuses to take those of a living one.
func TestRmpeer(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	harness.AddContainer(t, lab, 3, "a") // so that h3 owns some addresses
	if code, out := harness.Try(t, lab, 1, "rmpeer", "h3"); code != cmd.ExitFailed {
		t.Errorf("rmpeer of a live peer: exit code %d, %q", code, out)
	}
	if err := lab.Kill(3); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "h3 is unreachable", func() bool {
		return slices.ContainsFunc(harness.Report(t, lab, 1).IPAM.Owners, func(o api.Owner) bool { return !o.Reachable })
	})
	// Two hosts ask for it: one alone would have to wait for minutes.
	second := make(chan string, 1)
	go func() {
		_, out := harness.Try(t, lab, 2, "rmpeer", "h3")
		second <- out
	}()
	for i, out := range []string{harness.Weft(t, lab, 1, "rmpeer", "h3"), <-second} {
		if !strings.Contains(out, "IPs taken over from") {
			t.Errorf("rmpeer on h%d: %q", i+1, out)
		}
	}
	harness.Eventually(t, "nothing is unreachable", func() bool {
		return !slices.ContainsFunc(harness.Report(t, lab, 2).IPAM.Owners, func(o api.Owner) bool { return !o.Reachable })
	})
}

// attach and detach accept every form of address, several at once, and repeating a
// command is harmless.
func TestAddressForms(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	a := harness.AddContainer(t, lab, 1, "a", "net:10.33.1.0/24", "10.34.0.7/24", "ip:192.168.200.1/24", "ip:fd01::1/64", "net:default")
	if len(a) != 5 {
		t.Fatalf("attached with %v", a)
	}
	harness.AddContainer(t, lab, 2, "b", "net:10.33.1.0/24", "10.34.0.8/24", "192.168.200.2/24", "fd01::2/64", "net:default")
	for _, p := range a {
		harness.Reach(t, lab, harness.At(2, "b"), p.Addr())
	}
	path := lab.Netns(harness.At(1, "a"))
	if out := harness.Weft(t, lab, 1, "attach", "net:default", "--netns", path); out != a[4].Addr().String()+"\n" {
		t.Errorf("attach again: %q, want the address that it has, %s", out, a[4])
	}
	if code, out := harness.Try(t, lab, 2, "attach", "10.34.0.7/24", "--netns", lab.Netns(harness.At(2, "b"))); code != cmd.ExitFailed || !strings.Contains(out, "10.34.0.7") {
		t.Errorf("attach with an address in use: exit code %d, %q", code, out)
	}
	if out := harness.Weft(t, lab, 1, "detach", "net:10.33.1.0/24", "10.34.0.7/24", "--netns", path); out != a[0].Addr().String()+" 10.34.0.7\n" {
		t.Errorf("detach: %q", out)
	}
	if code, out := harness.Try(t, lab, 1, "detach", "10.34.0.7/24", "--netns", path); code != cmd.ExitFailed || !strings.Contains(out, "10.34.0.7/24 is not among the addresses") {
		t.Errorf("detach again: exit code %d, %q", code, out)
	}
	harness.Weft(t, lab, 2, "attach", "10.34.0.7/24", "--netns", lab.Netns(harness.At(2, "b")))
	harness.Weft(t, lab, 1, "detach", "--netns", path)
	if out := harness.Weft(t, lab, 1, "ps"); out != "" {
		t.Errorf("ps after detach of all: %q", out)
	}
}

// expose and hide of all are idempotent.
func TestExposeAndHide(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	a := harness.AddContainer(t, lab, 2, "a")[0].Addr()
	out := harness.Weft(t, lab, 1, "expose")
	if again := harness.Weft(t, lab, 1, "expose"); again != out {
		t.Errorf("expose twice: %q, then %q", out, again)
	}
	addr, err := netip.ParseAddr(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	harness.Reach(t, lab, harness.At(1, ""), a)
	harness.Reach(t, lab, harness.At(2, "a"), addr)
	if hidden := harness.Weft(t, lab, 1, "hide"); hidden != out {
		t.Errorf("hide: %q, want %q", hidden, out)
	}
	if hidden := harness.Weft(t, lab, 1, "hide"); hidden != "" {
		t.Errorf("hide twice: %q", hidden)
	}
	// To remove what is not there is an error, with the words for it.
	for line, want := range map[string]string{
		"hide 10.99.0.1/24": "10.99.0.1/24 is not among the addresses: there are none",
		"forget 192.0.2.9":  "forget 192.0.2.9: it is no target",
		"detach --netns " + lab.Netns(harness.At(1, "")):        "is not attached",
		"dns-remove -h nobody":                                  "nobody added the name nobody.weft.internal",
		"dns-remove -h nobody " + lab.Netns(harness.At(2, "a")): "is not attached",
		"rmpeer 02:00:00:00:00:99":                              "no such peer owns addresses or has a vote",
		"unban 02:00:00:00:00:99":                               "is not banned",
	} {
		if code, out := harness.Try(t, lab, 1, strings.Fields(line)...); code != cmd.ExitFailed || !strings.Contains(out, want) {
			t.Errorf("weft %s: exit code %d, %q, want %q", line, code, out, want)
		}
	}
}

// An allocation that cannot proceed fails with the reason.
func TestAllocationWithoutAMajoritySaysWhy(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	harness.Launch(t, lab, 1)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Timeout)
	defer cancel()
	go lab.AddContainer(ctx, harness.At(1, "a"), nil)
	harness.Eventually(t, "status ipam says what is waited for", func() bool {
		r := harness.Report(t, lab, 1)
		return r.IPAM.Status != "ready" && len(r.IPAM.PendingAllocates) == 1
	})
}

// Hosts that were launched with different address ranges share no addresses. Both say so, and
// which range the other has.
func TestDifferentAddressRanges(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "a password"})
	harness.Weft(t, lab, 2, "stop")
	if err := lab.Launch(t.Context(), 2, "--ipalloc-range", "10.64.0.0/12", testbed.Addr4(1).String()); err != nil {
		t.Fatal(err)
	}
	for host, other := range map[int]string{1: "10.64.0.0/12", 2: "10.32.0.0/12"} {
		harness.Eventually(t, fmt.Sprintf("h%d names the other range", host), func() bool {
			return slices.ContainsFunc(harness.Report(t, lab, host).Warnings, func(w string) bool {
				return strings.HasPrefix(w, "other peers of this mesh have the address range "+other+",")
			})
		})
	}
}
