package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

func randomName() string {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return "t" + hex.EncodeToString(b[:])
}

// newLab makes the underlay of a lab that ends with the test.
func newLab(t *testing.T, c Config) *Lab {
	t.Helper()
	nstest.RequireRoot(t)
	c.Name = randomName()
	l, err := Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(c.Name); err != nil {
			t.Error(err)
		}
	})
	return l
}

const (
	timeout = 30 * time.Second       // for expected packets, on a busy machine
	silence = 300 * time.Millisecond // for packets that must not come
)

// waitTime returns how long to wait for a packet.
func waitTime(expected bool) time.Duration {
	if expected {
		return timeout
	}
	return silence
}

// reaches checks whether an echo request of host a is answered.
func reaches(t *testing.T, l *Lab, a int, to netip.Addr, want bool) {
	t.Helper()
	p, err := NewPinger(l.Netns(Place{Host: a}), to)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = p.Once(8, waitTime(want))
	if (err == nil) != want {
		t.Errorf("h%d to %s: %v, want an answer: %v", a, to, err, want)
	}
}

func TestTopologies(t *testing.T) {
	for _, c := range []struct {
		topology Topology
		joined   [][2]int
	}{
		{Full, [][2]int{{1, 2}, {1, 3}, {2, 3}}},
		{Line, [][2]int{{1, 2}, {2, 3}}},
		{Star, [][2]int{{1, 2}, {1, 3}}},
	} {
		t.Run(string(c.topology), func(t *testing.T) {
			l := newLab(t, Config{Hosts: 3, Topology: c.topology})
			for a := 1; a <= 3; a++ {
				for b := 1; b <= 3; b++ {
					if a == b {
						continue
					}
					want := slices.Contains(c.joined, [2]int{min(a, b), max(a, b)})
					reaches(t, l, a, Addr4(b), want)
					reaches(t, l, a, Addr6(b), want)
				}
			}
		})
	}
}

func TestCutAndHealOneWay(t *testing.T) {
	l := newLab(t, Config{Hosts: 2, Topology: Full})
	reaches(t, l, 1, Addr4(2), true)
	for range 2 { // it may be repeated
		if err := l.Cut(1, 2, Packets); err != nil {
			t.Fatal(err)
		}
	}
	// Only the direction from h1 to h2 is cut.
	datagram(t, l, 2, 1, true)
	datagram(t, l, 1, 2, false)
	for range 2 {
		if err := l.Heal(1, 2, Packets); err != nil {
			t.Fatal(err)
		}
	}
	reaches(t, l, 1, Addr4(2), true)
	reaches(t, l, 2, Addr6(1), true)
}

// datagram checks whether a UDP datagram gets from host a to host b.
func datagram(t *testing.T, l *Lab, a, b int, want bool) {
	t.Helper()
	server := listenUDP(t, l, b)
	client := dialUDP(t, l, a, server.LocalAddr().String())
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Now().Add(waitTime(want)))
	_, _, err := server.ReadFrom(make([]byte, 1))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if (err == nil) != want {
		t.Errorf("a datagram of h%d to h%d: %v, want it to arrive: %v", a, b, err, want)
	}
}

func TestCutOfDialsIsOneWay(t *testing.T) {
	l := newLab(t, Config{Hosts: 2, Topology: Full})
	if err := l.Cut(1, 2, Dials); err != nil {
		t.Fatal(err)
	}
	dialTCP(t, l, 1, 2, false)
	dialTCP(t, l, 2, 1, true)
	reaches(t, l, 1, Addr4(2), true)
}

func TestUnderlayMTU(t *testing.T) {
	l := newLab(t, Config{Hosts: 2, Topology: Full, UnderlayMTU: 9000})
	p, err := NewPinger(l.Netns(Place{Host: 1}), Addr4(2))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Once(1400, timeout); err != nil {
		t.Error(err)
	}
}

func TestCreateRefusesExistingLab(t *testing.T) {
	l := newLab(t, Config{Hosts: 2, Topology: Full})
	_, err := Create(l.Config)
	if err == nil || !strings.Contains(err.Error(), "exists already; take it down with: weft lab down --name "+l.Name) {
		t.Errorf("create a second time: %v", err)
	}
	reaches(t, l, 1, Addr4(2), true)
}

func TestLabsAreIndependent(t *testing.T) {
	labs := make([]*Lab, 2)
	for i := range labs {
		labs[i] = newLab(t, Config{Hosts: 2, Topology: Full})
	}
	if err := Down(labs[0].Name); err != nil {
		t.Fatal(err)
	}
	reaches(t, labs[1], 1, Addr4(2), true)
	left, err := namespaces(labs[0].Name)
	if err != nil || len(left) > 0 {
		t.Errorf("down left %v, %v", left, err)
	}
}

