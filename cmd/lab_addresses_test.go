package cmd

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

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Issue, "shown by": 100 concurrent attaches on 5 hosts without a duplicate.
func TestHundredConcurrentAttaches(t *testing.T) {
	t.Parallel()
	const hosts, each = 5, 20
	lab := upLab(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	got := make([]netip.Addr, hosts*each)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
			defer cancel()
			ps, err := lab.AddContainer(ctx, at(i%hosts+1, fmt.Sprintf("c%d", i)), nil)
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = ps[0].Addr()
		})
	}
	wg.Wait()
	unique(t, got)
	reach(t, lab, at(1, "c0"), got[each-1])
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

// Issue item 8 and "shown by": kill -9 of any host during allocation; a router
// keeps its name, addresses, targets and its containers' attachment, and
// nobody gets an address that is in use.
func TestKillDuringAllocation(t *testing.T) {
	t.Parallel()
	const hosts = 3
	lab := upLab(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	var before []netip.Addr
	for n := 1; n <= hosts; n++ {
		before = append(before, addContainer(t, lab, n, "first")[0].Addr())
	}
	for victim := 1; victim <= hosts; victim++ {
		name := report(t, lab, victim).Router.Name
		on(t, lab, victim, "connect", "192.168.77.99")
		var wg sync.WaitGroup
		var mu sync.Mutex
		during := slices.Clone(before)
		for i := range 30 {
			host := i%hosts + 1
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
				defer cancel()
				ps, err := lab.AddContainer(ctx, at(host, fmt.Sprintf("v%dc%d", victim, i)), nil)
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
		launch(t, lab, victim, lab.Peers(victim)...)
		converge(t, lab)
		r := report(t, lab, victim)
		if r.Router.Name != name {
			t.Errorf("h%d was %s and is %s", victim, name, r.Router.Name)
		}
		if !slices.Contains(r.Router.Targets, "192.168.77.99") {
			t.Errorf("h%d lost a target: %v", victim, r.Router.Targets)
		}
		for n := 1; n <= hosts; n++ {
			during = append(during, addContainer(t, lab, n, fmt.Sprintf("after%d", victim))[0].Addr())
		}
		unique(t, during)
		other := victim%hosts + 1
		reach(t, lab, at(other, "first"), before[victim-1])
		reach(t, lab, at(victim, "first"), before[other-1])
	}
}

// Issue item 8: stop leaves containers attached; launch --resume keeps targets.
func TestStopAndResume(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	a := addContainer(t, lab, 2, "a")[0].Addr()
	addContainer(t, lab, 2, "b")
	c := addContainer(t, lab, 1, "c")[0].Addr()
	name := report(t, lab, 2).Router.Name
	on(t, lab, 2, "stop")
	reach(t, lab, at(2, "b"), a) // on the same host, without a router
	if out := on(t, lab, 2, "stop"); out != "weft was not running\n" {
		t.Errorf("stop a second time: %q", out)
	}
	launch(t, lab, 2, "--resume")
	converge(t, lab)
	r := report(t, lab, 2)
	if r.Router.Name != name || !slices.Equal(r.Router.Targets, []string{testbed.Addr4(1).String()}) {
		t.Errorf("after stop and resume: %s with targets %v", r.Router.Name, r.Router.Targets)
	}
	if len(r.Attachments) != 2 {
		t.Errorf("after stop and resume: %v", r.Attachments)
	}
	reach(t, lab, at(2, "a"), c)
}

// Issue item 8: reset leaves nothing on the host; item 5: its addresses go to
// others.
func TestResetLeavesNothing(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	addContainer(t, lab, 3, "a")
	on(t, lab, 3, "expose")
	on(t, lab, 3, "reset", "--state-dir", lab.StateDir(3))
	err := netdev.Do(lab.Netns(at(3, "")), func() error {
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
	eventually(t, "h1 and h2 own all addresses", func() bool {
		total := 0.0
		for _, o := range report(t, lab, 1).IPAM.Owners {
			if o.NickName == "h1" || o.NickName == "h2" {
				total += o.NumIPs
			}
		}
		return total == 1<<20
	})
	// A stopped router can not hand over, and says so.
	on(t, lab, 2, "stop")
	code, out := try(t, lab, 2, "reset", "--state-dir", lab.StateDir(2))
	if code != exitFailed || !strings.Contains(out, "--force") {
		t.Errorf("reset of a stopped router: exit code %d, %q", code, out)
	}
	on(t, lab, 2, "reset", "--force", "--state-dir", lab.StateDir(2))
	on(t, lab, 2, "reset", "--state-dir", lab.StateDir(2)) // twice is harmless
}

// Issue item 5: rolling reset of all hosts must not lose space.
func TestRollingResetLosesNoSpace(t *testing.T) {
	t.Parallel()
	const hosts = 3
	lab := upLab(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	for n := 1; n <= hosts; n++ {
		on(t, lab, n, "prime")
	}
	for n := 1; n <= hosts; n++ {
		other := n%hosts + 1
		on(t, lab, n, "reset", "--state-dir", lab.StateDir(n))
		launch(t, lab, n, testbed.Addr4(other).String())
		converge(t, lab)
		addContainer(t, lab, n, fmt.Sprintf("c%d", n)) // needs space from the others
	}
	eventually(t, "all addresses belong to peers that are there", func() bool {
		r := report(t, lab, 1)
		total := 0.0
		for _, o := range r.IPAM.Owners {
			if o.Reachable {
				total += o.NumIPs
			}
		}
		return total == 1<<20
	})
}

// Issue item 5: rmpeer takes the ranges of a dead peer over, and refuses a
// live one.
func TestRmpeer(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	addContainer(t, lab, 3, "a") // so that h3 owns some addresses
	if code, out := try(t, lab, 1, "rmpeer", "h3"); code != exitFailed {
		t.Errorf("rmpeer of a live peer: exit code %d, %q", code, out)
	}
	if err := lab.Kill(3); err != nil {
		t.Fatal(err)
	}
	eventually(t, "h3 is unreachable", func() bool {
		return slices.ContainsFunc(report(t, lab, 1).IPAM.Owners, func(o api.Owner) bool { return !o.Reachable })
	})
	if out := on(t, lab, 1, "rmpeer", "h3"); !strings.Contains(out, "IPs taken over from") {
		t.Errorf("rmpeer: %q", out)
	}
	eventually(t, "nothing is unreachable", func() bool {
		return !slices.ContainsFunc(report(t, lab, 2).IPAM.Owners, func(o api.Owner) bool { return !o.Reachable })
	})
}

// Issue item 6: attach and detach with all address forms, several at once;
// doing a thing twice is harmless.
func TestAddressForms(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	a := addContainer(t, lab, 1, "a", "net:10.33.1.0/24", "10.34.0.7/24", "ip:192.168.200.1/24", "ip:fd01::1/64", "net:default")
	if len(a) != 5 {
		t.Fatalf("attached with %v", a)
	}
	addContainer(t, lab, 2, "b", "net:10.33.1.0/24", "10.34.0.8/24", "192.168.200.2/24", "fd01::2/64", "net:default")
	for _, p := range a {
		reach(t, lab, at(2, "b"), p.Addr())
	}
	path := lab.Netns(at(1, "a"))
	if out := on(t, lab, 1, "attach", "net:default", "--netns", path); out != a[4].Addr().String()+"\n" {
		t.Errorf("attach again: %q, want the address that it has, %s", out, a[4])
	}
	if code, out := try(t, lab, 2, "attach", "10.34.0.7/24", "--netns", lab.Netns(at(2, "b"))); code != exitFailed || !strings.Contains(out, "10.34.0.7") {
		t.Errorf("attach with an address in use: exit code %d, %q", code, out)
	}
	if out := on(t, lab, 1, "detach", "net:10.33.1.0/24", "10.34.0.7/24", "--netns", path); out != a[0].Addr().String()+" 10.34.0.7\n" {
		t.Errorf("detach: %q", out)
	}
	if out := on(t, lab, 1, "detach", "10.34.0.7/24", "--netns", path); out != "" {
		t.Errorf("detach again: %q", out)
	}
	on(t, lab, 2, "attach", "10.34.0.7/24", "--netns", lab.Netns(at(2, "b")))
	on(t, lab, 1, "detach", "--netns", path)
	if out := on(t, lab, 1, "ps"); out != "" {
		t.Errorf("ps after detach of all: %q", out)
	}
}

// Issue item 6: expose and hide are idempotent.
func TestExposeAndHide(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	a := addContainer(t, lab, 2, "a")[0].Addr()
	out := on(t, lab, 1, "expose")
	if again := on(t, lab, 1, "expose"); again != out {
		t.Errorf("expose twice: %q, then %q", out, again)
	}
	addr, err := netip.ParseAddr(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	reach(t, lab, at(1, ""), a)
	reach(t, lab, at(2, "a"), addr)
	if hidden := on(t, lab, 1, "hide"); hidden != out {
		t.Errorf("hide: %q, want %q", hidden, out)
	}
	if hidden := on(t, lab, 1, "hide"); hidden != "" {
		t.Errorf("hide twice: %q", hidden)
	}
}

// Issue item 5: an allocation that can not proceed fails with the reason.
func TestAllocationWithoutAMajoritySaysWhy(t *testing.T) {
	t.Parallel()
	lab := newLab(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	launch(t, lab, 1)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	go lab.AddContainer(ctx, at(1, "a"), nil)
	eventually(t, "status ipam says what is waited for", func() bool {
		r := report(t, lab, 1)
		return r.IPAM.Status != "ready" && len(r.IPAM.PendingAllocates) == 1
	})
}
