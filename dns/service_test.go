package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// newService returns a Service that announces its changes to others. It does not run yet.
func newService(t *testing.T, n byte, change func(*Config), others ...*Service) *Service {
	t.Helper()
	id := peer.Cheap{ID: peer.Key{n}}
	c := Config{
		Domain: DefaultDomain, TTL: DefaultTTL, Timeout: time.Second, ResolvConf: "/nowhere/at/all",
		Self: peer.Name{2, n}, Signer: id, Verifier: id, Log: slog.New(slog.DiscardHandler),
		Announce: func(delta []byte) {
			for _, o := range others {
				if _, err := o.Channel().Merge(peer.Name{2, n}, delta); err != nil {
					t.Error(err)
				}
			}
		},
	}
	if change != nil {
		change(&c)
	}
	return New(c)
}

func entries(s *Service) (list []string) {
	all, _ := s.Entries(1000)
	for _, e := range all {
		list = append(list, fmt.Sprintf("%s %s %s", strings.TrimSuffix(e.Name, "."+DefaultDomain), e.Container, e.Addr))
	}
	return list
}

func wantEntries(t *testing.T, s *Service, want ...string) {
	t.Helper()
	if got := entries(s); !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
}

func TestAddAndRemove(t *testing.T) {
	far := newService(t, 2, nil)
	far.PeersChanged(map[peer.Name]peer.Key{{2, 1}: {1}})
	s := newService(t, 1, nil, far)
	a, b := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")
	for range 2 { // adding twice is harmless
		if err := s.Add("c1", "Web", a, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add("c2", "web.weft.internal.", a); err != nil {
		t.Fatal(err)
	}
	if err := s.Add("c2", "db.prod.weft.internal", a); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Service{s, far} {
		wantEntries(t, s, "db.prod c2 10.32.0.1", "web c1 10.32.0.1", "web c2 10.32.0.1", "web c1 fd00::1")
	}
	if removed, err := s.Remove("c1", "web", b); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if removed, err := s.Remove("c1", "db.prod.weft.internal"); err != nil || len(removed) != 0 {
		t.Errorf("a name of another container: removed %v, %v", removed, err)
	}
	s.RemoveContainer("c2")
	wantEntries(t, far, "web c1 10.32.0.1")
	if got, err := s.Resolve(t.Context(), "web.weft.internal"); err != nil || !slices.Equal(got, []string{"10.32.0.1"}) {
		t.Errorf("lookup: %v, %v", got, err)
	}
	if got, err := s.Resolve(t.Context(), "10.32.0.1"); err != nil || !slices.Equal(got, []string{"web.weft.internal."}) {
		t.Errorf("lookup of the address: %v, %v", got, err)
	}
}

// Announce may use the Service: no lock is held while it is called.
func TestAnnounceMayCallBack(t *testing.T) {
	calls := 0
	var s *Service
	s = newService(t, 1, func(c *Config) {
		c.Announce = func([]byte) {
			calls++
			s.Status()
			s.Entries(10)
			s.CountRefused(t.Context())
			s.Channel().Digest()
		}
	})
	a := netip.MustParseAddr("10.32.0.1")
	if err := s.Add("c1", "web", a); err != nil {
		t.Fatal(err)
	}
	if err := s.Set("c1", map[string][]netip.Addr{"db.weft.internal": {a}}); err != nil {
		t.Fatal(err)
	}
	s.RemoveContainer("c1")
	if calls < 3 {
		t.Errorf("%d announcements of 3 changes", calls)
	}
}

// A host names addresses of the mesh that it owns, and outside addresses only if its user
// allows it; the others answer accordingly.
func TestAddressesOfTheMesh(t *testing.T) {
	inside, outside := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("192.0.2.7")
	owner := peer.Name{2, 1}
	config := func(c *Config) {
		c.Ranges = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
		c.Owns = func(n peer.Name, a netip.Addr) bool { return n == owner && a == inside }
	}
	far := newService(t, 2, config)
	far.PeersChanged(map[peer.Name]peer.Key{{2, 1}: {1}})
	s := newService(t, 1, config, far)
	if err := s.Check(outside); !errors.Is(err, ErrExternal) {
		t.Errorf("an outside address without --dns-external: %v", err)
	}
	if err := newService(t, 1, func(c *Config) { config(c); c.External = true }).Check(outside); err != nil {
		t.Errorf("an outside address with --dns-external: %v", err)
	}
	if s.Check(inside) != nil || s.IsForeign(inside) || !far.IsForeign(inside) || far.IsForeign(outside) {
		t.Error("who owns an address of the mesh does not matter")
	}
	for _, a := range []netip.Addr{inside, inside.Next(), outside} {
		if err := s.Add("c1", "web", a); err != nil {
			t.Fatal(err)
		}
	}
	resolve := func(want ...string) {
		t.Helper()
		got, err := far.Resolve(t.Context(), "web.weft.internal")
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("lookup: %v, %v; want %v", got, err, want)
		}
	}
	resolve("10.32.0.1", "192.0.2.7")
	list, _ := far.Entries(10)
	for _, e := range list {
		if (e.Refused != "") != (e.Addr == inside.Next()) {
			t.Errorf("%s: refused because %q", e.Addr, e.Refused)
		}
	}
	owner = peer.Name{2, 9} // the ring changes
	far.table.Refresh()
	resolve("192.0.2.7")
}

func TestInvalidNamesAreRefused(t *testing.T) {
	s := newService(t, 1, nil)
	a := netip.MustParseAddr("10.32.0.1")
	for _, name := range []string{"", "a b", "web.example.com", "db.prod", "weft.internal", "notweft.internal", strings.Repeat("a", 64)} {
		if err := s.Add("c", name, a); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
	for _, addr := range []string{"0.0.0.0", "224.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"} {
		if err := s.Add("c", "web", netip.MustParseAddr(addr)); err == nil {
			t.Errorf("%s was accepted", addr)
		}
	}
	for _, name := range []string{"", "a b\x00", strings.Repeat("a.", 200)} {
		if found, err := s.Resolve(t.Context(), name); err == nil {
			t.Errorf("lookup of %q found %v", name, found)
		}
	}
	off := newService(t, 1, func(c *Config) { c.Off = true })
	if err := off.Add("c", "web", a); err == nil {
		t.Error("a Service that is off accepted a name")
	}
	wantEntries(t, off)
}

// The name servers follow resolv.conf, whichever way the file is changed.
func TestUpstreamsFollowResolvConf(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "resolv.conf")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newService(t, 1, func(c *Config) { c.ResolvConf = conf })
	upstreams := func() string {
		var list []string
		for _, u := range s.Status().Upstream {
			list = append(list, u.Addr.Addr().String())
		}
		return strings.Join(list, " ")
	}
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"no file", func() {}, ""},
		{"written", func() { write(conf, "nameserver 192.0.2.1\n") }, "192.0.2.1"},
		{"written again", func() { write(conf, "nameserver 192.0.2.2\nnameserver 192.0.2.3\n") }, "192.0.2.2 192.0.2.3"},
		{"renamed", func() {
			write(conf+".new", "nameserver 192.0.2.4\n")
			if err := os.Rename(conf+".new", conf); err != nil {
				t.Fatal(err)
			}
		}, "192.0.2.4"},
		{"a symbolic link that changes", func() {
			write(filepath.Join(dir, "other"), "nameserver 192.0.2.5\n")
			os.Remove(conf)
			if err := os.Symlink("other", conf); err != nil {
				t.Fatal(err)
			}
		}, "192.0.2.5"},
		{"removed: the previous servers stay", func() { os.Remove(conf) }, "192.0.2.5"},
		{"empty", func() { write(conf, "") }, ""},
	} {
		step.do()
		s.updateUpstreams()
		if got := upstreams(); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
		if reason := s.Status().Fault; (reason != "") != (step.what == "no file" || strings.HasPrefix(step.what, "removed")) {
			t.Errorf("%s: fault %q", step.what, reason)
		}
	}
}

