package cmd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/testbed"
	"github.com/weft-net/weft/internal/testbed/rival"
)

// The paths of the table fast, besides raw veth and kernel VXLAN.
const (
	pathExpress   = "weft express"
	pathDevice    = "weft device" // as where something judges bridged frames
	pathMany      = "weft, 10,000 stations"
	pathBridge    = "plain bridge" // of one host
	pathLocal     = "weft, one host"
	manyStations  = 10_000
	fastMTU       = rival.VXLANMTU
	stationsPause = 2 * time.Millisecond
)

// fastTable holds the fast datapath against what the kernel does by itself.
var fastTable = benchTable{
	paths: []string{pathRaw, pathVXLAN, pathExpress, pathDevice, pathMany, pathBridge, pathLocal},
	runs: []benchRun{
		{args: oneStream, on: farPaths, metrics: []metric{
			fastMetric("TCP, 1 stream", "Gb/s", false, pathExpress, 1.05, 1.2, gigabits),
			fastMetric("TCP, 1 stream, device", "Gb/s", false, pathDevice, 0.9, 1, gigabits),
		}},
		{args: fourStreams, on: farPaths, metrics: []metric{
			fastMetric("TCP, 4 streams", "Gb/s", false, pathExpress, 1.1, 1.3, gigabits),
			fastMetric("TCP, 4 streams, device", "Gb/s", false, pathDevice, 0.9, 1, gigabits),
		}},
		{args: blast, on: append([]string{pathMany}, farPaths...), metrics: []metric{
			fastMetric("UDP, 64 bytes, blast", "kpkt/s", false, pathExpress, 1.35, 1.6, kilopackets),
			fastMetric("UDP, 64 bytes, device", "kpkt/s", false, pathDevice, 0.75, 1, kilopackets),
			{name: "UDP, 10,000 stations", unit: "kpkt/s", must: 0.97, aim: 1, value: kilopackets, ours: pathMany, against: []string{pathExpress}},
		}},
		{args: roundTrips, on: farPaths, metrics: []metric{
			fastMetric("round trip, median", "us", true, pathExpress, 0.95, 0.9, medianTrip),
			fastMetric("round trip, 99th", "us", true, pathExpress, 0.95, 0.9, lateTrip),
			fastMetric("round trip, median, device", "us", true, pathDevice, 1.08, 1, medianTrip),
			fastMetric("round trip, 99th, device", "us", true, pathDevice, 1.08, 1, lateTrip),
		}},
		{args: oneStream, on: []string{pathBridge, pathLocal}, metrics: []metric{
			{name: "TCP, 1 stream, one host", unit: "Gb/s", must: 1, aim: 1.3, value: gigabits, ours: pathLocal, against: []string{pathBridge}},
		}},
	},
}

// farPaths are those between two hosts.
var farPaths = []string{pathRaw, pathVXLAN, pathExpress, pathDevice}

// fastMetric is a row that is held against kernel VXLAN.
func fastMetric(name, unit string, less bool, ours string, must, aim float64, value func(sample) (float64, bool)) metric {
	return metric{name: name, unit: unit, less: less, must: must, aim: aim, value: value, ours: ours, against: []string{pathVXLAN}}
}

// benchFast measures the fast datapath. Each of its variants has a lab of its
// own, as a host has one router; all have the same MTU.
func (l *labApp) benchFast(ctx context.Context, k benchConfig, runs []benchRun, results benchResults) (err error) {
	var paths []benchPath
	add := func(lab *testbed.Lab, name string, network func() (*rival.Network, error)) error {
		p, err := makePath(ctx, lab, name, network)
		paths = append(paths, p)
		return err
	}
	for _, v := range []struct {
		path, suffix string
		flags        []string
		more         func(lab *testbed.Lab, n *rival.Network) error
	}{
		{pathExpress, "x", nil, func(lab *testbed.Lab, n *rival.Network) error {
			near := testbed.Place{Host: 1, Container: "c2"}
			return errors.Join(
				add(lab, pathRaw, func() (*rival.Network, error) {
					return &rival.Network{From: testbed.Place{Host: 1}, To: testbed.Place{Host: 2}, Addr: testbed.Addr4(2)}, nil
				}),
				add(lab, pathVXLAN, func() (*rival.Network, error) { return rival.VXLAN(lab) }),
				add(lab, pathBridge, func() (*rival.Network, error) { return rival.Bridge(lab) }),
				add(lab, pathLocal, func() (*rival.Network, error) {
					ps, err := lab.AddContainer(ctx, near, nil)
					if err != nil {
						return nil, err
					}
					addr, err := addrOf(ps)
					return &rival.Network{From: n.From, To: near, Addr: addr}, err
				}))
		}},
		{pathDevice, "d", []string{"--no-express"}, nil},
		{pathMany, "m", nil, func(lab *testbed.Lab, n *rival.Network) error { return knowStations(ctx, lab, n.To) }},
	} {
		c := labConfig{hosts: 2, topology: string(testbed.Full), underlayMTU: 1500}
		flags := append([]string{"--mtu", fmt.Sprint(fastMTU)}, v.flags...)
		config, err := c.config(l.name+v.suffix, append(flags, k.launch...))
		if err != nil {
			return err
		}
		lab, err := labUp(ctx, config)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, testbed.Down(config.Name)) }()
		var network *rival.Network
		err = add(lab, v.path, func() (n *rival.Network, err error) {
			if network, err = weftNetwork(ctx, lab); err != nil {
				return nil, err
			}
			network.PIDs = nil // the routers carry nothing
			return network, fastInUse(ctx, lab, network, v.path != pathDevice)
		})
		if err == nil && v.more != nil {
			err = v.more(lab, network)
		}
		if err != nil {
			return err
		}
	}
	return l.benchRounds(ctx, k, paths, runs, results)
}

// fastInUse waits until pings between the ends of a network go by the kernel.
func fastInUse(ctx context.Context, lab *testbed.Lab, n *rival.Network, express bool) error {
	ctx, cancel := context.WithTimeout(ctx, labPatience)
	defer cancel()
	client := api.NewClient(lab.Socket(n.From.Host))
	carried := func() (packets uint64, words string, err error) {
		r, err := client.Report(ctx)
		if err != nil {
			return 0, "", err
		}
		for _, c := range r.Router.Connections {
			if c.Kind != "fastdp" || c.Express != express {
				words = c.Info
			}
		}
		for _, p := range r.Router.Fastdp.Peers {
			packets += p.TxPackets
		}
		return packets, words, nil
	}
	for {
		before, _, err := carried()
		if err != nil {
			return err
		}
		if _, err := testbed.Ping(ctx, lab.Netns(n.From), n.Addr); err != nil {
			return err
		}
		after, words, err := carried()
		if err != nil {
			return err
		}
		if words == "" && after > before {
			return nil
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the fast datapath is not in use: %s: %w", words, err)
		}
	}
}

// knowStations has the other host's router know manyStations stations at a place:
// it sends a broadcast from each.
func knowStations(ctx context.Context, lab *testbed.Lab, at testbed.Place) error {
	err := netdev.Do(lab.Netns(at), func() error {
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
	})
	if err != nil {
		return fmt.Errorf("make %d stations known from %s: %w", manyStations, at, err)
	}
	ctx, cancel := context.WithTimeout(ctx, labPatience)
	defer cancel()
	for {
		r, err := api.NewClient(lab.Socket(1)).Report(ctx)
		if err != nil {
			return err
		}
		if r.Router.Flows >= manyStations {
			return nil
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the kernel knows %d of %d stations: %w", r.Router.Flows, manyStations, err)
		}
	}
}
