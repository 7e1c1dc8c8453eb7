package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
)

// known lists the names that a host has, each with its address.
func (b *bench) known() string { return namesIn(b.names) }

func namesIn(ns *dns.Service) string {
	var words []string
	list, _ := ns.Entries(1000)
	for _, e := range list {
		words = append(words, strings.TrimSuffix(e.Name, ".weft.internal")+"="+e.Addr.String())
	}
	return strings.Join(words, " ")
}

func (b *bench) attachAs(t *testing.T, hostname string, addrs ...string) {
	t.Helper()
	b.on(t, func() error {
		return b.attachNamed(t, hostname, addrs...)
	})
}

func (b *bench) attachNamed(t *testing.T, hostname string, addrs ...string) error {
	p, err := namespaceAt(b.box)
	if err == nil {
		_, err = b.as.attach(t.Context(), p, api.AttachRequest{Addresses: parse(t, addrs...), Hostname: hostname})
	}
	return err
}

func wantKnown(t *testing.T, b *bench, when, want string) {
	t.Helper()
	if got := b.known(); got != want {
		t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// Names of a container follow its addresses, and are there again after a restart
// of the router.
func TestNamesOfAContainer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.attachAs(t, "Web", "192.168.5.1/24", "192.168.5.2/24")
	wantKnown(t, b, "attached", "web=192.168.5.1 web=192.168.5.2")
	b.attach(t, "192.168.5.3/24")
	wantKnown(t, b, "more addresses without a name", "web=192.168.5.1 web=192.168.5.2")
	do := func(f func(string, string, []netip.Addr) error, fqdn string, addrs ...string) {
		t.Helper()
		var list []netip.Addr
		for _, a := range addrs {
			list = append(list, netip.MustParseAddr(a))
		}
		b.on(t, func() error { return f(b.box, fqdn, list) })
	}
	do(b.as.addName, "", "192.0.2.9")
	do(b.as.addName, "db.prod.weft.internal")
	wantKnown(t, b, "dns-add", "db.prod=192.168.5.1 db.prod=192.168.5.2 db.prod=192.168.5.3 web=192.0.2.9 web=192.168.5.1 web=192.168.5.2")
	do(b.as.removeName, "db.prod.weft.internal", "192.168.5.3")
	do(b.as.removeName, "", "192.168.5.1")
	b.detach(t, "192.168.5.2/24")
	const want = "web=192.0.2.9"
	wantKnown(t, b, "dns-remove and detach", want)
	b.restart()
	b.on(t, func() error { b.as.restoreNames(); return nil })
	wantKnown(t, b, "after a restart", want)
	b.detach(t)
	wantKnown(t, b, "detached", "")
}

func TestNamesThatAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, name := range []string{"web.example.com", "a..b", "weft.internal"} {
		b.on(t, func() error {
			if err := b.attachNamed(t, name); api.ClassOf(err) != api.Usage {
				t.Errorf("attach as %s: %v", name, err)
			}
			return nil
		})
	}
	if len(b.as.list()) != 0 || b.addresses.count() != 0 {
		t.Error("an attach that was refused left something")
	}
	if err := b.as.addName("nobody", "web.weft.internal", nil); err == nil || !strings.Contains(err.Error(), "is not attached") {
		t.Errorf("a name for an unknown container: %v", err)
	}
	b.attach(t)
	b.on(t, func() error {
		if err := b.as.addName(b.box, "", nil); api.ClassOf(err) != api.Usage {
			t.Errorf("no name at all: %v", err)
		}
		return nil
	})
	// A failed attach leaves the names as they were.
	b.attachAs(t, "web", "192.168.5.1/24")
	before := b.known()
	b.addresses.fail = fmt.Errorf("no space")
	b.on(t, func() error {
		if err := b.attachNamed(t, "other", "10.32.9.9/16"); err == nil {
			t.Error("attached without space")
		}
		return nil
	})
	wantKnown(t, b, "after an attach that failed", before)
}

// Names of a container that is gone go at once, its addresses after a grace.
func TestNamesGoWithTheirContainer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.attachAs(t, "web")
	b.on(t, func() error {
		b.as.removeNamesOfGone(time.Now())
		return nil
	})
	if b.known() == "" {
		t.Fatal("a container that lives lost its names")
	}
	port := b.port(t)
	b.on(t, func() error {
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l) // as the kernel does when the namespace goes
	})
	b.on(t, func() error {
		b.as.removeNamesOfGone(time.Now())
		return nil
	})
	wantKnown(t, b, "gone", "")
	if b.addresses.count() != 1 {
		t.Error("the address was freed without a grace")
	}
	b.restart()
	b.on(t, func() error { b.as.restoreNames(); return nil })
	wantKnown(t, b, "gone, after a restart", "")
}

func (b *bench) port(t *testing.T) string {
	t.Helper()
	var port string
	b.on(t, func() error {
		owner, err := ownerOf(b.box)
		if err == nil {
			a, _ := b.as.get(owner)
			port = a.Port
		}
		return err
	})
	return port
}