func TestOwnAddressIsNotUpstream(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("172.17.0.1:53")}
	unspecified := []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")}
	otherHost := []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:5353")}
	for _, c := range []struct {
		own  []netip.AddrPort
		addr string
		want bool
	}{
		{own, "172.17.0.1:53", true}, {own, "127.0.0.1:53", false}, {own, "192.0.2.1:53", false},
		{unspecified, "127.0.0.1:53", true}, {unspecified, "192.0.2.1:53", false}, {otherHost, "127.0.0.1:53", false},
	} {
		if got := listensAt(c.own, netip.MustParseAddrPort(c.addr)); got != c.want {
			t.Errorf("a server that listens at %v is used as upstream %s: %v", c.own, c.addr, got)
		}
	}
}

func TestRunEnds(t *testing.T) {
	s := newService(t, 1, func(c *Config) {
		c.Listen = []Listen{{Addr: netip.MustParseAddr("192.0.2.1"), Port: 53}, {Interface: "not-there", Port: 53}}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.NetworkChanged()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, l := range s.Status().Listening {
		if l.Fault == "" || len(l.Addrs) != 0 {
			t.Errorf("%s: at %v, %q", l.Listen, l.Addrs, l.Fault)
		}
	}
}

func TestParseListen(t *testing.T) {
	for in, want := range map[string]string{
		"docker0": "docker0:53", "weft:5353": "weft:5353", "10.0.0.1": "10.0.0.1:53", "10.0.0.1:54": "10.0.0.1:54", "::1": "[::1]:53",
		"[::1]:5353": "[::1]:5353", "0.0.0.0:53": "0.0.0.0:53", "br-0123456789ab": "br-0123456789ab:53",
	} {
		if got, err := ParseListen(in); err != nil || got.String() != want {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"", ":53", "10.0.0.1:0", "10.0.0.1:x", "10.0.0.1:65536", "10.0.0.300", "10.0.0:53", "a b", "averyveryverylongname", "[::1]", "a/b:53"} {
		if got, err := ParseListen(bad); err == nil {
			t.Errorf("%q is parsed as %s", bad, got)
		}
	}
}

func FuzzParseListen(f *testing.F) {
	f.Add("docker0:53")
	f.Add("[fe80::1%eth0]:53")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseListen(s)
		if err != nil {
			return
		}
		if again, err := ParseListen(l.String()); err != nil || again != l {
			t.Fatalf("%q: parsed as %s, whose text is parsed as %s, %v", s, l, again, err)
		}
	})
}
