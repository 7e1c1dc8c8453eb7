// Package nstest makes real network namespaces for tests and removes them afterwards.
package nstest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// prefix begins the name of every test namespace, so that a later run recognizes and
// removes those of a killed one.
const prefix = "wt-"

// staleAge is the age after which a namespace belongs to no running test.
const staleAge = time.Hour

// RequireRoot skips a test that needs root if the process is not root, or if make unit
// has set WEFT_UNIT to run only tests without namespaces. If tests must not be skipped
// (CI=true), it fails the test instead.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getenv("WEFT_UNIT") != "" {
		t.Skip("makes network namespaces")
	}
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root to make network namespaces")
	}
	t.Skip("needs root to make network namespaces")
}

// Lacks skips a test because the kernel or the machine lacks a feature, and appends
// its name to the file that WEFT_SKIPPED names: at the end of a run .ci/skipped counts
// what was not tested. The caller has found out by trying. It is no failure in CI:
// kernels differ, and make test-vm has one with all features.
func Lacks(t testing.TB, feature string) {
	t.Helper()
	if path := os.Getenv("WEFT_SKIPPED"); path != "" {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatalf("record that %s is missing: %v", feature, err)
		}
		defer f.Close()
		if _, err := fmt.Fprintln(f, feature); err != nil {
			t.Fatalf("record that %s is missing: %v", feature, err)
		}
	}
	t.Skipf("the kernel lacks %s", feature)
}

// New makes a network namespace with loopback up and returns its path. Word is part of
// its name.
func New(t testing.TB, word string) string {
	t.Helper()
	RequireRoot(t)
	removeStale()
	var b [4]byte
	_, _ = rand.Read(b[:])
	name := prefix + hex.EncodeToString(b[:]) + "-" + word
	if err := netdev.NewNS(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netdev.DeleteNS(name); err != nil {
			t.Error(err)
		}
	})
	path := netdev.NSByName(name)
	In(t, path, func() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Errorf("set lo up: %v", err)
		}
	})
	return path
}

func removeStale() {
	names, _ := netdev.ListNS()
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) {
			continue
		}
		fi, err := os.Stat(netdev.NSByName(n))
		if err == nil && time.Since(fi.ModTime()) > staleAge {
			_ = netdev.DeleteNS(n)
		}
	}
}

// In runs f in the namespace at path. F runs on another goroutine, so it must not call
// t.Fatal; its panic ends the test binary.
func In(t testing.TB, path string, f func()) {
	t.Helper()
	if err := netdev.Do(path, func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// Veth connects two namespaces with a veth pair of the given names and MTU and adds an
// address to each end.
func Veth(t testing.TB, mtu int, nsA, ifA string, addrA netip.Prefix, nsB, ifB string, addrB netip.Prefix) {
	t.Helper()
	b, err := netns.GetFromPath(nsB)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	err = netdev.Do(nsA, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = ifA, mtu
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerNamespace, v.PeerMTU = ifB, netlink.NsFd(int(b)), uint32(mtu)
		return netlink.LinkAdd(v)
	})
	if err != nil {
		t.Fatalf("make veth %s-%s: %v", ifA, ifB, err)
	}
	for _, end := range []struct {
		ns, name string
		addr     netip.Prefix
	}{{nsA, ifA, addrA}, {nsB, ifB, addrB}} {
		err := netdev.Do(end.ns, func() error {
			l, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			a := &netlink.Addr{IPNet: &net.IPNet{IP: end.addr.Addr().AsSlice(), Mask: net.CIDRMask(end.addr.Bits(), end.addr.Addr().BitLen())}}
			if end.addr.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		})
		if err != nil {
			t.Fatalf("configure %s: %v", end.name, err)
		}
	}
}
