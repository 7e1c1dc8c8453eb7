package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/internal/poll"
)

// promised is how soon a change is repaired. A busy machine may add slack.
const (
	promised = time.Second
	slack    = 5 * time.Second
)

// rig is a host with a bridge that a Keeper keeps.
type rig struct {
	*keeper.Keeper
	t    *testing.T
	host string
	log  *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) lines(words string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.Buffer.String(), words)
}

func bridgeObject(b netdev.Bridge) keeper.Object {
	return keeper.Object{
		ID: owned.ID{Kind: owned.Bridge, Name: b.Name}, Make: b.Ensure,
		Look: func(v *netdev.View) ([]string, error) { return b.Faults(v), nil },
	}
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, host: nstest.New(t, "h"), log: &lockedBuffer{}}
	r.do(func() (err error) {
		r.Keeper, err = keeper.New(slog.New(slog.NewTextHandler(r.log, nil)))
		return err
	})
	t.Cleanup(r.Close)
	if err := r.Add(bridgeObject(netdev.Bridge{Name: "weft", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1376})); err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs the keeper until the end of the test.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	g.Go(func() { r.Run(ctx) })
	r.t.Cleanup(func() { cancel(); g.Wait() })
}

func (r *rig) do(f func() error) {
	r.t.Helper()
	if err := netdev.Do(r.host, f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) link(f func(netlink.Link) error) {
	r.t.Helper()
	r.do(func() error {
		l, err := netlink.LinkByName("weft")
		if err != nil {
			return err
		}
		return f(l)
	})
}

func (r *rig) soon(what string, ok func() bool) {
	r.t.Helper()
	began := time.Now()
	if err := poll.Until(promised+slack, 5*time.Millisecond, poll.True(ok)); err != nil {
		r.t.Fatalf("%s: not within %v\n%s", what, promised+slack, r.log)
	}
	if took := time.Since(began); took > promised {
		r.t.Logf("%s took %v", what, took)
	}
}

func (r *rig) up() (up bool) {
	r.do(func() error {
		v, err := netdev.ReadView()
		up = err == nil && v.Links["weft"] != nil && v.Links["weft"].Up
		return err
	})
	return up
}

// The bridge is made by Add, and made again and set up again when others change it. Each
// repair is in the log once.
func TestRepairs(t *testing.T) {
	r := newRig(t)
	if !r.up() || r.log.lines("repaired") > 0 {
		t.Fatalf("after Add: up %v\n%s", r.up(), r.log)
	}
	r.start()
	r.link(netlink.LinkSetDown)
	r.soon("set up again", r.up)
	r.soon("counted", func() bool { return r.Repairs()[owned.Bridge] == 1 })
	r.link(netlink.LinkDel)
	r.soon("made again", r.up)
	r.soon("counted", func() bool { return r.Repairs()[owned.Bridge] == 2 })
	if down, gone := r.log.lines(`fault="it is down"`), r.log.lines(`fault="it does not exist"`); down != 1 || gone != 1 {
		t.Errorf("%d and %d lines\n%s", down, gone, r.log)
	}
	if f := r.Faults(); len(f) > 0 {
		t.Errorf("faults %v", f)
	}
}

// What cannot be repaired is shown in words, Require fails with them, and when the reason is
// gone the object is made.
func TestCannotRepair(t *testing.T) {
	r := newRig(t)
	r.start()
	r.soon("the name is taken", func() (taken bool) {
		r.do(func() error {
			l, err := netlink.LinkByName("weft")
			if err == nil && l.Type() == "veth" {
				taken = true
				return nil
			}
			if err == nil {
				err = netlink.LinkDel(l)
			}
			// Unless the keeper was faster.
			_ = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "weft"}, PeerName: "other"})
			return err
		})
		return taken
	})
	const words = "an interface of that name exists and is of type veth"
	r.soon("the fault is shown", func() bool {
		f := r.Faults()
		return len(f) == 1 && f[0].Lasting && strings.Contains(f[0].Text, words)
	})
	if err := r.Require(); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("Require: %v", err)
	}
	r.link(netlink.LinkDel)
	r.soon("made again", r.up)
	r.soon("the fault has ended", func() bool { return len(r.Faults()) == 0 && r.Require() == nil })
}

// Require repairs before it answers, also if nobody runs the keeper.
func TestRequireRepairs(t *testing.T) {
	r := newRig(t)
	r.link(netlink.LinkSetDown)
	if err := r.Require(); err != nil || !r.up() {
		t.Errorf("up %v, %v", r.up(), err)
	}
}

// Software that sets the bridge down again and again is named, and does not make weft spend
// its time on it.
func TestFightIsBounded(t *testing.T) {
	r := newRig(t)
	r.start()
	var repaired uint64
	// It takes several rounds with growing pauses, each of which a busy machine makes longer.
	err := poll.Until(30*time.Second, 5*time.Millisecond, poll.True(func() bool {
		r.link(netlink.LinkSetDown)
		repaired = r.Repairs()[owned.Bridge]
		f := r.Faults()
		return len(f) == 1 && strings.Contains(f[0].Text, "other software changes it again and again (it is down)")
	}))
	if err != nil {
		t.Fatalf("the fight is not named: %v", err)
	}
	if repaired > 8 {
		t.Errorf("%d repairs before the fight was named", repaired)
	}
	if n := r.log.lines("repaired what"); n > 7 {
		t.Errorf("%d lines in the log", n)
	}
}

