package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/rival"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// The paths of the table fast, besides raw veth and kernel VXLAN.
const (
	pathExpress   = "weft express"
	pathUnguarded = "weft express, unguarded" // containers without a spoof guard
	pathNone      = "weft none"               // express, and IP packets as they are
	pathIPIP      = "weft ipip"               // express, in IPIP
	pathHostGW    = "host-gw"                 // routes of the kernel, as Flannel's backend
	pathBridged   = "weft bridged"            // a rule filters bridged frames, as policies do
	pathDevice    = "weft device"             // the VXLAN device of the kernel, as over IPv6 and inside WireGuard
	pathMany      = "weft, 10,000 MAC addresses"
	pathSleeve    = "weft sleeve"
	pathBridge    = "plain bridge" // on one host
	pathLocal     = "weft, one host"
	manyMACs      = 10_000
	fastMTU       = rival.VXLANMTU
	manyInterval  = 2 * time.Millisecond
)

// fastTable compares the fast datapath to plain devices of the kernel.
var fastTable = table{
	paths: []string{pathRaw, pathHostGW, pathNone, pathIPIP, pathVXLAN, pathExpress, pathUnguarded, pathBridged, pathDevice, pathSleeve, pathMany, pathBridge, pathLocal},
	runs: []run{
		{order: pinnedOne, on: append([]string{pathHostGW, pathNone, pathIPIP, pathUnguarded}, interHostPaths...), metrics: []metric{
			noneMetric("TCP, 1 stream, none", "Gb/s", false, 1.05, 1.15, gigabits),
			ipipMetric("TCP, 1 stream, ipip", "Gb/s", 1.05, 1.1, gigabits),
			fastMetric("TCP, 1 stream", "Gb/s", false, pathExpress, 1.05, 1.2, gigabits),
			fastMetric("TCP, 1 stream, bridged", "Gb/s", false, pathBridged, 0.9, 1, gigabits),
			{name: "TCP, 1 stream, spoof guard", unit: "Gb/s", must: 0.98, aim: 1, value: gigabits, ours: pathExpress, against: []string{pathUnguarded}},
		}},
		{order: pinnedFour, on: append([]string{pathHostGW, pathNone}, interHostPaths...), metrics: []metric{
			noneMetric("TCP, 4 streams, none", "Gb/s", false, 1, 1.15, gigabits),
			fastMetric("TCP, 4 streams", "Gb/s", false, pathExpress, 1.1, 1.3, gigabits),
			fastMetric("TCP, 4 streams, bridged", "Gb/s", false, pathBridged, 0.9, 1, gigabits),
		}},
		{order: blast, on: append([]string{pathHostGW, pathNone, pathIPIP, pathMany, pathUnguarded}, interHostPaths...), metrics: []metric{
			noneMetric("UDP, 64 bytes, none", "kpkt/s", false, 1.2, 1.5, kilopackets),
			ipipMetric("UDP, 64 bytes, ipip", "kpkt/s", 1, 1.1, kilopackets),
			fastMetric("UDP, 64 bytes, blast", "kpkt/s", false, pathExpress, 1.35, 1.6, kilopackets),
			fastMetric("UDP, 64 bytes, bridged", "kpkt/s", false, pathBridged, 0.75, 1, kilopackets),
			{name: "UDP, 64 bytes, spoof guard", unit: "kpkt/s", must: 0.98, aim: 1, value: kilopackets, ours: pathExpress, against: []string{pathUnguarded}},
			{name: "UDP, 10,000 MAC addresses", unit: "kpkt/s", must: 0.97, aim: 1, value: kilopackets, ours: pathMany, against: []string{pathExpress}},
		}},
		{order: oneCPUTrips, on: append([]string{pathHostGW, pathNone}, interHostPaths...), metrics: []metric{
			noneMetric("round trip, median, none", "us", true, 1, 0.9, medianTrip),
			fastMetric("round trip, median", "us", true, pathExpress, 0.95, 0.9, medianTrip),
			fastMetric("round trip, 99th", "us", true, pathExpress, 0.95, 0.9, p99Trip),
			fastMetric("round trip, median, bridged", "us", true, pathBridged, 1.08, 1, medianTrip),
			fastMetric("round trip, 99th, bridged", "us", true, pathBridged, 1.08, 1, p99Trip),
		}},
		{order: connects, on: []string{pathExpress, pathBridged, pathDevice, pathSleeve}, metrics: []metric{
			{name: "first packet, median", unit: "us", lowerIsBetter: true, must: 1, aim: 0.7, value: medianTrip, ours: pathExpress, against: []string{pathSleeve}},
			{name: "first packet, bridged", unit: "us", lowerIsBetter: true, must: 1, aim: 0.7, value: medianTrip, ours: pathBridged, against: []string{pathSleeve}},
		}},
		{order: pinnedOne, on: []string{pathBridge, pathLocal}, metrics: []metric{
			{name: "TCP, 1 stream, one host", unit: "Gb/s", must: 1, aim: 1.3, value: gigabits, ours: pathLocal, against: []string{pathBridge}},
		}},
	},
}

