package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Trips returns the median and the 99th percentile of round trips of one byte over TCP. Both
// ends run on one CPU and use blocking calls, like netperf's TCP_RR with -T 0,0. So a trip
// contains the cost of the path and its two ends only. It contains neither the wake-up of an
// idle CPU nor Go's network poller, which take several times as long as a path through the
// kernel and vary.
func (c Client) Trips(ctx context.Context, d time.Duration) (median, p99 time.Duration, err error) {
	conn, closeAll, err := c.open(ctx, forTrips)
	if err != nil {
		return 0, 0, fmt.Errorf("round trips to %s: %w", c.Addr, err)
	}
	defer closeAll()
	err = blocking(ctx, conn, firstCPU, func(s io.ReadWriter) (err error) {
		median, p99, err = trips(s, d)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("round trips to %s: %w", c.Addr, err)
	}
	return median, p99, nil
}

// PinnedBulk is Bulk with all senders on one CPU and all receivers on another, in blocking
// calls, like iperf3 -A 0,1. Otherwise the placement by the scheduler influences the result
// more than the path does.
func (c Client) PinnedBulk(ctx context.Context, streams int, d time.Duration) (float64, error) {
	return c.bulkStreams(ctx, forPinned, streams, d, func(conn net.Conn, send func(io.Writer) error) error {
		return blocking(ctx, conn, firstCPU, func(s io.ReadWriter) error { return send(s) })
	})
}

// cpuChoice selects one of the CPUs that this process may use.
type cpuChoice bool

const (
	firstCPU cpuChoice = false
	lastCPU  cpuChoice = true
)

// blocking runs f on a thread that is pinned to one CPU, with a socket whose calls block the
// thread. When ctx ends these calls fail.
func blocking(ctx context.Context, c net.Conn, cpu cpuChoice, f func(io.ReadWriter) error) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T is not a TCP connection: %w", c, errors.ErrUnsupported)
	}
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer file.Close()
	fd := file.Fd() // this call sets blocking mode
	if err := unix.SetNonblock(int(fd), false); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	defer context.AfterFunc(ctx, func() { unix.Shutdown(int(fd), unix.SHUT_RDWR) })()

	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		err := pin(cpu)
		if err == nil {
			err = f(socket(fd))
		}
		ended <- err
	}()
	return <-ended
}

// pin pins the calling thread to one CPU.
func pin(which cpuChoice) error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	var cpus []int
	for cpu := 0; len(cpus) < may.Count(); cpu++ {
		if may.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	cpu := cpus[0]
	if which == lastCPU {
		cpu = cpus[len(cpus)-1]
	}
	one.Set(cpu)
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &one))
}

// socket is a file descriptor that is used without Go's network poller.
type socket int

func (s socket) Read(b []byte) (int, error) {
	n, err := unix.Read(int(s), b)
	if err != nil {
		return 0, os.NewSyscallError("read", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (s socket) Write(b []byte) (int, error) {
	n, err := unix.Write(int(s), b)
	return max(n, 0), os.NewSyscallError("write", err)
}
