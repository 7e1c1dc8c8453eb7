package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	neigh "github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/internal/seed"
)

var (
	ip4Here, ip4There = netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("10.32.0.2")
	ip6Here, ip6There = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::12:3456")
)

// asks is the request of the container for the MAC address of an address, a probe if from is invalid.
func asks(mac [6]byte, from, target netip.Addr) []byte {
	if target.Is4() {
		spa := make([]byte, 4)
		if from.IsValid() {
			spa = from.AsSlice()
		}
		return frame(all, mac, slices.Concat([]byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, mac[:], spa, make([]byte, 6), target.AsSlice()))
	}
	t, src, options := target.As16(), make([]byte, 16), []byte(nil)
	if from.IsValid() {
		src, options = from.AsSlice(), append([]byte{1, 1}, mac[:]...)
	}
	dst := [16]byte{0xff, 2, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]}
	return sumND(frame([6]byte{0x33, 0x33, 0xff, t[13], t[14], t[15]}, mac, slices.Concat(
		[]byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(24 + len(options)), 58, 255}, src, dst[:], []byte{135, 0, 0, 0, 0, 0, 0, 0}, t[:], options)))
}

// sumND fills in the checksum of a message of neighbour discovery.
func sumND(b []byte) []byte {
	b = bytes.Clone(b)
	b[56], b[57] = 0, 0
	s := uint32(len(b)-54) + 58
	for i := 22; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(b[56:], ^uint16(s))
	return b
}

func newNeighbourBench(t *testing.T) *bench {
	b := newBench(t)
	for a, m := range map[netip.Addr][6]byte{ip4Here: here, ip6Here: here, ip4There: there, ip6There: there} {
		b.check(b.PutNeighbour(a, Neighbour{MAC: m}))
	}
	return b
}

// ask runs the program on a request, and returns its verdict, the frame that it made, and what it
// counted.
func (b *bench) ask(f []byte) (verdict uint32, out []byte, counted Requests) {
	b.t.Helper()
	before := b.Requests()
	verdict, out = b.run(b.Datapath.c.fromPort, f, skb{})
	now := b.Requests()
	return verdict, out, Requests{Answered: now.Answered - before.Answered, Local: now.Local - before.Local}
}

// The program answers what the router would answer, in the same bytes.
func TestRequestsInTheKernel(t *testing.T) {
	b := newNeighbourBench(t)
	for _, a := range [][2]netip.Addr{{ip4Here, ip4There}, {ip6Here, ip6There}} {
		f := asks(here, a[0], a[1])
		want := neigh.AppendAnswer(nil, neigh.Message{Target: a[1], From: a[0], MAC: here}, there)
		for _, padding := range []int{0, 18} {
			verdict, out, counted := b.ask(append(bytes.Clone(f), make([]byte, padding)...))
			if verdict != redirect || !bytes.Equal(out, append(bytes.Clone(want), make([]byte, padding)...)) || counted != (Requests{Answered: 1}) {
				t.Errorf("the request for %s: verdict %d, counted %+v\n%x, want\n%x", a[1], verdict, counted, out, want)
			}
		}
		if verdict, _, counted := b.ask(asks(here2, a[1], a[0])); verdict != shot || counted != (Requests{Local: 1}) {
			t.Errorf("the request for %s on this host: verdict %d, counted %+v", a[0], verdict, counted)
		}
	}
	toRouter := func(what string, f []byte) {
		t.Helper()
		if verdict, out, counted := b.ask(f); verdict != redirect || !bytes.Equal(out, f) || counted != (Requests{}) {
			t.Errorf("%s: verdict %d, counted %+v, frame changed: %v", what, verdict, counted, !bytes.Equal(out, f))
		}
	}
	f4, f6 := asks(here, ip4Here, ip4There), asks(here, ip6Here, ip6There)
	both := func(what string) {
		t.Helper()
		toRouter(what, f4)
		toRouter(what+", IPv6", f6)
	}
	for what, f := range map[string][]byte{
		"ARP probe": asks(here, netip.Addr{}, ip4There), "duplicate address detection": asks(here, netip.Addr{}, ip6There),
		"not known": asks(here, ip4Here, ip4There.Next()), "not known, IPv6": asks(here, ip6Here, ip6There.Next()),
		"its own address": asks(there, ip4Here, ip4There), "its own address, IPv6": asks(there, ip6Here, ip6There),
		"ARP announcement": neigh.AppendAnnouncement(nil, ip4Here, here), "advertisement": neigh.AppendAnnouncement(nil, ip6Here, here),
		"ARP of another sender": with(f4, 27, 99), "ARP reply": with(f4, 21, 2), "other hardware": with(f4, 15, 6), "other protocol": with(f4, 17, 6),
		"long addresses": with(f4, 18, 8), "cut off": f4[:41], "cut off, IPv6": f6[:80], "with a VLAN tag": frame(all, here, vlan(f4[12:])),
		"over a router": sumND(with(f6, 21, 254)), "with a code": sumND(with(f6, 55, 1)), "wrong checksum": with(f6, 60, 1), "another sender": sumND(with(f6, 85, 99)),
		"another option": sumND(with(f6, 78, 14)), "long option": sumND(with(f6, 79, 2)), "another group": sumND(with(f6, 53, 99)), "all nodes": sumND(with(f6, 49, 0, 0, 0, 0, 1)),
		"from a group": sumND(with(f6, 22, 0xff)), "router solicitation": sumND(with(f6, 54, 133)), "longer": sumND(with(f6, 19, 40)), "not ICMPv6": with(f6, 20, 17),
	} {
		toRouter(what, f)
	}
	b.put(PeerKnown)
	both("the peer is not fast")
	b.put(PeerKnown | PeerFast | PeerExpress)
	b.check(b.Lease(-1))
	both("the router has been away for long")
	b.check(b.Lease(1 << 40))
	b.check(b.DeleteMAC(there))
	both("the MAC address is not known")
	b.putMAC(there, 2, 0, false)
	b.check(b.DeleteNeighbour(ip4There))
	b.check(b.DeleteNeighbour(ip4There))
	b.check(b.DeleteNeighbour(ip6There))
	both("it is not bound any more")
}

