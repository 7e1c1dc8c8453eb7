package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/internal/store"
)

// wholeKernel is a kernel in which everything is right.
type wholeKernel struct{}

func (wholeKernel) Require() error { return nil }

func newTestLeases(t *testing.T, st *store.Store, given *fakeAddresses) *leases {
	return newLeases(leaseConfig{
		gate: new(gate), kernel: wholeKernel{}, addresses: addresses{given}, stateDir: t.TempDir(), log: slog.New(slog.DiscardHandler),
	}, st)
}

// A boot of the host ends all pods, and no runtime releases their leases: they are free.
// If only the router was started again, leases stay.
func TestLeasesEndWithTheBoot(t *testing.T) {
	st, given := openStore(t), newFakeAddresses()
	ls := newTestLeases(t, st, given)
	if _, err := given.Allocate(t.Context(), "container", given.addrRange); err != nil {
		t.Fatal(err)
	}
	start := func(boot string, want int) {
		t.Helper()
		if err := newBoot(st, []byte(boot), func() error { return ls.freeAll(nil) }); err != nil {
			t.Fatal(err)
		}
		if got := ls.list(); len(got) != want {
			t.Errorf("boot %s: leases %v, want %d", boot, got, want)
		}
	}
	lease := func(owner string) {
		t.Helper()
		if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner}); err != nil {
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

// What is known of the owners of leases goes with the leases, so the state file does not grow.
func TestRecordsOfLeasesEndWithTheLeases(t *testing.T) {
	st, given := openStore(t), newFakeAddresses()
	ls := newTestLeases(t, st, given)
	owners := []string{"cni:pods:a:eth0", "cni:pods:b:eth0", "cni:pods:c:eth0"}
	for _, owner := range owners {
		if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Name: "prod/web", Netns: "/n"}); err != nil {
			t.Fatal(err)
		}
	}
	is := func(when string, want ...string) {
		t.Helper()
		if got := slices.Sorted(slices.Values(newTestLeases(t, st, given).recorded())); !slices.Equal(got, want) {
			t.Errorf("%s the state file has records of %v, want %v", when, got, want)
		}
	}
	is("at first", owners...)
	// The router was killed before it forgot the owner.
	if err := ls.addresses.take(owners[0], ls.addresses.owned(owners[0])); err != nil {
		t.Fatal(err)
	}
	ls.forgetUnused()
	is("after a start", owners[1:]...)
	if err := ls.freeAll(map[string]string{owners[2]: "vethwe1"}); err != nil {
		t.Fatal(err)
	}
	is("after a boot", owners[2])
}

// A release that arrives late takes nothing from a lease that was issued after it.
func TestOldReleaseTakesNothing(t *testing.T) {
	given := newFakeAddresses()
	ls := newTestLeases(t, openStore(t), given)
	const owner = "cni:pods:a:eth0"
	add := api.Now()
	if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Issued: add}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		issued int64
		left   int
	}{{add - 1, 1}, {add + 1, 0}} {
		freed, err := ls.Release(t.Context(), api.LeaseRequest{Owner: owner, Issued: c.issued})
		if err != nil {
			t.Fatal(err)
		}
		if left := len(given.Lookup(owner)); left != c.left || len(freed) != 1-c.left {
			t.Errorf("a release %d ns after the lease frees %v, and the owner has %d addresses, want %d", c.issued-add, freed, left, c.left)
		}
	}
}

// heldAddresses gives no address until it may.
type heldAddresses struct {
	*fakeAddresses
	asked chan struct{} // one for each request
	may   chan struct{}
}

func (s heldAddresses) Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error) {
	s.asked <- struct{}{}
	select {
	case <-ctx.Done():
		return netip.Prefix{}, ctx.Err()
	case <-s.may:
		return s.fakeAddresses.Allocate(ctx, owner, subnet)
	}
}

// A release ends a request at work that was issued before it, and none that was issued later.
func TestReleaseEndsOlderRequestsAtWork(t *testing.T) {
	t.Parallel()
	const owner, issued = "cni:pods:a:eth0", 30
	for _, c := range []struct {
		release int64
		ends    bool
	}{{release: 20}, {release: 40, ends: true}, {release: 0, ends: true}} {
		given := newFakeAddresses()
		ls := newTestLeases(t, openStore(t), given)
		slow := heldAddresses{given, make(chan struct{}, 1), make(chan struct{})}
		ls.addresses = addresses{slow}
		leased, released := make(chan error, 1), make(chan error, 1)
		go func() {
			_, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Issued: issued})
			leased <- err
		}()
		<-slow.asked
		go func() {
			_, err := ls.Release(t.Context(), api.LeaseRequest{Owner: owner, Issued: c.release})
			released <- err
		}()
		var err error
		if c.ends {
			err = <-leased
		} else {
			heard := func() bool { return ls.isReleased(api.LeaseRequest{Owner: owner, Issued: c.release - 1}) }
			if err := poll.Until(time.Minute, time.Millisecond, poll.True(heard)); err != nil {
				t.Fatal(err)
			}
			close(slow.may)
			err = <-leased
		}
		if e := <-released; e != nil {
			t.Error(e)
		}
		if ended := err != nil; ended != c.ends || given.count() == 0 != c.ends {
			t.Errorf("a release of %d: the request of %d ends with %v, and %d addresses are given", c.release, issued, err, given.count())
		}
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
	ls := newTestLeases(t, openStore(t), given)
	ls.kernel = brokenKernel{}
	_, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: "cni:weft:c1:eth0"})
	if err == nil || !strings.Contains(err.Error(), "bridge weft: it does not exist") || api.ClassOf(err) != api.Unavailable || given.count() > 0 {
		t.Errorf("lease: %v, class %v, %d addresses are given", err, api.ClassOf(err), given.count())
	}
}

