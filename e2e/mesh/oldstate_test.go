package mesh

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// oldState is a mesh of three hosts with few addresses, so that ranges move. The state of h1 is
// replaced while its containers live on.
type oldState struct {
	t     *testing.T
	lab   *testbed.Lab
	alive []netip.Addr // of all containers
	made  map[int]int  // how many, by host
}

func newOldState(t *testing.T, addrRange string) *oldState {
	o := &oldState{t: t, made: make(map[int]int), lab: harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab", Flags: []string{"--ipalloc-range", addrRange}})}
	for n := 1; n <= 3; n++ {
		o.add(n, 1)
	}
	return o
}

// add attaches containers. No address is given that a container has.
func (o *oldState) add(host, count int) {
	o.t.Helper()
	for range count {
		o.made[host]++
		a := harness.AddContainer(o.t, o.lab, host, fmt.Sprintf("c%d", o.made[host]))[0].Addr()
		o.alive = append(o.alive, a)
	}
	unique(o.t, o.alive)
}

// restart kills the router of h1, changes its state folder, and starts it.
func (o *oldState) restart(change func(dir string) error) {
	o.t.Helper()
	if err := o.lab.Kill(1); err != nil {
		o.t.Fatal(err)
	}
	if err := change(o.lab.StateDir(1)); err != nil {
		o.t.Fatal(err)
	}
	harness.Launch(o.t, o.lab, 1, testbed.Addr4(2).String()) // it has no targets of its own
}

// copyFiles copies the files of a folder to another one, which exists.
func copyFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A state folder that is put back from a copy, and files that are lost or damaged, give no
// address twice: neither one of a living container of the host, nor one that another host has
// by now.
func TestOldStateFolder(t *testing.T) {
	t.Parallel()
	o := newOldState(t, "10.32.0.0/25")
	old := t.TempDir()
	o.restart(func(dir string) error { return copyFiles(dir, old) })
	o.add(1, 3)
	o.add(2, 70) // more than its part: others give some
	r := harness.Report(t, o.lab, 1)
	if r.IPAM.Decisions == 0 {
		t.Fatal("no range moved")
	}
	lose := func(names ...string) func(dir string) error {
		return func(dir string) error {
			for _, n := range names {
				if err := os.Remove(filepath.Join(dir, n)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	cut := func(names ...string) func(dir string) error {
		return func(dir string) error {
			for _, n := range names {
				if err := os.Truncate(filepath.Join(dir, n), 5000); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for _, c := range []struct {
		name   string
		change func(dir string) error
	}{
		{"the old folder", func(dir string) error { return copyFiles(old, dir) }},
		{"without the records", lose("weft.db")},
		{"without the addresses", lose("ipam.db")},
		{"truncated records", cut("weft.db")},
		{"both truncated", cut("weft.db", "ipam.db")},
		{"without both", lose("weft.db", "ipam.db")},
	} {
		o.restart(c.change)
		o.add(1, 2)
		var has []netip.Addr
		for _, a := range harness.Report(t, o.lab, 1).Attachments {
			for _, p := range a.Addresses {
				has = append(has, p.Addr())
			}
		}
		if want := o.made[1]; len(has) != want {
			t.Errorf("%s: h1 lists %d addresses of containers, want %d: %v", c.name, len(has), want, has)
		}
		// What no file has any more is read from the kernel.
		for line := range strings.Lines(harness.Weft(t, o.lab, 1, "ps")) {
			words := strings.Fields(line)
			if _, err := net.ParseMAC(words[1]); err != nil || !strings.HasPrefix(filepath.Base(words[0]), "weft-"+o.lab.Name+"-h1-c") {
				t.Errorf("%s: weft ps: %q", c.name, line)
			}
		}
		o.add(3, 1)
	}
	harness.Reach(t, o.lab, harness.At(3, "c1"), o.alive[0])
}

// A host with an old folder that is cut off gives no address, and says why. Once it reaches
// the others it goes on.
func TestOldStateFolderOfACutOffHost(t *testing.T) {
	t.Parallel()
	o := newOldState(t, "10.32.0.0/25")
	old := t.TempDir()
	o.restart(func(dir string) error { return copyFiles(dir, old) })
	o.add(2, 70)
	for _, n := range []int{2, 3} {
		harness.Both(t, o.lab, [2]int{1, n}, o.lab.Cut)
	}
	o.restart(func(dir string) error { return copyFiles(old, dir) })
	o.refuses("the old folder", "no peer that owns addresses and knows the present state has been reached")
	o.restart(func(dir string) error { return os.Remove(filepath.Join(dir, "ipam.db")) })
	o.refuses("without the addresses", "the state of this host was lost")
	// Without any file and target, the kernel still says that others had addresses.
	if err := o.lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(o.lab.StateDir(1)); err != nil {
		t.Fatal(err)
	}
	harness.Launch(t, o.lab, 1)
	o.refuses("without everything", "the state of this host was lost")
	for _, n := range []int{2, 3} {
		harness.Both(t, o.lab, [2]int{1, n}, o.lab.Heal)
	}
	harness.Eventually(t, "h1 goes on", func() bool { return harness.Report(t, o.lab, 1).IPAM.Status == "ready" })
	o.add(1, 3)
}

// refuses wants h1 to give no address, for a reason that the status and the error have.
func (o *oldState) refuses(what, reason string) {
	o.t.Helper()
	ctx, cancel := context.WithCancel(o.t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := o.lab.AddContainer(ctx, harness.At(1, "refused-"+strings.ReplaceAll(what, " ", "-")), nil)
		failed <- err
	}()
	harness.Eventually(o.t, what+": the status says why", func() bool {
		r := harness.Report(o.t, o.lab, 1)
		return len(r.IPAM.PendingAllocates) == 1 && strings.Contains(r.IPAM.PendingAllocates[0], reason)
	})
	cancel()
	if err := <-failed; err == nil {
		o.t.Errorf("%s: an address is given", what)
	}
}

// The folder of another host makes a router that host. It gives no address, and says why.
func TestStateFolderOfAnotherHost(t *testing.T) {
	t.Parallel()
	o := newOldState(t, "10.32.0.0/25")
	o.restart(func(dir string) error { return copyFiles(o.lab.StateDir(2), dir) })
	// At once, not when the time of the request is up: waiting does not help.
	start := time.Now()
	_, err := o.lab.AddContainer(t.Context(), harness.At(1, "refused"), nil)
	if took := time.Since(start); err == nil || !strings.Contains(err.Error(), "another live router has the identity of this host") || took > 20*time.Second {
		t.Errorf("attach after %v: %v", took, err)
	}
	o.add(2, 3)
}

// A host whose whole state folder was lost has a new name, and its containers use addresses of the
// old one. When the old name is removed on all hosts, the addresses become its own, although the
// others need all that are free.
func TestLostStateFolderOfAHostWithContainers(t *testing.T) {
	t.Parallel()
	o := newOldState(t, "10.32.0.0/26")
	o.add(1, 7)
	old := harness.Report(t, o.lab, 1).Router.Name
	o.restart(os.RemoveAll)
	harness.Eventually(t, "h1 lists what its containers use of its old name", func() bool {
		r := harness.Report(t, o.lab, 1)
		return r.Router.Name != old && inUse(r) == 8
	})
	removed := make(chan string, 3)
	for n := range 3 {
		go func() {
			_, out := harness.Try(t, o.lab, n+1, "rmpeer", old)
			removed <- out
		}()
	}
	for range 3 {
		if out := <-removed; !strings.Contains(out, "IPs taken over from") {
			t.Errorf("rmpeer %s: %q", old, out)
		}
	}
	o.add(2, 25)
	o.add(3, 25)
	harness.Eventually(t, "the addresses belong to h1", func() bool { return inUse(harness.Report(t, o.lab, 1)) == 0 })
}

// inUse counts the addresses of containers of a host that belong to another peer.
func inUse(r *api.Report) (n int) {
	for _, w := range r.Warnings {
		if strings.Contains(w, "is in use here by") {
			n++
		}
	}
	return n
}
