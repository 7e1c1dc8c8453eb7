package router_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/wire"
)

// relay is an underlay that loses packets and lets others be overtaken. Each
// router takes it for the other one.
//
//	h0 192.0.2.1 ==== 192.0.2.2 relay 192.0.3.1 ==== 192.0.3.2 h1
type relay struct {
	t     testing.TB
	socks [2]*net.UDPConn // facing the one router and the other
	to    [2]netip.AddrPort

	mu         sync.Mutex
	rng        *rand.Rand
	loss, hold float64 // shares of the packets
	held       [2][]heldPacket
	lost       [2]map[wire.Type]int // by the socket they came to, and type
	passed     int
}

// heldPacket goes on after some others of its direction have.
type heldPacket struct {
	b     []byte
	after int
}

func newRelay(t testing.TB, seed uint64) *relay {
	return &relay{t: t, rng: rand.New(rand.NewPCG(seed, 1)), lost: [2]map[wire.Type]int{{}, {}}}
}

// join is for options.
func (r *relay) join(a, b *host) {
	ns := nstest.New(r.t, "relay")
	for i, h := range []*host{a, b} {
		at := netip.AddrFrom4([4]byte{192, 0, byte(2 + i), 1})
		own, its := at, at.Next()
		if i == 0 {
			own, its = its, own
		}
		nstest.Veth(r.t, 1500, ns, h.name.String()[15:]+"r", netip.PrefixFrom(own, 24), h.ns, "up0", netip.PrefixFrom(its, 24))
		r.to[i] = netip.AddrPortFrom(its, h.LocalAddr().Port())
		if err := netdev.Do(ns, func() (err error) {
			r.socks[i], err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0)))
			return err
		}); err != nil {
			r.t.Fatal(err)
		}
		raw, err := r.socks[i].SyscallConn()
		if err != nil {
			r.t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) }); e != nil || err != nil {
			r.t.Fatal(e, err)
		}
	}
	var wg sync.WaitGroup
	for i := range r.socks {
		wg.Go(func() { r.run(i) })
	}
	r.t.Cleanup(func() { r.socks[0].Close(); r.socks[1].Close(); wg.Wait() })
	face := func(i int) netip.AddrPort { return r.socks[i].LocalAddr().(*net.UDPAddr).AddrPort() }
	a.NeighbourUp(router.Neighbour{Name: b.name, Addr: face(0), Dialled: true})
	b.NeighbourUp(router.Neighbour{Name: a.name, Addr: face(1)})
}

// run forwards the packets that come to socket i.
func (r *relay) run(i int) {
	b := make([]byte, 2000)
	for {
		n, _, err := r.socks[i].ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.t.Error(err)
			return
		}
		for _, p := range r.pass(i, b[:n]) {
			if _, err := r.socks[1-i].WriteToUDPAddrPort(p, r.to[1-i]); err != nil && !errors.Is(err, net.ErrClosed) {
				r.t.Error(err)
			}
		}
	}
}

// pass returns the packets to forward after a packet came.
func (r *relay) pass(i int, b []byte) (out [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.rng.Float64() < r.loss:
		r.lost[i][wire.Type(b[0])]++
	case r.rng.Float64() < r.hold:
		r.held[i] = append(r.held[i], heldPacket{bytes.Clone(b), 1 + r.rng.IntN(20)})
		return nil
	default:
		out = append(out, b)
		r.passed++
	}
	left := r.held[i][:0]
	for _, h := range r.held[i] {
		if h.after--; h.after > 0 {
			left = append(left, h)
			continue
		}
		out = append(out, h.b)
		r.passed++
	}
	r.held[i] = left
	return out
}

func (r *relay) set(loss, hold float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loss, r.hold = loss, hold
}

// missing is how many packets of a type that came to socket i have not gone
// on.
func (r *relay) missing(i int, typ wire.Type) (lost, held int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.held[i] {
		if wire.Type(h.b[0]) == typ {
			held++
		}
	}
	return r.lost[i][typ], held
}

// lossyHosts are two on a relay that begins to lose one packet in a hundred
// and to hold back one in twenty when their links are up.
func lossyHosts(t *testing.T) (*relay, []*host) {
	const seed = 1
	r := newRelay(t, seed)
	hosts := newHosts(t, 2, options{mtu: 1376, join: r.join})
	echo(t, hosts[0], hosts[1], addr(0).Addr(), addr(1).Addr(), 100)
	for _, h := range hosts {
		h.settle(1500 - 71)
	}
	r.set(0.01, 0.05)
	return r, hosts
}

// TestALostPacketCostsOneSegment counts: of trains of datagrams that cross TAP
// and sockets as GSO packets, one is missing for each packet that the underlay
// lost, and no other; all others come as they were sent, and once.
func TestALostPacketCostsOneSegment(t *testing.T) {
	r, hosts := lossyHosts(t)
	check := noDrops(t, hosts)
	f := newFlow(t, hosts[0], hosts[1], addr(0).Addr(), addr(1).Addr())
	hosts[0].pin(hosts[1], addr(1).Addr())
	const trains = 150
	seen := make([]bool, trains*flowTrain)
	got, strays := 0, 0
	overflows := nstest.Overflows(t)
	for i := range trains {
		f.send()
		deadline := time.Now().Add(timeout)
		for {
			// What the relay says first, so that it never says too little.
			lost, held := r.missing(0, wire.Partial)
			if got+lost+held+strays == int(f.next) {
				break
			}
			num, err := f.receive(5 * time.Millisecond)
			var late net.Error
			switch {
			case errors.As(err, &late) && late.Timeout():
				if n := int(f.next) - got - lost - held; time.Now().After(deadline) && uint64(n) <= nstest.Overflows(t)-overflows {
					strays = n // the kernel's queues were full of what others send
				} else if time.Now().After(deadline) {
					t.Fatalf("train %d: %d datagrams sent, %d received, %d lost and %d held by the relay", i, f.next, got, lost, held)
				}
				continue
			case err != nil:
				t.Fatal(err)
			case num >= f.next || seen[num]:
				t.Fatalf("datagram %d of %d came twice, or was never sent", num, f.next)
			}
			seen[num] = true
			got++
		}
	}
	lost, _ := r.missing(0, wire.Partial)
	if lost < trains*flowTrain/200 {
		t.Errorf("only %d of %d packets were lost", lost, trains*flowTrain)
	}
	if got := hosts[1].Status().TAPGSOOut > 0; got != offloads(t).UDP {
		t.Errorf("GSO packets came out: %v", got)
	}
	check()
}

// TestStreamsOverALossyUnderlay: they come whole. Where packets are only lost,
// senders repeat what was in those and little more; where packets overtake each
// other as well, kernels take some for lost that are not.
func TestStreamsOverALossyUnderlay(t *testing.T) {
	r, hosts := lossyHosts(t)
	check := noDrops(t, hosts)
	const n = 4 << 20
	for _, hold := range []float64{0, 0.05} {
		r.set(0.01, hold)
		for i, h := range hosts {
			before, _ := r.missing(i, wire.Partial)
			info := bulk(t, h, hosts[1-i], addr(1-i).Addr(), n)
			lost, _ := r.missing(i, wire.Partial)
			lost -= before
			t.Logf("%d segments sent, %d packets lost, %d segments sent again", info.Segs_out, lost, info.Total_retrans)
			// A GSO packet has some ten times as many segments.
			if hold == 0 && int(info.Total_retrans) > 3*lost+50 {
				t.Errorf("%d of %d segments were sent again, and %d packets lost", info.Total_retrans, info.Segs_out, lost)
			}
		}
	}
	check()
}
