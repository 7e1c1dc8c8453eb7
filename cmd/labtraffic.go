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

	"github.com/weft-net/weft/internal/testbed"
	"github.com/weft-net/weft/internal/testbed/traffic"
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
	var kind string
	var streams, size int
	var d time.Duration
	send := &cobra.Command{
		Use:   "send ADDRESS:PORT",
		Short: "Measure towards lab traffic serve and print JSON",
		Args:  atLeast(1, "name the address of the server"),
		RunE: func(c *cobra.Command, args []string) error {
			if streams < 1 || size < 1 || size > 65507 || d <= 0 {
				return usagef("%s: want at least one stream, 1 to 65507 bytes and a time", c.CommandPath())
			}
			var dialer net.Dialer
			k := traffic.Client{Dial: dialer.DialContext, Addr: args[0]}
			var r trafficResult
			var err error
			switch kind {
			case trafficTCP:
				r.BitsPerSecond, err = k.Bulk(c.Context(), streams, d)
			case trafficUDP:
				r.PacketsPerSecond, r.Lost, err = k.Packets(c.Context(), size, 0, d)
			case trafficLossy:
				r.PacketsPerSecond, err = k.Sustained(c.Context(), size, toleratedLoss, d)
			case trafficLatency:
				r.Median, r.P99, err = k.Latency(c.Context(), d)
			case trafficPinned:
				r.BitsPerSecond, err = k.PinnedBulk(c.Context(), streams, d)
			case trafficTrips:
				r.Median, r.P99, err = k.Trips(c.Context(), d)
			case trafficConnect:
				r.Median, r.P99, err = k.Connects(c.Context(), d)
			default:
				return usagef("%s: --kind %q: want tcp, tcp-pinned, udp, udp-sustained, latency, trips or connect", c.CommandPath(), kind)
			}
			if err != nil {
				return err
			}
			return json.NewEncoder(l.stdout).Encode(r)
		},
	}
	send.Flags().StringVar(&kind, "kind", trafficTCP, "tcp, tcp-pinned (senders on one CPU, receivers on another), udp (as fast as it goes), udp-sustained (with less than 1 % lost), latency, trips (round trips on one CPU) or connect")
	send.Flags().IntVar(&streams, "streams", 1, "TCP connections at once")
	send.Flags().IntVar(&size, "size", 64, "bytes of data in a UDP packet")
	send.Flags().DurationVar(&d, "time", time.Second, "how long to send")
	c.AddCommand(serve, send)
	return c
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
	ctx, cancel := context.WithTimeout(ctx, d+labPatience)
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