// Objects of a source come and go. An object that is dropped is left alone.
func TestSource(t *testing.T) {
	r := newRig(t)
	err := r.KeepAll(owned.Address, func(v *netdev.View) (list []keeper.Object) {
		if v.Links["weft"] == nil {
			return nil
		}
		a := netdev.BridgeAddress{Bridge: "weft", Addr: netip.MustParsePrefix("10.32.0.1/12")}
		return []keeper.Object{{
			ID: owned.ID{Kind: owned.Address, Name: a.Addr.String()}, Make: a.Ensure,
			Look: func(v *netdev.View) ([]string, error) { return a.Faults(v), nil },
		}}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	has := func() (has bool) {
		r.do(func() error {
			a, err := netdev.Addresses("weft")
			has = len(a) == 1
			return err
		})
		return has
	}
	r.soon("the address", has)
	r.link(func(l netlink.Link) error {
		return netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 32, 0, 1), Mask: net.CIDRMask(12, 32)}})
	})
	r.soon("the address again", has)
	r.link(netlink.LinkDel)
	r.soon("the address on a new bridge", has)
	r.Drop(owned.ID{Kind: owned.Bridge, Name: "weft"})
	r.link(netlink.LinkSetDown)
	if err := r.Require(); err != nil || r.up() {
		t.Errorf("a bridge that was given up: up %v, %v", r.up(), err)
	}
}

// An object that cannot be made is not kept.
// A repair counts although the object cannot be looked at right after it, as its owner is busy.
func TestRepairThatCannotBeChecked(t *testing.T) {
	r := newRig(t)
	var looks []error
	faulty := true
	err := r.Add(keeper.Object{
		ID: owned.ID{Kind: owned.Bridge, Name: "of the test"}, Make: func() error { faulty = false; return nil },
		Look: func(*netdev.View) (faults []string, err error) {
			if len(looks) > 0 {
				err, looks = looks[0], looks[1:]
			}
			if faulty {
				faults = []string{"it is down"}
			}
			return faults, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	faulty, looks = true, []error{nil, owned.ErrWaits}
	if err := r.Require(); err != nil {
		t.Error(err)
	}
	if n := r.Repairs()[owned.Bridge]; n != 1 {
		t.Errorf("%d repairs are counted", n)
	}
	if n := r.log.lines("repaired what other software changed"); n != 1 {
		t.Errorf("%d repairs are in the log", n)
	}
}

// A change that the kernel reports while an object is looked at makes another look due at once,
// and not at the next sweep.
func TestChangeDuringALook(t *testing.T) {
	r := newRig(t)
	looks, goOn := make(chan struct{}), make(chan struct{})
	err := r.Keep(keeper.Object{
		ID: owned.ID{Kind: owned.Rules, Name: "of the test"}, Make: func() error { return nil },
		Look: func(*netdev.View) ([]string, error) {
			select {
			case looks <- struct{}{}:
				<-goOn
			case <-t.Context().Done():
			}
			return nil, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer close(goOn)
	r.start()
	<-looks
	r.Wake(owned.Tables)
	goOn <- struct{}{}
	select {
	case <-looks:
	case <-time.After(promised + slack):
		t.Errorf("no other look within %v", promised+slack)
	}
}

func TestAddFails(t *testing.T) {
	r := newRig(t)
	refused := errors.New("refused")
	err := r.Add(keeper.Object{
		ID:   owned.ID{Kind: owned.TAP, Name: "t"},
		Look: func(*netdev.View) ([]string, error) { return []string{"it does not exist"}, nil },
		Make: func() error { return refused },
	})
	if !errors.Is(err, refused) || len(r.Faults()) > 0 || r.Require() != nil {
		t.Errorf("%v, faults %v", err, r.Faults())
	}
	if err := r.Add(keeper.Object{ID: owned.ID{Kind: "ghost", Name: "g"}}); err == nil {
		t.Error("an object whose kind is not in the table")
	}
}

// Nothing waits for an object that is slow to look at.
func TestSlowObject(t *testing.T) {
	r := newRig(t)
	stuck := make(chan struct{})
	slow := keeper.Object{
		ID:   owned.ID{Kind: owned.DockerRule, Name: "DOCKER-USER"},
		Look: func(*netdev.View) ([]string, error) { <-stuck; return nil, nil },
	}
	if err := r.Keep(slow); err != nil {
		t.Fatal(err)
	}
	if err := r.Add(slow); err == nil {
		t.Error("somebody waits for a slow object")
	}
	r.start()
	r.link(netlink.LinkSetDown)
	r.soon("set up again", r.up)
	if err := r.Require(); err != nil {
		t.Error(err)
	}
	close(stuck)
	r.Drop(slow.ID)
}
