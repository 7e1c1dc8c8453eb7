package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/api"
)

// A boot of the host ends all pods, and no runtime releases their leases: they are free.
// If only the router was started again, leases stay.
func TestLeasesEndWithTheBoot(t *testing.T) {
	st, given := openStore(t), newFakeAddresses()
	ls := &leases{addresses: addresses{given}, stateDir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	if _, err := given.Allocate(t.Context(), "container", given.addrRange); err != nil {
		t.Fatal(err)
	}
	start := func(boot string, want int) {
		t.Helper()
		if err := newBoot(st, []byte(boot), ls.freeAll); err != nil {
			t.Fatal(err)
		}
		if got := ls.list(); len(got) != want {
			t.Errorf("boot %s: leases %v, want %d", boot, got, want)
		}
	}
	lease := func(owner string) {
		t.Helper()
		if _, err := ls.lease(t.Context(), api.LeaseRequest{Owner: owner}); err != nil {
			t.Fatal(err)
		}
	}
	lease("cni:pods:a:eth0") // by a router that did not note its boot
	start("one", 1)
	lease("cni:pods:b:eth0")
	start("one", 2)
	start("two", 0)
	lease("cni:pods:a:eth0")
	start("two", 1)
	if len(given.Lookup("container")) != 1 {
		t.Error("the address of a container of the router's own is gone")
	}
}

// A reset removes the notes that the plugin made while no router ran.
func TestEraseRemovesNotesOfOwnersThatLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	file := api.GoneFile(dir, "cni:pods:a:eth0")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	b.on(t, func() error {
		return Erase(&Config{StateDir: dir, Socket: filepath.Join(t.TempDir(), "sock", "s"), Bridge: "weft"})
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the state folder is left: %v", err)
	}
}

// brokenKernel is a kernel in which the bridge cannot be made.
type brokenKernel struct{}

func (brokenKernel) Require() error {
	return errors.New("bridge weft: it does not exist, and weft cannot repair it: no")
}

// While no container can be connected, no address is given for one, and the error says why.
func TestNoLeaseWithoutABridge(t *testing.T) {
	given := newFakeAddresses()
	ls := &leases{gate: new(gate), kernel: brokenKernel{}, addresses: addresses{given}, stateDir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	_, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: "cni:weft:c1:eth0"})
	if err == nil || !strings.Contains(err.Error(), "bridge weft: it does not exist") || api.ClassOf(err) != api.Unavailable || given.count() > 0 {
		t.Errorf("lease: %v, class %v, %d addresses are given", err, api.ClassOf(err), given.count())
	}
}
