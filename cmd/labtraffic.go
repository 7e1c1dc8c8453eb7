package cmd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

// trafficResult is what lab traffic send prints, as JSON.
type trafficResult struct {
	BitsPerSecond    float64       `json:"bitsPerSecond,omitempty"`
	PacketsPerSecond float64       `json:"packetsPerSecond,omitempty"`
	Lost             float64       `json:"lost,omitempty"` // share of the packets sent
	Median           time.Duration `json:"median,omitempty"`
	P99              time.Duration `json:"p99,omitempty"`
}

// The kinds of lab traffic send.
const (
	trafficTCP     = "tcp"
	trafficUDP     = "udp"
	trafficLossy   = "udp-sustained"
	trafficLatency = "latency"
	trafficTrips   = "trips"
	trafficPinned  = "tcp-pinned"
	trafficConnect = "connect"
)

func (l *labApp) traffic() *cobra.Command {
	c := &cobra.Command{
		Use:    "traffic",
		Short:  "Measure a network between two processes",
		Hidden: true,
		Args:   subcommand,
		RunE:   showHelp,
	}
	serve := &cobra.Command{
		Use:   "serve ADDRESS:PORT",
		Short: "Answer lab traffic send; the first line is the address",
		Args:  atLeast(1, "name the address to listen on"),
		RunE: func(c *cobra.Command, args []string) error {
			ln, err := net.Listen("tcp", args[0])
			if err != nil {
				return fmt.Errorf("serve traffic: %w", err)
			}
			fmt.Fprintln(l.stdout, ln.Addr())
			return traffic.Serve(c.Context(), ln)
		},
	}
	c.AddCommand(serve, l.sendTraffic())
	return c
}

// trafficOrder is what lab traffic send is asked for.
type trafficOrder struct {
	kind          string
	streams, size int
	time          time.Duration
}

func (l *labApp) sendTraffic() *cobra.Command {
	var o trafficOrder
	c := &cobra.Command{
		Use:   "send ADDRESS:PORT",
		Short: "Measure towards lab traffic serve and print JSON",
		Args:  atLeast(1, "name the address of the server"),
		RunE: func(c *cobra.Command, args []string) error {
			if o.streams < 1 || o.size < 1 || o.size > 65507 || o.time <= 0 {
				return usagef("%s: want at least one stream, 1 to 65507 bytes and a time", c.CommandPath())
			}
			var dialer net.Dialer
			r, known, err := o.measure(c.Context(), traffic.Client{Dial: dialer.DialContext, Addr: args[0]})
			if !known {
				return usagef("%s: --kind %q: want tcp, tcp-pinned, udp, udp-sustained, latency, trips or connect", c.CommandPath(), o.kind)
			}
			if err != nil {
				return err
			}
			return json.NewEncoder(l.stdout).Encode(r)
		},
	}
	c.Flags().StringVar(&o.kind, "kind", trafficTCP, "tcp, tcp-pinned (senders on one CPU, receivers on another), udp (as fast as it goes), udp-sustained (with less than 1 % lost), latency, trips (round trips on one CPU) or connect")
	c.Flags().IntVar(&o.streams, "streams", 1, "TCP connections at once")
	c.Flags().IntVar(&o.size, "size", 64, "bytes of data in a UDP packet")
	c.Flags().DurationVar(&o.time, "time", time.Second, "how long to send")
	return c
}

// measure measures, if the kind is a known one.
func (o *trafficOrder) measure(ctx context.Context, k traffic.Client) (r trafficResult, known bool, err error) {
	switch o.kind {
	case trafficTCP:
		r.BitsPerSecond, err = k.Bulk(ctx, o.streams, o.time)
	case trafficPinned:
		r.BitsPerSecond, err = k.PinnedBulk(ctx, o.streams, o.time)
	case trafficUDP:
		r.PacketsPerSecond, r.Lost, err = k.Packets(ctx, o.size, 0, o.time)
	case trafficLossy:
		r.PacketsPerSecond, err = k.Sustained(ctx, o.size, toleratedLoss, o.time)
	case trafficLatency:
		r.Median, r.P99, err = k.Latency(ctx, o.time)
	case trafficTrips:
		r.Median, r.P99, err = k.Trips(ctx, o.time)
	case trafficConnect:
		r.Median, r.P99, err = k.Connects(ctx, o.time)
	default:
		return r, false, nil
	}
	return r, true, err
}

const trafficPort = "7001"

// toleratedLoss is the share of packets that a sustained rate may lose.
const toleratedLoss = 0.01

// trafficServer is a running lab traffic serve.
type trafficServer struct {
	cmd  *exec.Cmd
	addr string
}

// startTraffic starts a server in a place and returns when it listens.
func startTraffic(ctx context.Context, lab *testbed.Lab, place testbed.Place, addr netip.Addr) (*trafficServer, error) {
	exe, err := selfPath()
	if err != nil {
		return nil, err
	}
	cmd := lab.Command(ctx, place, exe, "lab", "traffic", "serve", net.JoinHostPort(addr.String(), trafficPort))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("measure on %s: %w", place, err)
	}
	if err := lab.Start(place, cmd); err != nil {
		return nil, fmt.Errorf("measure on %s: %w", place, err)
	}
	s := &trafficServer{cmd: cmd}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("measure on %s: the server did not start: %w", place, err)
	}
	s.addr = strings.TrimSpace(line)
	return s, nil
}

func (s *trafficServer) stop() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// measure runs lab traffic send in a place.
func (s *trafficServer) measure(ctx context.Context, lab *testbed.Lab, from testbed.Place, d time.Duration, args ...string) (trafficResult, error) {
	var r trafficResult
	exe, err := selfPath()
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, d+labTimeout)
	defer cancel()
	cmd := lab.Command(ctx, from, exe, append([]string{"lab", "traffic", "send", s.addr, "--time", d.String()}, args...)...)
	var out, words strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := lab.Run(from, cmd); err != nil {
		return r, fmt.Errorf("measure from %s to %s: %s: %w", from, s.addr, strings.TrimPrefix(oneLine(errors.New(words.String())), "weft: "), err)
	}
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		return r, fmt.Errorf("measure from %s to %s: %w", from, s.addr, err)
	}
	return r, nil
}