// What was issued first counts as first: a release wins over a request that was issued before
// it and comes later, and not over one that was issued after it.
func TestReleaseWinsWhateverTheOrder(t *testing.T) {
	given := newFakeAddresses()
	ls := newTestLeases(t, openStore(t), given)
	const owner = "cni:pods:a:eth0"
	lease := func(issued int64) error {
		_, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Issued: issued})
		return err
	}
	release := func(issued int64) {
		t.Helper()
		if _, err := ls.Release(t.Context(), api.LeaseRequest{Owner: owner, Issued: issued}); err != nil {
			t.Fatal(err)
		}
	}
	release(20)
	if err := lease(10); !errors.Is(err, errReleased) || given.count() > 0 {
		t.Errorf("a request from before the release: %v, %d addresses", err, given.count())
	}
	if err := lease(30); err != nil {
		t.Errorf("a request after the release: %v", err)
	}
	if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Issued: 30, Port: "vethwe1"}); err != nil {
		t.Errorf("the port of a lease: %v", err)
	}
	release(40)
	if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Issued: 30, Port: "vethwe1"}); !errors.Is(err, errReleased) || given.count() > 0 {
		t.Errorf("the port of a released lease: %v, %d addresses", err, given.count())
	}
	// The same by the note that the plugin leaves while no router runs.
	file := api.GoneFile(ls.stateDir, owner)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	note := api.Now()
	if err := os.WriteFile(file, strconv.AppendInt(nil, note, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lease(note - 1); !errors.Is(err, errReleased) {
		t.Errorf("a request from before the note: %v", err)
	}
	ls.freeNoted()
	if err := lease(note - 1); !errors.Is(err, errReleased) || given.count() > 0 {
		t.Errorf("a request from before a note that was read: %v", err)
	}
	if err := lease(note + 1); err != nil {
		t.Errorf("a request after the note: %v", err)
	}
}

// A request whose caller is gone is undone, but not what another request of the owner got.
func TestUndo(t *testing.T) {
	given := newFakeAddresses()
	ls := newTestLeases(t, openStore(t), given)
	r := api.LeaseRequest{Owner: "cni:pods:a:eth0"}
	_, undo, err := ls.Lease(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if undo(); given.count() != 0 {
		t.Error("the address is still given")
	}
	_, undo, err = ls.Lease(t.Context(), r)
	if err == nil {
		_, _, err = ls.Lease(t.Context(), r) // asked again, and got the same
	}
	if err != nil {
		t.Fatal(err)
	}
	if undo(); given.count() != 1 {
		t.Error("the address of a later request is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ls.Lease(ctx, api.LeaseRequest{Owner: "cni:pods:b:eth0"}); err == nil || given.count() != 1 {
		t.Errorf("a request whose caller is gone: %v, %d addresses are given", err, given.count())
	}
}

// A lease ends some minutes after interface and namespace are gone, and not while that is not
// known.
func TestLeaseEndsWithItsNamespace(t *testing.T) {
	given := newFakeAddresses()
	ls := newTestLeases(t, openStore(t), given)
	netns := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(netns, &st); err != nil {
		t.Fatal(err)
	}
	lease := func(owner, path string) {
		t.Helper()
		if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: owner, Netns: path, NetnsID: st.Ino}); err != nil {
			t.Fatal(err)
		}
	}
	const pod, hidden, bare = "cni:pods:a:eth0", "cni:pods:hidden:eth0", "cni:pods:bare:eth0"
	lease(pod, netns)
	lease(hidden, "/no/such/folder/ns")
	lease(bare, "")
	now := time.Now()
	watch := func(d time.Duration, alive map[string]string) {
		for end := now.Add(d); now.Before(end); now = now.Add(sweepEvery) {
			ls.endGone(now, alive)
		}
	}
	want := func(what string, n int) {
		t.Helper()
		if got := ls.list(); len(got) != n {
			t.Errorf("%s: leases %v, want %d", what, got, n)
		}
	}
	watch(2*leaseGrace, nil)
	want("the namespace lives", 3)
	if err := os.Remove(netns); err != nil {
		t.Fatal(err)
	}
	watch(2*leaseGrace, map[string]string{pod: "vethwe1"})
	want("the port lives", 3)
	watch(leaseGrace-time.Minute, nil)
	now = now.Add(time.Hour) // the host was paused
	watch(leaseGrace-time.Minute, nil)
	want("not watched for long enough", 3)
	watch(2*time.Minute, nil)
	want("gone for minutes", 2)
	watch(2*portGrace, nil)
	want("a namespace that the router cannot see, without a port", 2)
	if _, _, err := ls.Lease(t.Context(), api.LeaseRequest{Owner: hidden, Port: "vethwe2"}); err != nil {
		t.Fatal(err)
	}
	watch(portGrace-time.Minute, nil)
	want("a port that is gone for minutes", 2)
	watch(2*time.Minute, nil)
	want("a port that is gone for long", 1)
}