// The option -h of weft expose.
func TestNamesOfTheHost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	open := func() *exposures {
		return b.newExposures()
	}
	es := open()
	expose := func(r api.ExposeRequest) {
		t.Helper()
		b.on(t, func() error {
			_, err := es.Expose(t.Context(), r)
			return err
		})
	}
	expose(api.ExposeRequest{Addresses: parse(t, "192.168.5.1/24"), Hostname: "gw"})
	expose(api.ExposeRequest{Addresses: parse(t, "192.168.5.1/24")}) // keeps it
	expose(api.ExposeRequest{Addresses: parse(t, "192.168.6.1/24"), Hostname: "gw"})
	wantKnown(t, b, "exposed", "gw=192.168.5.1 gw=192.168.6.1")
	b.restart()
	es = open()
	b.on(t, func() error { es.restoreNames(); return nil })
	wantKnown(t, b, "after a restart", "gw=192.168.5.1 gw=192.168.6.1")
	b.on(t, func() error {
		_, err := es.Hide(t.Context(), api.ExposeRequest{Addresses: parse(t, "192.168.5.1/24")})
		return err
	})
	wantKnown(t, b, "one hidden", "gw=192.168.6.1")
	b.on(t, func() error { return netdev.DeleteBridge(netdev.BridgeName) })
	b.on(t, func() error {
		if _, err := es.Expose(t.Context(), api.ExposeRequest{Addresses: parse(t, "192.168.7.1/24"), Hostname: "gw"}); err == nil {
			t.Error("exposed without a bridge")
		}
		return nil
	})
	wantKnown(t, b, "after one that failed", "gw=192.168.6.1")
}

// Without --dns-external a host names addresses that it attached or exposed, and no others
// outside the mesh. Names of an earlier run stay on record.
func TestExternalAddressesNeedTheFlag(t *testing.T) {
	t.Parallel()
	st, log := openStore(t), slog.New(slog.DiscardHandler)
	attached := netip.MustParseAddr("192.168.5.1")
	open := func(external bool) (*dns.Service, *nameRequests) {
		id := peer.Cheap{ID: peer.Key{1}}
		ns := dns.New(dns.Config{
			Domain: "weft.internal", Self: peer.Name{2, 1}, Signer: id, Verifier: id, Announce: func([]byte) {}, Log: log, External: external,
		})
		addrs := func() []netip.Addr { return []netip.Addr{attached} }
		r := &nameRequests{dns: ns, engine: noEngine{}, external: newExternalNames(st, ns, addrs, log), attached: addrs}
		r.external.restoreNames()
		return ns, r
	}
	add := func(r *nameRequests, addr string) error {
		return r.AddName(t.Context(), api.NameRequest{Hostname: "db", Addresses: []netip.Addr{netip.MustParseAddr(addr)}})
	}
	_, r := open(false)
	if err := add(r, "192.0.2.7"); api.ClassOf(err) != api.Usage || !strings.Contains(err.Error(), "--dns-external") {
		t.Errorf("an address that was not attached: %v", err)
	}
	if err := add(r, attached.String()); err != nil {
		t.Error(err)
	}
	_, r = open(true)
	if err := add(r, "192.0.2.7"); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		external bool
		want     string
	}{{false, "db=192.168.5.1"}, {true, "db=192.0.2.7 db=192.168.5.1"}} {
		if ns, _ := open(c.external); namesIn(ns) != c.want {
			t.Errorf("started with --dns-external=%t: %q, want %q", c.external, namesIn(ns), c.want)
		}
	}
}

// Names of external addresses outlive the router. A name that was removed does not come
// back, nor one that could not be written.
func TestNamesOfExternalAddresses(t *testing.T) {
	t.Parallel()
	st := openStore(t)
	var ns *dns.Service
	open := func() *externalNames {
		ns = newTestNames()
		external := newExternalNames(st, ns, func() []netip.Addr { return nil }, slog.New(slog.DiscardHandler))
		external.restoreNames()
		return external
	}
	external := open()
	want := func(when, want string) {
		t.Helper()
		if got := namesIn(ns); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	addr := netip.MustParseAddr
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(external.add("db.weft.internal", []netip.Addr{addr("192.0.2.7"), addr("2001:db8::7")}))
	must(external.add("db.weft.internal", []netip.Addr{addr("192.0.2.8"), addr("192.0.2.7")}))
	must(external.add("old.weft.internal", []netip.Addr{addr("192.0.2.9")}))
	must(external.add("new.weft.internal", []netip.Addr{addr("192.0.2.9")}))
	external = open()
	want("started again", "db=192.0.2.7 db=192.0.2.8 db=2001:db8::7 new=192.0.2.9 old=192.0.2.9")
	if err := external.remove("db.weft.internal", []netip.Addr{addr("192.0.2.7"), addr("192.0.2.77")}); err == nil || !strings.Contains(err.Error(), "does not have the address 192.0.2.77") {
		t.Errorf("an address that the name lacks: %v", err)
	}
	must(external.remove("db.weft.internal", []netip.Addr{addr("192.0.2.7")}))
	must(external.remove("old.weft.internal", nil))
	must(external.remove("new.weft.internal", []netip.Addr{addr("192.0.2.9")}))
	if err := external.remove("nobody.weft.internal", nil); err == nil || !strings.Contains(err.Error(), "nobody.weft.internal") {
		t.Errorf("a name that does not exist: %v", err)
	}
	const left = "db=192.0.2.8 db=2001:db8::7"
	want("removed", left)
	external = open()
	want("removed and started again", left)
	if err := external.add("db.weft.internal", []netip.Addr{addr("224.0.0.1")}); err == nil {
		t.Error("a multicast address was taken")
	}
	st.Close()
	if err := external.add("db.weft.internal", []netip.Addr{addr("192.0.2.8"), addr("192.0.2.10")}); err == nil {
		t.Error("added without a disk")
	}
	if err := external.remove("db.weft.internal", nil); err == nil {
		t.Error("removed without a disk")
	}
	want("without a disk", left)
}