// interHostPaths are the paths between two hosts.
var interHostPaths = []string{pathRaw, pathVXLAN, pathExpress, pathBridged, pathDevice}

// fastMetric returns a row that compares a path of weft to kernel VXLAN.
func fastMetric(name, unit string, less bool, ours string, must, aim float64, value func(sample) (float64, bool)) metric {
	return metric{name: name, unit: unit, lowerIsBetter: less, must: must, aim: aim, value: value, ours: ours, against: []string{pathVXLAN}}
}

// noneMetric returns a row that compares packets without encapsulation to routes of the kernel.
func noneMetric(name, unit string, less bool, must, aim float64, value func(sample) (float64, bool)) metric {
	return metric{name: name, unit: unit, lowerIsBetter: less, must: must, aim: aim, value: value, ours: pathNone, against: []string{pathHostGW}}
}

// ipipMetric returns a row that compares IPIP to VXLAN of this build.
func ipipMetric(name, unit string, must, aim float64, value func(sample) (float64, bool)) metric {
	return metric{name: name, unit: unit, must: must, aim: aim, value: value, ours: pathIPIP, against: []string{pathExpress}}
}

// fastLabs are the labs of the table. Each variant of weft needs a lab of its own, because a
// host has one router.
var fastLabs = []struct {
	suffix   string // of the lab's name
	flags    []string
	networks []fastNetwork
}{
	// They are measured in this order, so each comes close to its reference.
	{"n", []string{"--encap", "none,vxlan"}, []fastNetwork{{pathHostGW, plain(rival.HostGW), nil}, {pathNone, encapNetwork("none"), nil}}},
	{"i", []string{"--encap", "ipip,vxlan"}, []fastNetwork{{pathIPIP, encapNetwork("ipip"), nil}}},
	{"x", nil, []fastNetwork{
		{pathBridge, plain(rival.Bridge), nil}, {pathLocal, localNetwork, nil},
		{pathRaw, plain(rawNetwork), nil}, {pathVXLAN, plain(rival.VXLAN), nil}, {pathExpress, carriedNetwork(true), nil}, {pathUnguarded, unguardedNetwork, nil},
	}},
	{"m", nil, []fastNetwork{{pathMany, carriedNetwork(true), teachMACs}}},
	{"j", nil, []fastNetwork{{pathBridged, bridgedNetwork, nil}}},
	{"d", []string{"--no-express"}, []fastNetwork{{pathDevice, carriedNetwork(false), nil}}},
	{"s", []string{"--no-fastdp"}, []fastNetwork{{pathSleeve, weftNetwork, nil}}},
}

// fastNetwork makes a path of the table; see path for prepare.
type fastNetwork struct {
	path    string
	make    func(context.Context, *testbed.Lab) (*rival.Network, error)
	prepare func(context.Context, *path) error
}

// plain adapts a function that makes a network without waiting.
func plain(f func(*testbed.Lab) (*rival.Network, error)) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(_ context.Context, l *testbed.Lab) (*rival.Network, error) { return f(l) }
}

// fast measures the table fast, with the same MTU for all paths.
func (b *bench) fast(ctx context.Context, runs []run, got results) (err error) {
	var paths []path
	for _, v := range fastLabs {
		networks := slices.DeleteFunc(slices.Clone(v.networks), func(n fastNetwork) bool {
			return !slices.ContainsFunc(runs, func(r run) bool { return slices.Contains(r.on, n.path) })
		})
		if len(networks) == 0 {
			continue
		}
		l, bad := b.up(ctx, v.suffix, testbed.Config{Hosts: 2, Topology: testbed.Full}, slices.Concat([]string{"--mtu", fmt.Sprint(fastMTU), "--encap", "vxlan"}, v.flags)...)
		if bad != nil {
			return bad
		}
		defer func() { err = errors.Join(err, testbed.Down(l.Name)) }()
		made, bad := makeFastPaths(ctx, l, networks)
		if bad != nil {
			return bad
		}
		paths = append(paths, made...)
	}
	return b.rounds(ctx, paths, runs, got)
}

// makeFastPaths makes the paths of one lab.
func makeFastPaths(ctx context.Context, l *testbed.Lab, networks []fastNetwork) ([]path, error) {
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	var paths []path
	for _, n := range networks {
		p, err := makePath(setup, l, n.path, func() (*rival.Network, error) { return n.make(setup, l) })
		if err != nil {
			return nil, err
		}
		p.prepare = n.prepare
		paths = append(paths, p)
	}
	return paths, nil
}

// carriedNetwork attaches a container on each host and waits until the kernel forwards their
// packets.
func carriedNetwork(express bool) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
		n, err := weftNetwork(ctx, l)
		if err != nil {
			return nil, err
		}
		n.PIDs = nil // the routers carry no packets
		return n, fastInUse(ctx, l, n, express, "vxlan")
	}
}

