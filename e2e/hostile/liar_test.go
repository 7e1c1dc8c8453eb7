package hostile

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
)

const password = "password of the lab"

var addrRange = netip.MustParsePrefix("10.32.0.0/12")

// liar is a place in a lab from which a hostile peer speaks to routers.
type liar struct {
	*hostile.Attack
	t     *testing.T
	lab   *testbed.Lab
	place testbed.Place
}

func newLiar(t *testing.T, lab *testbed.Lab, place testbed.Place, cfg hostile.Config) *liar {
	t.Helper()
	if cfg.Password == "" {
		cfg.Password = password
	}
	cfg.Range = addrRange
	a, err := hostile.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &liar{a, t, lab, place}
}

func (l *liar) identity(name peer.Name) *hostile.Identity {
	l.t.Helper()
	id, err := l.NewIdentity(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// announceMadeUp makes a session announce its links with the router and with made-up peers, and
// the entries of those.
func (l *liar) announceMadeUp(p *hostile.Peer, count int) {
	l.t.Helper()
	links := []peer.Name{p.Router}
	for i := range count {
		links = append(links, l.madeUp(i).Name)
	}
	if err := p.Link(links...); err != nil {
		l.t.Fatal(err)
	}
	for i := range count {
		if err := p.Announce(l.madeUp(i), p.ID.Name); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *liar) madeUp(i int) *hostile.Identity {
	l.t.Helper()
	id, err := l.MadeUp(i)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// dial makes a session with the router at an address, and reads it until the session or
// the test ends.
func (l *liar) dial(to netip.Addr, id *hostile.Identity) (p *hostile.Peer, ended <-chan error, err error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), harness.Timeout)
	defer cancel()
	err = netdev.Do(l.lab.Netns(l.place), func() error {
		p, err = l.Dial(ctx, netip.AddrPortFrom(to, mesh.DefaultPort).String(), id)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	end, gone := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(gone)
		end <- p.Read()
	}()
	l.t.Cleanup(func() {
		p.Close()
		<-gone
	})
	return p, end, nil
}

// session is dial to a host of the lab, which has to succeed.
func (l *liar) session(host int, id *hostile.Identity) (*hostile.Peer, <-chan error) {
	l.t.Helper()
	p, ended, err := l.dial(testbed.Addr4(host), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return p, ended
}

// try repeats a lie until it succeeds: first the liar has to learn what is true.
func (l *liar) try(what string, f func() error) {
	l.t.Helper()
	if err := poll.Until(harness.Timeout, 50*time.Millisecond, f); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

// holds wants a condition to hold for a time in which a lie would have had its effect.
func holds(t *testing.T, what string, ok func() bool) {
	t.Helper()
	const long = 2 * time.Second
	if poll.Until(long, 100*time.Millisecond, poll.True(func() bool { return !ok() })) == nil {
		t.Errorf("no more: %s", what)
	}
}

// summary asks a router for its state without long lists.
func summary(t *testing.T, lab *testbed.Lab, host int, lists api.Lists) *api.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
	defer cancel()
	r, err := api.NewClient(lab.Socket(host)).Summary(ctx, lists)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// names returns the names of the routers of the first hosts.
func routerNames(t *testing.T, lab *testbed.Lab, hosts int) (names []string) {
	t.Helper()
	for n := 1; n <= hosts; n++ {
		names = append(names, summary(t, lab, n, api.NoLists).Router.Name)
	}
	return names
}

// ownerOf returns the name of the peer that owns an address, as a host sees it.
func ownerOf(t *testing.T, lab *testbed.Lab, host int, a netip.Addr) (owner string) {
	t.Helper()
	for _, e := range summary(t, lab, host, api.ListRing).IPAM.Entries {
		if e.Token.Compare(a) <= 0 {
			owner = e.Peer
		}
	}
	return owner
}

// knows reports whether a host knows a peer.
func knows(t *testing.T, lab *testbed.Lab, host int, name string) bool {
	t.Helper()
	return slices.ContainsFunc(summary(t, lab, host, api.ListPeers).Router.Peers, func(p api.Peer) bool { return p.Name == name })
}

// linked reports whether a host has a link with a peer.
func linked(t *testing.T, lab *testbed.Lab, host int, name string) bool {
	t.Helper()
	return slices.ContainsFunc(summary(t, lab, host, api.NoLists).Router.Connections, func(c api.Connection) bool {
		return c.Name == name && c.State == api.StateEstablished
	})
}