// Whatever a container sends, the program answers only what the parser of the router reads as the same
// request, with the same bytes.
func TestRequestsAgainstTheParser(t *testing.T) {
	b, rng := newNeighbourBench(t), seed.Rand(t)
	sources := [][]byte{asks(here, ip4Here, ip4There), asks(here, ip6Here, ip6There), asks(here, netip.Addr{}, ip6There), neigh.AppendAnnouncement(nil, ip6Here, here)}
	answers := 0
	for range 4000 {
		f := bytes.Clone(sources[rng.IntN(len(sources))])
		for range rng.IntN(3) {
			// The source stays that of the container, so that most frames get so far.
			f[12+rng.IntN(len(f)-12)] = byte(rng.IntN(256))
		}
		if rng.IntN(4) > 0 && len(f) > 58 {
			f = sumND(f)
		}
		_, out, counted := b.ask(f)
		if counted.Answered == 0 {
			if counted.Local == 0 && !bytes.Equal(out, f) {
				t.Fatalf("%x is changed to %x and not counted", f, out)
			}
			continue
		}
		answers++
		m, ok := neigh.Parse(f)
		want := neigh.AppendAnswer(nil, m, there)
		if !ok || !m.Target.IsValid() || !m.From.IsValid() || !bytes.Equal(out, want) {
			t.Fatalf("%x is read as %+v, %v\nand answered by\n%x, want\n%x", f, m, ok, out, want)
		}
	}
	if answers == 0 {
		t.Error("nothing was answered")
	}
}

// A process that starts leaves what an earlier one knew: packets use it until the bindings come.
func TestNeighboursOutliveTheProcess(t *testing.T) {
	h := newHost(t, 1, lab{})
	entry := func() (found Neighbour) {
		if err := h.Neighbours(func(a netip.Addr, n Neighbour) bool {
			if a == ip4There {
				found = n
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return found
	}
	put := func(n Neighbour) {
		t.Helper()
		if err := h.PutNeighbour(ip4There, n); err != nil {
			t.Fatal(err)
		}
	}
	put(Neighbour{MAC: there, Peer: 2})
	was := entry()
	h.stop()
	h.start()
	put(Neighbour{MAC: there, Peer: 2})
	if got := entry(); got != was || got.Since == 0 {
		t.Errorf("%+v, was %+v", got, was)
	}
	put(Neighbour{MAC: there, Peer: 3})
	if got := entry(); got.Peer != 3 || got.Since <= was.Since {
		t.Errorf("%+v, was %+v", got, was)
	}
	h.stop()
	h.opts.Binding = Binding{{1}}
	h.start()
	if got := entry(); got != (Neighbour{}) {
		t.Errorf("known under another configuration: %+v", got)
	}
}

// Numbers in the header are those of Go.
func TestNumbersOfRequests(t *testing.T) {
	text, err := os.ReadFile("bpf/weft.h")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := bytes.Cut(text, []byte("enum request {"))
	at, count := bytes.Index(list, []byte("REQUEST_ANSWERED")), bytes.Index(list, []byte("REQUEST_COUNT"))
	if local := bytes.Index(list, []byte("REQUEST_LOCAL")); at < 0 || local < at || count < local || requestAnswered != 0 || requestLocal != 1 {
		t.Error("enum request has another order than the indexes")
	}
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]uint32{bpfMapNeighbours: MaxNeighbours, bpfMapRequests: numRequests} {
		if got := spec.Maps[name].MaxEntries; got != n {
			t.Errorf("map %s has %d entries, want %d", name, got, n)
		}
	}
}

// Two containers find each other although no router answers, and what they ask reaches none.
func TestContainersResolveInTheKernel(t *testing.T) {
	for what, l := range map[string]lab{"express": {express: true}, "bridged": {express: true, bridged: true}, "device": {}, "clsact": {noTCX: true}} {
		t.Run(what, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			for _, h := range hosts {
				for _, o := range hosts {
					if h != o {
						forget(t, h.c, o.addr())
						forget(t, h.c, o.addr6())
					}
				}
			}
			a, b := hosts[0], hosts[1]
			a.reaches(b, 100)
			b.reaches(a, 100)
			for _, h := range hosts {
				if r := h.Requests(); r.Answered < 2 {
					t.Errorf("host %d counts %+v", h.id, r)
				}
				for len(h.up) > 0 {
					if m, ok := neigh.Parse(<-h.up); ok && m.Target.IsValid() && m.From.IsValid() {
						t.Errorf("host %d: the router got %+v", h.id, m)
					}
				}
			}
		})
	}
}

// forget removes what a container knows of an address.
func forget(t *testing.T, ns string, a netip.Addr) {
	t.Helper()
	in(t, ns, func() error {
		l, err := netlink.LinkByName("ethwe")
		if err != nil {
			return err
		}
		return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice()})
	})
}