// encapNetwork is carriedNetwork in express mode with an encapsulation.
func encapNetwork(encap string) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
		n, err := weftNetwork(ctx, l)
		if err != nil {
			return nil, err
		}
		n.PIDs = nil
		return n, fastInUse(ctx, l, n, true, encap)
	}
}

// unguardedNetwork is carriedNetwork between containers that may spoof.
func unguardedNetwork(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
	n := &rival.Network{From: testbed.Place{Host: 1, Container: "free"}, To: testbed.Place{Host: 2, Container: "free"}}
	if err := attachEnds(ctx, l, n); err != nil {
		return nil, err
	}
	for _, p := range []testbed.Place{n.From, n.To} {
		if err := allowSpoof(ctx, l, p); err != nil {
			return nil, err
		}
	}
	return n, fastInUse(ctx, l, n, true, "vxlan")
}

func allowSpoof(ctx context.Context, l *testbed.Lab, p testbed.Place) error {
	_, err := api.NewClient(l.Socket(p.Host)).Attach(ctx, api.AttachRequest{Netns: l.Netns(p), AllowSpoof: true})
	return err
}

// bridgedNetwork is carriedNetwork between hosts with a rule that filters bridged frames.
func bridgedNetwork(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
	for h := 1; h <= 2; h++ {
		if err := netdev.Do(l.Netns(testbed.Place{Host: h}), testbed.FilterBridged); err != nil {
			return nil, fmt.Errorf("on h%d: %w", h, err)
		}
	}
	return carriedNetwork(false)(ctx, l)
}

// localNetwork attaches two containers on one host.
func localNetwork(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
	n := &rival.Network{From: testbed.Place{Host: 1, Container: "near1"}, To: testbed.Place{Host: 1, Container: "near2"}}
	return n, attachEnds(ctx, l, n)
}

// fastInUse waits until the kernels of both hosts forward a ping between the ends of a network
// and its answer, in an encapsulation of IPv4.
func fastInUse(ctx context.Context, l *testbed.Lab, n *rival.Network, express bool, encap string) error {
	var before [2]fastState
	for {
		if _, err := testbed.Ping(ctx, l.Netns(n.From), n.Addr); err != nil {
			return err
		}
		used, reason := true, ""
		for i, p := range []testbed.Place{n.From, n.To} {
			now, err := fastStateOf(ctx, l, p.Host)
			if err != nil {
				return err
			}
			v4, _, _ := strings.Cut(now.encap, "/")
			if !now.fast || now.express != express || v4 != encap || now.tx <= before[i].tx || now.rx <= before[i].rx {
				used, reason = false, fmt.Sprintf("h%d: %+v", p.Host, now)
			}
			before[i] = now
		}
		if used {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the fast datapath is not in use: %s: %w", reason, err)
		}
	}
}

// fastState is the state of the one link of a host, as its router reports it.
type fastState struct {
	fast, express bool
	encap, info   string
	tx, rx        uint64 // frames that the kernel forwarded
}

func fastStateOf(ctx context.Context, l *testbed.Lab, host int) (s fastState, err error) {
	r, err := api.NewClient(l.Socket(host)).Report(ctx)
	if err != nil {
		return s, err
	}
	for _, c := range r.Router.Connections {
		if c.State == api.StateEstablished {
			s.fast, s.express, s.encap, s.info = c.Kind == "fastdp", c.Express, c.Encap, c.Info
		}
	}
	for _, p := range r.Router.Fastdp.Peers {
		s.tx += p.TxPackets
		s.rx += p.RxPackets
	}
	return s, nil
}

// teachMACs makes the sender's kernel learn manyMACs MAC addresses at the far end, again if
// they have expired.
func teachMACs(ctx context.Context, p *path) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	for sent := false; ; {
		r, err := api.NewClient(p.lab.Socket(p.from.Host)).Report(ctx)
		if err != nil {
			return err
		}
		if r.Router.Flows >= manyMACs {
			return nil
		}
		if !sent {
			if err := allowSpoof(ctx, p.lab, p.to); err != nil {
				return err
			}
			if err := netdev.Do(p.lab.Netns(p.to), speakAsMany); err != nil {
				return fmt.Errorf("send from %d MAC addresses at %s: %w", manyMACs, p.to, err)
			}
			sent = true
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the kernel has learned %d of %d MAC addresses: %w", r.Router.Flows, manyMACs, err)
		}
	}
}

// speakAsMany sends a broadcast from each of manyMACs MAC addresses. The calling thread is in
// the namespace of the container.
func speakAsMany() error {
	i, err := net.InterfaceByName(netdev.IfaceName)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := make([]byte, 60)
	copy(frame, "\xff\xff\xff\xff\xff\xff\x02\x77")
	frame[12], frame[13] = 0x88, 0xb6 // local experimental ethertype 2, IEEE 802
	for n := range uint32(manyMACs) {
		binary.BigEndian.PutUint32(frame[8:], n)
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
			return err
		}
		if n%100 == 0 {
			time.Sleep(manyInterval) // limits the rate, because queues are bounded
		}
	}
	return nil
}
