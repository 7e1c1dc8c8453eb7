// Package process waits for the end of other processes and finds their last error in
// their logs.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// checkInterval is how often WaitExit checks its context, which cannot interrupt poll(2)
// on a pidfd.
const checkInterval = 50 * time.Millisecond

// WaitExit waits until a process has ended with all its threads, and so has closed its
// files and sockets. It does not wait until the parent has reaped it. If ctx ends first
// it returns the error of ctx.
func WaitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(checkInterval.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for process %d: %w", pid, ctx.Err())
		}
	}
}

// LastError returns the error that ended a weft process, from its log: the last line that
// begins with "weft: ", or else the last line.
func LastError(log []byte) string {
	lines := bytes.Split(bytes.TrimSpace(log), []byte{'\n'})
	for _, line := range slices.Backward(lines) {
		if text, ok := bytes.CutPrefix(line, []byte("weft: ")); ok {
			return string(text)
		}
	}
	if last := lines[len(lines)-1]; len(last) > 0 {
		return string(last)
	}
	return "the process ended without an error message"
}
