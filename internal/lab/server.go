package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
	"github.com/weft-net/weft/internal/process"
)

const trafficPort = "7001"

// Server is a running process of weft lab traffic serve.
type Server struct {
	cmd  *exec.Cmd
	addr string // ADDRESS:PORT
}

// Serve starts a server in a place and returns when it listens. It runs until Stop, the end
// of ctx or the end of the lab.
func Serve(ctx context.Context, l *testbed.Lab, place testbed.Place, addr netip.Addr) (*Server, error) {
	cmd := l.Command(ctx, place, "weft", "lab", "traffic", "serve", net.JoinHostPort(addr.String(), trafficPort))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("measure on %s: %w", place, err)
	}
	if err := l.Start(place, cmd); err != nil {
		return nil, fmt.Errorf("measure on %s: %w", place, err)
	}
	s := &Server{cmd: cmd}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("measure on %s: the server did not start: %w", place, err)
	}
	s.addr = strings.TrimSpace(line)
	return s, nil
}

// Stop kills the server and waits for its end.
func (s *Server) Stop() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// Measure takes a measurement from a place to the server, in a process there.
func (s *Server) Measure(ctx context.Context, l *testbed.Lab, from testbed.Place, o traffic.Order) (traffic.Result, error) {
	var r traffic.Result
	ctx, cancel := context.WithTimeout(ctx, o.Time+Timeout)
	defer cancel()
	cmd := l.Command(ctx, from, "weft", append([]string{"lab", "traffic", "send", s.addr}, o.Args()...)...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := l.Run(from, cmd); err != nil {
		return r, fmt.Errorf("measure from %s to %s: %s: %w", from, s.addr, process.LastError(log.Bytes()), err)
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return r, fmt.Errorf("measure from %s to %s: %w", from, s.addr, err)
	}
	return r, nil
}