func TestDownRemovesEverything(t *testing.T) {
	l := newLab(t, Config{Hosts: 2, Topology: Full})
	cmd := exec.Command("sleep", "1000")
	if err := l.Start(Place{Host: 2}, cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := Down(l.Name); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(timeout):
		t.Error("down left a process of the lab alive")
	}
	if left, err := namespaces(l.Name); err != nil || len(left) > 0 {
		t.Errorf("down left namespaces %v, %v", left, err)
	}
	if exists(labDir(l.Name)) {
		t.Errorf("down left %s", labDir(l.Name))
	}
	if err := Down(l.Name); err != nil {
		t.Errorf("down a second time: %v", err)
	}
}

func TestDownOfIncompleteLab(t *testing.T) {
	nstest.RequireRoot(t)
	name := randomName()
	// A killed `lab up` leaves some namespaces and no lab.json.
	if err := netdev.NewNS("weft-" + name + "-h1"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(labDir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(s Summary) bool { return s.Name == name })
	if i < 0 || list[i].Complete || !slices.Equal(list[i].Hosts, []string{"h1"}) {
		t.Errorf("list shows an incomplete lab as %+v", list)
	}
	if err := Down(name); err != nil {
		t.Fatal(err)
	}
	if left, _ := namespaces(name); len(left) > 0 || exists(labDir(name)) {
		t.Errorf("down of an incomplete lab left %v", left)
	}
}

func TestListAndOpen(t *testing.T) {
	l := newLab(t, Config{Hosts: 3, Topology: Star, Flags: []string{"--mtu", "1300"}})
	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(s Summary) bool { return s.Name == l.Name })
	if i < 0 || !list[i].Complete || !slices.Equal(list[i].Hosts, []string{"h1", "h2", "h3"}) {
		t.Errorf("list: %+v", list)
	}
	again, err := Open(l.Name)
	if err != nil || again.Topology != Star || again.Hosts != 3 || !slices.Equal(again.Flags, l.Flags) {
		t.Errorf("open: %+v, %v", again, err)
	}
	if _, err := Open(l.Name + "x"); err == nil || !strings.Contains(err.Error(), "there is no lab") {
		t.Errorf("open a missing lab: %v", err)
	}
	if err := l.CheckPlace(Place{Host: 4}); err == nil || !strings.Contains(err.Error(), "has no host h4, only h1 to h3") {
		t.Errorf("check h4: %v", err)
	}
}

func TestConcurrentCreateMakesOneLab(t *testing.T) {
	nstest.RequireRoot(t)
	name := randomName()
	t.Cleanup(func() {
		if err := Down(name); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() { _, errs[i] = Create(Config{Name: name, Hosts: 2, Topology: Full}) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		}
	}
	l, err := Open(name)
	if made != 1 || err != nil {
		t.Fatalf("%d labs were made, want 1: %v; open: %v", made, errs, err)
	}
	reaches(t, l, 1, Addr4(2), true)
}

func TestPingEndsWithItsContext(t *testing.T) {
	l := newLab(t, Config{Hosts: 1, Topology: Full})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Ping(ctx, l.Netns(Place{Host: 1}), Addr4(9)); err == nil {
		t.Error("a missing host answered")
	}
}

// A steady ping counts each request by itself, and goes on while some are not answered.
func TestSteadyPingCountsEachRequest(t *testing.T) {
	l := newLab(t, Config{Hosts: 2, Topology: Full})
	p, err := NewPinger(l.Netns(Place{Host: 1}), Addr4(2))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const interval, wait = 5 * time.Millisecond, 300 * time.Millisecond
	count := func(cut bool) (sent, lost int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if cut {
			if err := l.Cut(1, 2, Packets); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Heal(1, 2, Packets); err != nil {
					t.Fatal(err)
				}
			}()
		}
		if sent, lost, err = p.Steady(ctx, 8, interval, wait); err != nil || sent < 20 {
			t.Fatalf("%d requests: %v", sent, err)
		}
		return sent, lost
	}
	// The neighbour's MAC address is asked for again after a second only.
	if _, err := Ping(t.Context(), l.Netns(Place{Host: 1}), Addr4(2)); err != nil {
		t.Fatal(err)
	}
	if sent, lost := count(false); lost > sent/10 {
		t.Errorf("%d of %d requests were lost", lost, sent)
	}
	if sent, lost := count(true); lost != sent {
		t.Errorf("%d of %d requests were lost over a link that is cut", lost, sent)
	}
}
