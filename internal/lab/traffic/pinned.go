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

// Trips returns the median and the 99th percentile of round trips of one byte
// over TCP, both ends on one CPU and in blocking calls, as netperf's TCP_RR with
// -T 0,0 has them. So a trip is what the path and its two ends cost, and not how
// long an idle CPU takes to wake, nor how Go's poller finds its goroutine: these
// are several times as long as a path through the kernel, and they come and go.
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

// PinnedBulk is Bulk with all senders on one CPU and all receivers on another, in
// blocking calls, as iperf3 has it with -A 0,1. Else where the scheduler puts them
// decides on more than the path does.
func (c Client) PinnedBulk(ctx context.Context, streams int, d time.Duration) (float64, error) {
	return c.bulkStreams(ctx, forPinned, streams, d, func(conn net.Conn, send func(io.Writer) error) error {
		return blocking(ctx, conn, firstCPU, func(s io.ReadWriter) error { return send(s) })
	})
}

// Which of the CPUs that this process may use.
type cpuChoice bool

const (
	firstCPU cpuChoice = false
	lastCPU  cpuChoice = true
)

// blocking runs f on a thread that stays on one CPU, with a socket whose calls
// block the thread. When ctx ends they fail.
func blocking(ctx context.Context, c net.Conn, cpu cpuChoice, f func(io.ReadWriter) error) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T is no TCP connection: %w", c, errors.ErrUnsupported)
	}
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer file.Close()
	fd := file.Fd() // which makes it block
	if err := unix.SetNonblock(int(fd), false); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	defer context.AfterFunc(ctx, func() { unix.Shutdown(int(fd), unix.SHUT_RDWR) })()

	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with its goroutine
		err := pin(cpu)
		if err == nil {
			err = f(socket(fd))
		}
		ended <- err
	}()
	return <-ended
}

// pin keeps the calling thread on one CPU.
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

// socket is a descriptor whose calls go to the kernel at once.
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
