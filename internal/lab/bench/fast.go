package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/rival"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// The paths of the table fast, besides raw veth and kernel VXLAN.
const (
	pathExpress  = "weft express"
	pathBridged  = "weft bridged" // something judges bridged frames, as policies do
	pathDevice   = "weft device"  // by the VXLAN device, as over IPv6 and inside WireGuard
	pathMany     = "weft, 10,000 MAC addresses"
	pathSleeve   = "weft sleeve"
	pathBridge   = "plain bridge" // of one host
	pathLocal    = "weft, one host"
	manyMACs     = 10_000
	fastMTU      = rival.VXLANMTU
	manyInterval = 2 * time.Millisecond
)

// fastTable holds the fast datapath against what the kernel does by itself.
var fastTable = table{
	paths: []string{pathRaw, pathVXLAN, pathExpress, pathBridged, pathDevice, pathSleeve, pathMany, pathBridge, pathLocal},
	runs: []run{
		{order: pinnedOne, on: interHostPaths, metrics: []metric{
			fastMetric("TCP, 1 stream", "Gb/s", false, pathExpress, 1.05, 1.2, gigabits),
			fastMetric("TCP, 1 stream, bridged", "Gb/s", false, pathBridged, 0.9, 1, gigabits),
		}},
		{order: pinnedFour, on: interHostPaths, metrics: []metric{
			fastMetric("TCP, 4 streams", "Gb/s", false, pathExpress, 1.1, 1.3, gigabits),
			fastMetric("TCP, 4 streams, bridged", "Gb/s", false, pathBridged, 0.9, 1, gigabits),
		}},
		{order: blast, on: append([]string{pathMany}, interHostPaths...), metrics: []metric{
			fastMetric("UDP, 64 bytes, blast", "kpkt/s", false, pathExpress, 1.35, 1.6, kilopackets),
			fastMetric("UDP, 64 bytes, bridged", "kpkt/s", false, pathBridged, 0.75, 1, kilopackets),
			{name: "UDP, 10,000 MAC addresses", unit: "kpkt/s", must: 0.97, aim: 1, value: kilopackets, ours: pathMany, against: []string{pathExpress}},
		}},
		{order: oneCPUTrips, on: interHostPaths, metrics: []metric{
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

// farPaths are those between two hosts.
var interHostPaths = []string{pathRaw, pathVXLAN, pathExpress, pathBridged, pathDevice}

// fastMetric is a row that is held against kernel VXLAN.
func fastMetric(name, unit string, less bool, ours string, must, aim float64, value func(sample) (float64, bool)) metric {
	return metric{name: name, unit: unit, lowerIsBetter: less, must: must, aim: aim, value: value, ours: ours, against: []string{pathVXLAN}}
}

// fastLabs are those of the table: each variant of weft has one of its own, as a
// host has one router.
var fastLabs = []struct {
	suffix   string // of the lab's name
	flags    []string
	networks []fastNetwork
}{
	// In this order they are measured: near to what they are held against.
	{"x", nil, []fastNetwork{
		{pathBridge, plain(rival.Bridge), nil}, {pathLocal, localNetwork, nil},
		{pathRaw, plain(rawNetwork), nil}, {pathVXLAN, plain(rival.VXLAN), nil}, {pathExpress, carriedNetwork(true), nil},
	}},
	{"m", nil, []fastNetwork{{pathMany, carriedNetwork(true), teachMACs}}},
	{"j", nil, []fastNetwork{{pathBridged, bridgedNetwork, nil}}},
	{"d", []string{"--no-express"}, []fastNetwork{{pathDevice, carriedNetwork(false), nil}}},
	{"s", []string{"--no-fastdp"}, []fastNetwork{{pathSleeve, weftNetwork, nil}}},
}

// fastNetwork is a path of the table; before is that of path.
type fastNetwork struct {
	path    string
	make    func(context.Context, *testbed.Lab) (*rival.Network, error)
	prepare func(context.Context, *path) error
}

// plain is a network that nothing is waited for.
func plain(f func(*testbed.Lab) (*rival.Network, error)) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(_ context.Context, l *testbed.Lab) (*rival.Network, error) { return f(l) }
}

// fast measures the fast datapath, with the same MTU for all.
func (b *bench) fast(ctx context.Context, runs []run, got results) (err error) {
	var paths []path
	for _, v := range fastLabs {
		networks := slices.DeleteFunc(slices.Clone(v.networks), func(n fastNetwork) bool {
			return !slices.ContainsFunc(runs, func(r run) bool { return slices.Contains(r.on, n.path) })
		})
		if len(networks) == 0 {
			continue
		}
		l, bad := b.up(ctx, v.suffix, testbed.Config{Hosts: 2, Topology: testbed.Full}, slices.Concat([]string{"--mtu", fmt.Sprint(fastMTU)}, v.flags)...)
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

// makeFastPaths makes networks of one lab.
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

// carriedNetwork attaches a container on each host and waits until the kernel
// carries what they send each other.
func carriedNetwork(express bool) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
		n, err := weftNetwork(ctx, l)
		if err != nil {
			return nil, err
		}
		n.PIDs = nil // the routers carry nothing
		return n, fastInUse(ctx, l, n, express)
	}
}

// bridgedNetwork is carriedNetwork between hosts on which a rule sees each frame that
// crosses the bridge.
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

// fastInUse waits until a ping between the ends of a network, and its answer, go
// by the kernel at both hosts.
func fastInUse(ctx context.Context, l *testbed.Lab, n *rival.Network, express bool) error {
	var before [2]fastState
	for {
		if _, err := testbed.Ping(ctx, l.Netns(n.From), n.Addr); err != nil {
			return err
		}
		used, words := true, ""
		for i, p := range []testbed.Place{n.From, n.To} {
			now, err := fastStateOf(ctx, l, p.Host)
			if err != nil {
				return err
			}
			if !now.fast || now.express != express || now.tx <= before[i].tx || now.rx <= before[i].rx {
				used, words = false, fmt.Sprintf("h%d: %+v", p.Host, now)
			}
			before[i] = now
		}
		if used {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the fast datapath is not in use: %s: %w", words, err)
		}
	}
}

// fastState is what the router of a host says of its one link.
type fastState struct {
	fast, express bool
	info          string
	tx, rx        uint64 // frames that the kernel carried
}

func fastStateOf(ctx context.Context, l *testbed.Lab, host int) (s fastState, err error) {
	r, err := api.NewClient(l.Socket(host)).Report(ctx)
	if err != nil {
		return s, err
	}
	for _, c := range r.Router.Connections {
		if c.State == api.StateEstablished {
			s.fast, s.express, s.info = c.Kind == "fastdp", c.Express, c.Info
		}
	}
	for _, p := range r.Router.Fastdp.Peers {
		s.tx += p.TxPackets
		s.rx += p.RxPackets
	}
	return s, nil
}

// teachMACs has the sender's kernel know manyMACs stations at the far end.
// They are forgotten after a while, and made known again then.
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
			if err := netdev.Do(p.lab.Netns(p.to), speakAsMany); err != nil {
				return fmt.Errorf("make %d stations known from %s: %w", manyMACs, p.to, err)
			}
			sent = true
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the kernel knows %d of %d stations: %w", r.Router.Flows, manyMACs, err)
		}
	}
}

// speakAsMany sends a broadcast from each of manyMACs addresses, in the
// container where the calling thread is.
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
			time.Sleep(manyInterval) // the rate, as queues are bounded
		}
	}
	return nil
}
