package hostile

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
)

// sleeveTo matches packets to the port of sleeve at an address.
func sleeveTo(to netip.Addr) func([]byte) bool {
	const ip, udp = 14, 14 + 20
	return func(f []byte) bool {
		return len(f) > udp+8 && f[12] == 8 && f[13] == 0 && f[ip] == 0x45 && f[ip+9] == unix.IPPROTO_UDP &&
			[4]byte(f[ip+16:]) == to.As4() && binary.BigEndian.Uint16(f[udp+2:]) == 6783
	}
}

// Whoever sees the packets of the underlay sends them again, cut and changed: the far end
// drops each, and traffic goes on.
func TestPacketsOfTheUnderlayAreNotReplayed(t *testing.T) {
	t.Parallel()
	s := newSiege(t, "--no-fastdp")
	s.launch(t)
	drops := func() (n uint64) {
		r := summary(t, s.Lab, 1, api.NoLists).Router
		for _, c := range r.Connections {
			for _, d := range c.Drops {
				n += d
			}
		}
		for _, d := range r.Drops {
			n += d
		}
		return n
	}
	ping, err := testbed.NewPinger(s.Netns(harness.At(2, "c")), s.addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer ping.Close()
	far := harness.OpenWire(t, s.Lab, harness.At(2, ""), testbed.HostInterface)
	stop := far.Capture(sleeveTo(testbed.Addr4(1)))
	for range 100 {
		if err := harness.Answered(t, ping, 100); err != nil {
			t.Fatal(err)
		}
	}
	seen := stop()
	if len(seen) < 50 { // requests; the kernel may have joined some
		t.Fatalf("only %d packets were captured", len(seen))
	}
	inside := harness.OpenWire(t, s.Lab, harness.At(1, "c"), netdev.IfaceName)
	echo := inside.Capture(func(f []byte) bool { // requests that reach the container
		return len(f) > 34 && f[12] == 8 && f[13] == 0 && f[14+9] == unix.IPPROTO_ICMP && f[34] == 8
	})
	before := drops()
	for i, f := range seen {
		for _, change := range []func([]byte) []byte{
			func(f []byte) []byte { return f },
			func(f []byte) []byte { f[len(f)-1] ^= 1; return f },
			func(f []byte) []byte { f[14+20+8+4+i%16] ^= 0x80; return f }, // its header
		} {
			f := change(slices.Clone(f))
			f[14+20+6], f[14+20+7] = 0, 0 // without a checksum, which the card was to compute
			if err := far.Send(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	harness.Eventually(t, "the packets are dropped", func() bool { return drops() >= before+uint64(len(seen)) })
	if again := echo(); len(again) > 0 {
		t.Errorf("%d replayed requests reached the container", len(again))
	}
	for range 50 {
		if err := harness.Answered(t, ping, 100); err != nil {
			t.Fatalf("traffic does not go on: %v", err)
		}
	}
}

// A container of one host sends from a hundred thousand MAC addresses. The table stays
// bounded, and those of other hosts keep their places.
func TestManyMACsDoNotPushOutOthers(t *testing.T) {
	t.Parallel()
	s := newSiege(t, "--no-fastdp")
	s.launch(t)
	harness.AllowSpoof(t, s.Lab, harness.At(3, "c"), true)
	w := harness.OpenWire(t, s.Lab, harness.At(3, "c"), netdev.IfaceName)
	frame := make([]byte, 60)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0x66})
	frame[12], frame[13] = 0x88, 0xb5 // for experiments
	ping, err := testbed.NewPinger(s.Netns(harness.At(2, "c")), s.addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer ping.Close()
	table := func() api.MACTable { return summary(t, s.Lab, 1, api.NoLists).Router.MACTable }
	lost, sent := 0, 0
	for i := 0; i < 100_000; i++ {
		binary.BigEndian.PutUint32(frame[8:], uint32(i))
		if err := w.Send(frame); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			sent++
			if _, err := ping.Once(100, time.Second); err != nil {
				lost++
			}
		}
	}
	if lost > sent/20 { // a full queue of the kernel drops some
		t.Errorf("%d of %d pings were lost", lost, sent)
	}
	harness.Eventually(t, "frames from more addresses are refused", func() bool { return table().Refused > 0 })
	if n := table().Entries; n > 1<<17 {
		t.Errorf("the table has %d addresses", n)
	}
	for host := 1; host <= 2; host++ {
		use, ok := s.RouterPID(host)
		if !ok {
			t.Fatal("a router ended")
		}
		u, err := testbed.Usage(use)
		if err != nil || !raced && u.Resident > 200<<20 {
			t.Errorf("h%d uses %d MB: %v", host, u.Resident>>20, err)
		}
	}
}

// Peers that a member made up open sessions over relays with everybody, and never go on.
// Two hosts without a direct link agree on keys all the same.
func TestRelayedHostsAgreeOnKeysDuringAFlood(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: evilHost, Password: password, Flags: []string{"--no-discovery", "--ipalloc-init", "consensus=3"}})
	harness.Launch(t, lab, 2)
	harness.Launch(t, lab, 1, testbed.Addr4(2).String())
	harness.Launch(t, lab, 3, testbed.Addr4(2).String())
	harness.Converge(t, lab)
	names := routerNames(t, lab, honest)
	l := newLiar(t, lab, harness.At(evilHost, ""), hostile.Config{})
	p, _ := l.session(2, l.identity(peer.Name{}))
	const count = 300
	l.announceMadeUp(p, count)
	for _, host := range []int{1, 3} {
		harness.Eventually(t, "the made-up peers are known", func() bool { return summary(t, lab, host, api.NoLists).Omitted["Peers"] > count })
	}
	var done atomic.Bool
	var flood sync.WaitGroup
	flood.Go(func() {
		// More only takes the processor from the routers, which need a multiple under the race
		// detector.
		every := time.Millisecond / 2
		if raced {
			every *= 8
		}
		pace := time.NewTicker(every)
		defer pace.Stop()
		for n := uint32(0); !done.Load(); n++ {
			<-pace.C
			for _, to := range []string{names[0], names[2]} {
				name, err := peer.ParseName(to)
				if err == nil {
					err = p.OpenRelayed(name, l.madeUp(int(n)%count).Name, n)
				}
				if err != nil {
					t.Errorf("after %d openings: %v", n, err)
					return
				}
			}
		}
	})
	defer func() {
		done.Store(true)
		flood.Wait()
	}()
	harness.AddContainer(t, lab, 1, "c")
	a := harness.AddContainer(t, lab, 3, "c")[0].Addr()
	start := time.Now()
	harness.Reach(t, lab, harness.At(1, "c"), a)
	if took := time.Since(start); took > harness.Slack {
		t.Errorf("the first answer came after %v", took)
	}
	sealed := slices.ContainsFunc(summary(t, lab, 1, api.ListRelayed).Router.Relayed, func(r api.RelayedPeer) bool { return r.Name == names[2] && r.Sealed })
	if !sealed {
		t.Error("frames between h1 and h3 are not sealed")
	}
}
