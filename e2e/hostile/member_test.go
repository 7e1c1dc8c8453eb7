package hostile

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// overridden is the name that a user gave h3.
var overridden = peer.Name{0, 0, 0, 0, 0, 9}

// siege is a lab of three honest routers and a host from which a member lies.
type siege struct {
	*testbed.Lab
	names []string     // of the honest routers
	addrs []netip.Addr // of the container "c" of each honest host, from 1 on
}

const honest, evilHost = 3, 4

func newSiege(t *testing.T, flags ...string) *siege {
	t.Helper()
	s := &siege{Lab: harness.New(t, testbed.Config{Hosts: evilHost, Password: password})}
	flags = append(flags, "--ipalloc-init", "consensus=3")
	s.Flags = flags
	return s
}

// launch starts the routers and attaches a container to each.
func (s *siege) launch(t *testing.T) {
	t.Helper()
	harness.Launch(t, s.Lab, 1)
	s.launchOthers(t)
}

func (s *siege) launchOthers(t *testing.T) {
	t.Helper()
	harness.Launch(t, s.Lab, 2, testbed.Addr4(1).String())
	harness.Launch(t, s.Lab, 3, "--name", overridden.String(), testbed.Addr4(1).String(), testbed.Addr4(2).String())
	harness.Converge(t, s.Lab)
	s.names, s.addrs = routerNames(t, s.Lab, honest), make([]netip.Addr, honest+1)
	for n := 1; n <= honest; n++ {
		s.addrs[n] = harness.AddContainer(t, s.Lab, n, "c")[0].Addr()
	}
}

// intact reports whether nobody but the honest hosts votes, nobody is banned, and each host
// still owns the address of its container.
func (s *siege) intact(t *testing.T) bool {
	t.Helper()
	for n := 1; n <= honest; n++ {
		r := summary(t, s.Lab, n, api.ListRing)
		for _, v := range r.IPAM.Voters {
			if !slices.Contains(s.names, v.Peer) && v.NickName != "liar" { // which has an address of its own
				t.Logf("h%d: %s votes", n, v.Peer)
				return false
			}
		}
		if len(r.IPAM.Banned) > 0 {
			t.Logf("h%d: banned are %v", n, r.IPAM.Banned)
			return false
		}
		for h := 1; h <= honest; h++ {
			if o := ownerOf(t, s.Lab, n, s.addrs[h]); o != s.names[h-1] {
				t.Logf("h%d: the address of h%d is of %s", n, h, o)
				return false
			}
		}
	}
	return true
}

// One member makes the first ring alone, before the other hosts are there. A host that was
// given targets does not take it.
func TestMemberCannotMakeTheFirstRing(t *testing.T) {
	t.Parallel()
	s := newSiege(t)
	harness.Launch(t, s.Lab, 1, testbed.Addr4(2).String(), testbed.Addr4(3).String())
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{})
	id := l.identity(peer.Name{})
	for range 3 {
		p, _ := l.session(1, id)
		harness.Eventually(t, "the liar is a member", func() bool { return knows(t, s.Lab, 1, id.Name.String()) })
		if err := p.FirstRing(addrRange); err != nil {
			t.Fatal(err)
		}
		id = l.identity(peer.Name{})
	}
	holds(t, "h1 waits for honest hosts", func() bool { return len(summary(t, s.Lab, 1, api.ListRing).IPAM.Entries) == 0 })
	s.launchOthers(t)
	if !s.intact(t) {
		t.Error("the ring is not that of the honest hosts")
	}
}

// What one member says about others, in the name of others, and to others.
func TestLiesOfAMember(t *testing.T) {
	t.Parallel()
	s := newSiege(t)
	s.launch(t)
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{})
	t.Run("names of others", func(t *testing.T) { s.namesOfOthers(t, l) })
	t.Run("decisions", func(t *testing.T) { s.decisions(t, l) })
	t.Run("made-up peers", func(t *testing.T) { s.madeUpPeers(t, l) })
	t.Run("host names", func(t *testing.T) { s.hostNames(t, l) })
	t.Run("bindings", func(t *testing.T) { s.bindings(t, l) })
	t.Run("terminal", s.terminal)
	t.Run("addresses to dial", s.addressesToDial)
}

