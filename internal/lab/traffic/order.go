package traffic

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is a way to measure a network.
type Kind string

// The kinds of measurement.
const (
	TCP          Kind = "tcp"
	PinnedTCP    Kind = "tcp-pinned"    // senders on one CPU, receivers on another
	UDP          Kind = "udp"           // as fast as the sender can
	SustainedUDP Kind = "udp-sustained" // the highest rate that loses less than toleratedLoss
	Latency      Kind = "latency"
	Trips        Kind = "trips" // round trips between processes on one CPU
	Connect      Kind = "connect"
)

// Kinds lists all kinds.
var Kinds = []Kind{TCP, PinnedTCP, UDP, SustainedUDP, Latency, Trips, Connect}

// toleratedLoss is the fraction of packets that a sustained rate may lose.
const toleratedLoss = 0.01

// maxUDPSize is the maximum payload of a UDP datagram over IPv4 in bytes.
const maxUDPSize = 65507

// maxStreams bounds what one order opens.
const maxStreams = 1000

// Order describes one measurement.
type Order struct {
	Kind    Kind
	Streams int // concurrent TCP connections; 0 for one
	Size    int // payload of a UDP packet in bytes; 0 for 64
	Time    time.Duration
}

// Result is the result of a measurement. Fields that its kind does not measure are zero.
type Result struct {
	BitsPerSecond    float64       `json:"bitsPerSecond,omitempty"`
	PacketsPerSecond float64       `json:"packetsPerSecond,omitempty"`
	Lost             float64       `json:"lost,omitempty"` // fraction of the packets sent
	Median           time.Duration `json:"median,omitempty"`
	P99              time.Duration `json:"p99,omitempty"`
}

// Check returns an error of one line if o is invalid.
func (o *Order) Check() error {
	if !slices.Contains(Kinds, o.Kind) {
		var names []string
		for _, k := range Kinds {
			names = append(names, string(k))
		}
		return fmt.Errorf("--kind %q: want one of %s", o.Kind, strings.Join(names, ", "))
	}
	if o.Streams < 0 || o.Streams > maxStreams || o.Size < 0 || o.Size > maxUDPSize || o.Time <= 0 {
		return fmt.Errorf("%d streams, %d bytes, %v: want 1 to %d streams, 1 to %d bytes and a time", o.Streams, o.Size, o.Time, maxStreams, maxUDPSize)
	}
	return nil
}

// Args returns the arguments of weft lab traffic send for o.
func (o *Order) Args() []string {
	return []string{
		"--kind", string(o.Kind), "--streams", strconv.Itoa(o.streams()),
		"--size", strconv.Itoa(o.size()), "--time", o.Time.String(),
	}
}

func (o *Order) streams() int { return max(o.Streams, 1) }

func (o *Order) size() int {
	if o.Size == 0 {
		return 64
	}
	return o.Size
}

// Measure takes the measurement o, which has passed Check.
func (o *Order) Measure(ctx context.Context, c Client) (r Result, err error) {
	switch o.Kind {
	case TCP:
		r.BitsPerSecond, err = c.Bulk(ctx, o.streams(), o.Time)
	case PinnedTCP:
		r.BitsPerSecond, err = c.PinnedBulk(ctx, o.streams(), o.Time)
	case UDP:
		r.PacketsPerSecond, r.Lost, err = c.Packets(ctx, o.size(), 0, o.Time)
	case SustainedUDP:
		r.PacketsPerSecond, err = c.Sustained(ctx, o.size(), toleratedLoss, o.Time)
	case Latency:
		r.Median, r.P99, err = c.Latency(ctx, o.Time)
	case Trips:
		r.Median, r.P99, err = c.Trips(ctx, o.Time)
	case Connect:
		r.Median, r.P99, err = c.Connects(ctx, o.Time)
	}
	return r, err
}
