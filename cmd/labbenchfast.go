package cmd

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
	pathExpress   = "weft express"
	pathJudged    = "weft judged" // something judges bridged frames, as policies do
	pathDevice    = "weft device" // by the VXLAN device, as over IPv6 and inside WireGuard
	pathMany      = "weft, 10,000 stations"
	pathSleeve    = "weft sleeve"
	pathBridge    = "plain bridge" // of one host
	pathLocal     = "weft, one host"
	manyStations  = 10_000
	fastMTU       = rival.VXLANMTU
	stationsPause = 2 * time.Millisecond
)

// fastTable holds the fast datapath against what the kernel does by itself.
var fastTable = benchTable{
	paths: []string{pathRaw, pathVXLAN, pathExpress, pathJudged, pathDevice, pathSleeve, pathMany, pathBridge, pathLocal},
	runs: []benchRun{
		{args: pinnedOne, on: farPaths, metrics: []metric{
			fastMetric("TCP, 1 stream", "Gb/s", false, pathExpress, 1.05, 1.2, gigabits),
			fastMetric("TCP, 1 stream, judged", "Gb/s", false, pathJudged, 0.9, 1, gigabits),
		}},
		{args: pinnedFour, on: farPaths, metrics: []metric{
			fastMetric("TCP, 4 streams", "Gb/s", false, pathExpress, 1.1, 1.3, gigabits),
			fastMetric("TCP, 4 streams, judged", "Gb/s", false, pathJudged, 0.9, 1, gigabits),
		}},
		{args: blast, on: append([]string{pathMany}, farPaths...), metrics: []metric{
			fastMetric("UDP, 64 bytes, blast", "kpkt/s", false, pathExpress, 1.35, 1.6, kilopackets),
			fastMetric("UDP, 64 bytes, judged", "kpkt/s", false, pathJudged, 0.75, 1, kilopackets),
			{name: "UDP, 10,000 stations", unit: "kpkt/s", must: 0.97, aim: 1, value: kilopackets, ours: pathMany, against: []string{pathExpress}},
		}},
		{args: oneCPUTrips, on: farPaths, metrics: []metric{
			fastMetric("round trip, median", "us", true, pathExpress, 0.95, 0.9, medianTrip),
			fastMetric("round trip, 99th", "us", true, pathExpress, 0.95, 0.9, lateTrip),
			fastMetric("round trip, median, judged", "us", true, pathJudged, 1.08, 1, medianTrip),
			fastMetric("round trip, 99th, judged", "us", true, pathJudged, 1.08, 1, lateTrip),
		}},
		{args: connects, on: []string{pathExpress, pathJudged, pathDevice, pathSleeve}, metrics: []metric{
			{name: "first packet, median", unit: "us", less: true, must: 1, aim: 0.7, value: medianTrip, ours: pathExpress, against: []string{pathSleeve}},
			{name: "first packet, judged", unit: "us", less: true, must: 1, aim: 0.7, value: medianTrip, ours: pathJudged, against: []string{pathSleeve}},
		}},
		{args: pinnedOne, on: []string{pathBridge, pathLocal}, metrics: []metric{
			{name: "TCP, 1 stream, one host", unit: "Gb/s", must: 1, aim: 1.3, value: gigabits, ours: pathLocal, against: []string{pathBridge}},
		}},
	},
}

// farPaths are those between two hosts.
var farPaths = []string{pathRaw, pathVXLAN, pathExpress, pathJudged, pathDevice}

// fastMetric is a row that is held against kernel VXLAN.
func fastMetric(name, unit string, less bool, ours string, must, aim float64, value func(sample) (float64, bool)) metric {
	return metric{name: name, unit: unit, less: less, must: must, aim: aim, value: value, ours: ours, against: []string{pathVXLAN}}
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
	{"m", nil, []fastNetwork{{pathMany, carriedNetwork(true), knowStations}}},
	{"j", nil, []fastNetwork{{pathJudged, judgedNetwork, nil}}},
	{"d", []string{"--no-express"}, []fastNetwork{{pathDevice, carriedNetwork(false), nil}}},
	{"s", []string{"--no-fastdp"}, []fastNetwork{{pathSleeve, weftNetwork, nil}}},
}

// fastNetwork is a path of the table; before is that of benchPath.
type fastNetwork struct {
	path   string
	make   func(context.Context, *testbed.Lab) (*rival.Network, error)
	before func(context.Context, *benchPath) error
}

// plain is a network that nothing is waited for.
func plain(f func(*testbed.Lab) (*rival.Network, error)) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(_ context.Context, lab *testbed.Lab) (*rival.Network, error) { return f(lab) }
}