// A derived name accepts only its key, and one that a user gave stays with its first key
// while its host is away, also over a restart of the others.
func (s *siege) namesOfOthers(t *testing.T, l *liar) {
	derived, err := peer.ParseName(s.names[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.dial(testbed.Addr4(1), l.identity(derived)); err == nil {
		t.Error("the name of h2 is accepted with another key")
	}
	harness.Weft(t, s.Lab, 3, "stop")
	harness.Eventually(t, "h3 is away", func() bool {
		return !linked(t, s.Lab, 1, overridden.String()) && !linked(t, s.Lab, 2, overridden.String())
	})
	harness.Weft(t, s.Lab, 2, "stop")
	harness.Launch(t, s.Lab, 2, testbed.Addr4(1).String())
	for host := 1; host <= 2; host++ {
		if _, _, err := l.dial(testbed.Addr4(host), l.identity(overridden)); err == nil || !strings.Contains(err.Error(), "name") {
			t.Errorf("a squatter takes the name of h3 at h%d: %v", host, err)
		}
	}
	// Nor through gossip: the entry of a peer with that name hangs on the liar.
	p, _ := l.session(1, l.identity(peer.Name{}))
	squatter := l.identity(overridden)
	if err := errors.Join(p.Link(overridden), p.Announce(squatter, p.ID.Name)); err != nil {
		t.Error(err)
	}
	harness.Launch(t, s.Lab, 3, "--name", overridden.String(), testbed.Addr4(1).String(), testbed.Addr4(2).String())
	harness.Converge(t, s.Lab)
	for host := 1; host <= 2; host++ {
		harness.Eventually(t, "h3 is back", func() bool { return linked(t, s.Lab, host, overridden.String()) })
	}
}

// A member decides alone, and asks the voters to decide.
func (s *siege) decisions(t *testing.T, l *liar) {
	holder, keys := make([]ring.Holder, honest+1), make([]peer.Key, honest+1)
	p, _ := l.session(1, l.identity(peer.Name{}))
	self := ring.HolderOf(p.ID.Name, p.ID.Key())
	l.try("the honest hosts are known", func() error {
		known := 0
		for _, e := range p.Known() {
			if i := slices.Index(s.names, e.Name.String()); i >= 0 {
				holder[i+1], keys[i+1] = ring.HolderOf(e.Name, e.Key), e.Key
				known++
			}
		}
		if known < honest {
			return errors.New("gossip has not brought all")
		}
		return p.WithRing(func(*ring.Ring) error { return nil })
	})
	for host := 1; host <= honest; host++ {
		wishes := []*ring.Action{
			{Kind: ring.Remove, From: holder[host], To: self},
			{Kind: ring.Ban, From: holder[host], To: self},
			{Kind: ring.Voters, Voters: []ring.Holder{self}},
		}
		var slot uint64
		var transfer *ring.Action
		if err := p.WithRing(func(r *ring.Ring) error {
			slot = r.Slot()
			transfer, _ = r.Give(p.ID, holder[host], self, addr.Single(s.addrs[host])) // it is not signed by its owner
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		transfer.Key = keys[host]
		for _, a := range append(wishes, transfer) {
			for to := 1; to <= honest; to++ {
				name := holder[to].Name
				if err := p.SignedTo(name, hostile.Wish(slot, a)); err != nil {
					t.Fatal(err)
				}
			}
			// A forged decision may end the session.
			q, ended := l.session(host, l.identity(peer.Name{}))
			l.try("a decision is forged", func() error { return q.WithRing(func(*ring.Ring) error { return nil }) })
			if a.Kind == ring.Voters {
				continue // a copy of the ring makes no decision of it
			}
			err := q.Decree(a)
			select {
			case <-ended:
			default:
				if err != nil {
					t.Errorf("%s: %v", a.Kind, err)
				}
			}
		}
	}
	holds(t, "all own what they owned", func() bool { return s.intact(t) })
}

// A member makes up peers, which ask for addresses. None of them gets a vote, nor much.
func (s *siege) madeUpPeers(t *testing.T, l *liar) {
	const count = 60
	p, _ := l.session(1, l.identity(peer.Name{}))
	var all []peer.Name
	for i := range count {
		all = append(all, l.madeUp(i).Name)
	}
	if err := p.Link(append(all, p.Router)...); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		if err := p.Announce(l.madeUp(i), p.ID.Name); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, "h2 knows them", func() bool { return summary(t, s.Lab, 2, api.NoLists).Omitted["Peers"] > count })
	before := s.given(t)
	for i := range count {
		if err := p.Signed(l.madeUp(i), p.Router, hostile.IPAM, hostile.SpaceAsk(uint64(i), addrRange)); err != nil {
			t.Fatal(err)
		}
	}
	holds(t, "made-up peers neither vote nor own much", func() bool { return s.intact(t) && s.given(t)-before < 0.05 })
	// Nor does a message that another one signed count.
	unproved := summary(t, s.Lab, 1, api.NoLists).Router.MeshRefused["message-not-proved"]
	forged := *l.madeUp(0).Identity
	forged.Name = l.madeUp(1).Name
	if err := p.Signed(&hostile.Identity{Identity: &forged}, p.Router, hostile.IPAM, hostile.SpaceAsk(1, addrRange)); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "h1 refuses what another one signed", func() bool {
		return summary(t, s.Lab, 1, api.NoLists).Router.MeshRefused["message-not-proved"] > unproved
	})
}

// given returns the share of the range that others than the honest hosts own.
func (s *siege) given(t *testing.T) (share float64) {
	t.Helper()
	r := summary(t, s.Lab, 1, api.ListRing)
	for _, e := range r.IPAM.Entries {
		if !slices.Contains(s.names, e.Peer) {
			share += e.Size / r.IPAM.RangeNumIPs
		}
	}
	return share
}

// A member gives the host name of another host its own address, one outside, and one that
// a third host owns. Clients get the true one only.
func (s *siege) hostNames(t *testing.T, l *liar) {
	harness.Weft(t, s.Lab, 2, "attach", "--netns", s.Netns(harness.At(2, "c")), "--hostname", "web")
	p, _ := l.session(1, l.identity(peer.Name{}))
	name := "web.weft.internal"
	outside := netip.MustParseAddr("198.51.100.66")
	if err := p.HostNames(p.ID,
		names.Entry{Name: name, Container: "c", Addr: outside, Outside: true},
		names.Entry{Name: name, Container: "c", Addr: s.addrs[3]},
		names.Entry{Name: name, Container: "c", Addr: addrRange.Addr().Next()},
		names.Entry{Name: "own.weft.internal", Container: "c", Addr: outside, Outside: true},
	); err != nil {
		t.Fatal(err)
	}
	lookup := func(name string) string {
		_, out := harness.Try(t, s.Lab, 3, "dns-lookup", name)
		return strings.Join(strings.Fields(out), " ")
	}
	harness.Eventually(t, "h3 answers a name of the liar's own", func() bool { return lookup("own.weft.internal") == outside.String() })
	if got := lookup(name); got != s.addrs[2].String() {
		t.Errorf("%s has the addresses %s, want %s", name, got, s.addrs[2])
	}
}

// A member that binds the addresses of a container of another host gets none of them.
func (s *siege) bindings(t *testing.T, l *liar) {
	p, _ := l.session(1, l.identity(peer.Name{}))
	find := func(host int, a string) (list []api.Binding) {
		for _, b := range summary(t, s.Lab, host, api.ListBindings).Bindings.Entries {
			if slices.ContainsFunc(b.Addresses, func(x netip.Addr) bool { return x.String() == a }) {
				list = append(list, b)
			}
		}
		return list
	}
	own := netip.MustParseAddr("198.51.100.66")
	var victim api.Binding
	harness.Eventually(t, "h3 knows the binding of h2", func() bool {
		if found := find(3, s.addrs[2].String()); len(found) == 1 {
			victim = found[0]
		}
		return victim.Peer == s.names[1]
	})
	mac, err := net.ParseMAC(victim.MAC)
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := net.ParseMAC(s.names[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Bindings(p.ID,
		bindings.Binding{MAC: bindings.MAC{2, 6, 6, 6, 6, 6}, Kind: bindings.Container, Addrs: []netip.Addr{s.addrs[2], own}},
		bindings.Binding{MAC: bindings.MAC(mac), Kind: bindings.Container, Addrs: []netip.Addr{s.addrs[3]}},
		bindings.Binding{MAC: bindings.MAC(bridge), Kind: bindings.Exposed},
	); err != nil {
		t.Fatal(err)
	}
	for host := 1; host <= honest; host++ {
		harness.Eventually(t, "a host has heard the liar", func() bool { return len(find(host, own.String())) == 1 })
		for _, b := range find(host, s.addrs[2].String()) {
			honest := b.Peer == s.names[1]
			if (b.Refused == "") != honest || honest && b.MAC != victim.MAC {
				t.Errorf("h%d: of the addresses of a container of h2: %+v", host, b)
			}
		}
		for _, b := range find(host, s.addrs[3].String()) {
			if (b.Refused == "") != (b.Peer == s.names[2]) {
				t.Errorf("h%d: of the addresses of a container of h3: %+v", host, b)
			}
		}
	}
	// It may bind what nobody else has.
	harness.Weft(t, s.Lab, 2, "expose")
	for host := 1; host <= honest; host++ {
		harness.Eventually(t, "the bridge of h2 is bound", func() bool {
			return slices.ContainsFunc(summary(t, s.Lab, host, api.ListBindings).Bindings.Entries, func(b api.Binding) bool {
				return b.MAC == s.names[1] && b.Peer == s.names[1] && b.Refused == ""
			})
		})
	}
}

// Whatever a member calls itself and its names, a status has no control characters and no
// line that the router did not write.
func (s *siege) terminal(t *testing.T) {
	const nickname = "\x1b[2J\nh9\r\u202e\x07"
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{Nickname: nickname})
	p, _ := l.session(1, l.identity(peer.Name{}))
	if err := p.Bindings(p.ID, bindings.Binding{MAC: bindings.MAC{2, 7, 7, 7, 7, 7}, Kind: bindings.Container}); err != nil {
		t.Fatal(err)
	}
	for host := 1; host <= honest; host++ {
		harness.Eventually(t, "the liar is known", func() bool { return knows(t, s.Lab, host, p.ID.Name.String()) })
		for _, args := range [][]string{{"status"}, {"status", "peers"}, {"status", "connections"}, {"status", "dns"}, {"status", "ipam"}, {"status", "bindings"}, {"report"}, {"report", "-f", "{{json .Router.Peers}}"}, {"doctor"}} {
			_, out := harness.Try(t, s.Lab, host, args...)
			if out == "" || strings.ContainsAny(out, "\x1b\r\x07\u202e") || strings.Contains(out, "\nh9") {
				t.Errorf("h%d: weft %s prints %q", host, strings.Join(args, " "), out)
			}
		}
		log, err := os.ReadFile(s.LogFile(host))
		if err != nil || bytes.ContainsAny(log, "\x1b\r\x07\u202e") || bytes.Contains(log, []byte("\nh9")) {
			t.Errorf("h%d: its log: %v", host, err)
		}
	}
}

// Members state addresses at which other programs listen. Routers dial none of this host,
// and one of another host that states it.
func (s *siege) addressesToDial(t *testing.T) {
	const port = 7001
	var inside, outside atomic.Int64
	listen := func(host int, a string, count *atomic.Int64) {
		var ln net.Listener
		harness.Within(t, s.Lab, harness.At(host, ""), func() (err error) {
			ln, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(a), port).String())
			return err
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				count.Add(1)
				c.Close()
			}
		}()
		t.Cleanup(func() {
			ln.Close()
			<-done
		})
	}
	var own []netip.AddrPort
	for host := 1; host <= honest; host++ {
		for _, a := range []string{"127.0.0.1", testbed.Addr4(host).String()} {
			listen(host, a, &inside)
		}
	}
	listen(evilHost, testbed.Addr4(evilHost).String(), &outside)
	for _, a := range []string{"127.0.0.1", "127.0.0.53", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", testbed.Addr4(1).String(), testbed.Addr4(evilHost).String()} {
		own = append(own, netip.AddrPortFrom(netip.MustParseAddr(a), port))
	}
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{Addrs: own})
	p, _ := l.session(1, l.identity(peer.Name{}))
	const count = 20
	l.announceMadeUp(p, count)
	harness.Eventually(t, "the address of another host is dialled", func() bool { return outside.Load() >= honest })
	// h2 and h3 may dial the address of h1: that is another host for them.
	local := func() (dialled bool) {
		for host := 1; host <= honest; host++ {
			for _, c := range summary(t, s.Lab, host, api.NoLists).Router.Connections {
				a, err := netip.ParseAddrPort(c.Address)
				if err == nil && a.Port() == port && (a.Addr().IsLoopback() || a.Addr().IsLinkLocalUnicast() || a.Addr().IsMulticast() || a.Addr() == testbed.Addr4(host)) {
					t.Logf("h%d dials %s: %s %s", host, c.Address, c.State, c.Info)
					dialled = true
				}
			}
		}
		return dialled
	}
	holds(t, "no router dials an address that leads to itself", func() bool { return !local() })
	if n := inside.Load(); n > 4*2*count {
		t.Errorf("the address of h1 was dialled %d times", n)
	}
}

