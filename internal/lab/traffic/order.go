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

// Kinds are all kinds, for messages.
var Kinds = []Kind{TCP, PinnedTCP, UDP, SustainedUDP, Latency, Trips, Connect}

// toleratedLoss is the share of packets that a sustained rate may lose.
const toleratedLoss = 0.01

// maxUDPSize is the most data that an IPv4 datagram carries, in bytes.
const maxUDPSize = 65507

// Order is one measurement.
type Order struct {
	Kind    Kind
	Streams int // TCP connections at once; 0: one
	Size    int // bytes of data in a UDP packet; 0: 64
	Time    time.Duration
}

// Result is what a measurement gives; what its kind does not measure is zero.
type Result struct {
	BitsPerSecond    float64       `json:"bitsPerSecond,omitempty"`
	PacketsPerSecond float64       `json:"packetsPerSecond,omitempty"`
	Lost             float64       `json:"lost,omitempty"` // share of the packets sent
	Median           time.Duration `json:"median,omitempty"`
	P99              time.Duration `json:"p99,omitempty"`
}

// Check returns what is wrong with o in one line, or nil.
func (o *Order) Check() error {
	if !slices.Contains(Kinds, o.Kind) {
		var words []string
		for _, k := range Kinds {
			words = append(words, string(k))
		}
		return fmt.Errorf("--kind %q: want one of %s", o.Kind, strings.Join(words, ", "))
	}
	if o.Streams < 0 || o.Size < 0 || o.Size > maxUDPSize || o.Time <= 0 {
		return fmt.Errorf("%d streams, %d bytes, %v: want at least one stream, 1 to %d bytes and a time", o.Streams, o.Size, o.Time, maxUDPSize)
	}
	return nil
}

// Args are the arguments of weft lab traffic send for o.
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

// Measure carries out o, which has passed Check, against a server.
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