// benchFast measures the fast datapath, with the same MTU for all.
func (l *labApp) benchFast(ctx context.Context, k benchConfig, runs []benchRun, results benchResults) (err error) {
	var paths []benchPath
	for _, v := range fastLabs {
		networks := slices.DeleteFunc(slices.Clone(v.networks), func(n fastNetwork) bool {
			return !slices.ContainsFunc(runs, func(r benchRun) bool { return slices.Contains(r.on, n.path) })
		})
		if len(networks) == 0 {
			continue
		}
		c := labConfig{hosts: 2, topology: string(testbed.Full), underlayMTU: 1500}
		config, bad := c.config(l.name+v.suffix, slices.Concat([]string{"--mtu", fmt.Sprint(fastMTU)}, v.flags, k.launch))
		if bad != nil {
			return bad
		}
		lab, bad := labUp(ctx, config)
		if bad != nil {
			return bad
		}
		defer func() { err = errors.Join(err, testbed.Down(config.Name)) }()
		made, bad := makeFastPaths(ctx, lab, networks)
		if bad != nil {
			return bad
		}
		paths = append(paths, made...)
	}
	return l.benchRounds(ctx, k, paths, runs, results)
}

// makeFastPaths makes networks of one lab.
func makeFastPaths(ctx context.Context, lab *testbed.Lab, networks []fastNetwork) ([]benchPath, error) {
	setup, cancel := context.WithTimeout(ctx, labTimeout)
	defer cancel()
	var paths []benchPath
	for _, n := range networks {
		p, err := makePath(setup, lab, n.path, func() (*rival.Network, error) { return n.make(setup, lab) })
		if err != nil {
			return nil, err
		}
		p.before = n.before
		paths = append(paths, p)
	}
	return paths, nil
}

// carriedNetwork attaches a container on each host and waits until the kernel
// carries what they send each other.
func carriedNetwork(express bool) func(context.Context, *testbed.Lab) (*rival.Network, error) {
	return func(ctx context.Context, lab *testbed.Lab) (*rival.Network, error) {
		n, err := weftNetwork(ctx, lab)
		if err != nil {
			return nil, err
		}
		n.PIDs = nil // the routers carry nothing
		return n, fastInUse(ctx, lab, n, express)
	}
}

// judgedNetwork is carriedNetwork between hosts on which a rule sees each frame that
// crosses the bridge.
func judgedNetwork(ctx context.Context, lab *testbed.Lab) (*rival.Network, error) {
	for h := 1; h <= 2; h++ {
		if err := netdev.Do(lab.Netns(testbed.Place{Host: h}), testbed.Judge); err != nil {
			return nil, fmt.Errorf("on h%d: %w", h, err)
		}
	}
	return carriedNetwork(false)(ctx, lab)
}

// localNetwork attaches two containers on one host.
func localNetwork(ctx context.Context, lab *testbed.Lab) (*rival.Network, error) {
	n := &rival.Network{From: testbed.Place{Host: 1, Container: "near1"}, To: testbed.Place{Host: 1, Container: "near2"}}
	return n, attachEnds(ctx, lab, n)
}

// fastInUse waits until a ping between the ends of a network, and its answer, go
// by the kernel at both hosts.
func fastInUse(ctx context.Context, lab *testbed.Lab, n *rival.Network, express bool) error {
	var before [2]fastState
	for {
		if _, err := testbed.Ping(ctx, lab.Netns(n.From), n.Addr); err != nil {
			return err
		}
		used, words := true, ""
		for i, p := range []testbed.Place{n.From, n.To} {
			now, err := fastStateOf(ctx, lab, p.Host)
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
		if err := wait(ctx, 100*time.Millisecond); err != nil {
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

func fastStateOf(ctx context.Context, lab *testbed.Lab, host int) (s fastState, err error) {
	r, err := api.NewClient(lab.Socket(host)).Report(ctx)
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

// knowStations has the sender's kernel know manyStations stations at the far end.
// They are forgotten after a while, and made known again then.
func knowStations(ctx context.Context, p *benchPath) error {
	ctx, cancel := context.WithTimeout(ctx, labTimeout)
	defer cancel()
	for sent := false; ; {
		r, err := api.NewClient(p.lab.Socket(p.from.Host)).Report(ctx)
		if err != nil {
			return err
		}
		if r.Router.Flows >= manyStations {
			return nil
		}
		if !sent {
			if err := netdev.Do(p.lab.Netns(p.to), speakAsMany); err != nil {
				return fmt.Errorf("make %d stations known from %s: %w", manyStations, p.to, err)
			}
			sent = true
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the kernel knows %d of %d stations: %w", r.Router.Flows, manyStations, err)
		}
	}
}

// speakAsMany sends a broadcast from each of manyStations addresses, in the
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
	for n := range uint32(manyStations) {
		binary.BigEndian.PutUint32(frame[8:], n)
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
			return err
		}
		if n%100 == 0 {
			time.Sleep(stationsPause) // the rate, as queues are bounded
		}
	}
	return nil
}