// A host starts while the others are away, and reaches only a member that refuses it: another
// router is said to have its identity. It waits for the others, and not for that router to end.
func TestMemberCannotMakeAnIdentityCollide(t *testing.T) {
	t.Parallel()
	s := newSiege(t)
	s.launch(t)
	for host := 1; host <= honest; host++ {
		if err := s.Kill(host); err != nil {
			t.Fatal(err)
		}
	}
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{})
	id := l.identity(peer.Name{})
	at := netip.AddrPortFrom(testbed.Addr4(evilHost), mesh.DefaultPort)
	var listener net.Listener
	if err := netdev.Do(s.Netns(l.place), func() (err error) {
		listener, err = net.Listen("tcp", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var refused sync.WaitGroup
	refused.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			refused.Go(func() {
				_ = l.Refuse(c, id, session.CodeIdentity, "another live peer uses the identity")
				c.Close()
			})
		}
	})
	defer refused.Wait()
	defer listener.Close()
	harness.Launch(t, s.Lab, 1, at.Addr().String())
	harness.Eventually(t, "the member has refused h1", func() bool {
		return summary(t, s.Lab, 1, api.NoLists).Router.HandshakeFailures[session.CodeIdentity.String()] > 0
	})
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := s.AddContainer(ctx, harness.At(1, "waits"), nil)
		asked <- err
	}()
	defer func() {
		cancel()
		<-asked
	}()
	harness.Eventually(t, "h1 says that it waits for the others", func() bool {
		pending := harness.Report(t, s.Lab, 1).IPAM.PendingAllocates
		return len(pending) == 1 && strings.Contains(pending[0], "addresses are given once one of them answers, or without an answer in")
	})
}
