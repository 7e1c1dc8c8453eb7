package tap

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// file is the open file of a TAP. If other software removes the TAP, Reopen makes it again,
// with a new file: readers and writers go on with that one.
type file struct {
	open func() (*os.File, error) // makes the TAP

	now atomic.Pointer[opened]

	mu     sync.Mutex // held by Reopen and Close
	closed bool       // guarded by mu
}

// opened is one file.
type opened struct {
	file *os.File
	raw  syscall.RawConn
	over chan struct{} // closed when another file replaces this one, or with the file
}

// start opens the first file.
func (f *file) start() error {
	o, err := f.next()
	if err != nil {
		return err
	}
	f.now.Store(o)
	return nil
}

func (f *file) next() (*opened, error) {
	osFile, err := f.open()
	if err != nil {
		return nil, err
	}
	raw, err := osFile.SyscallConn()
	if err != nil {
		osFile.Close()
		return nil, fmt.Errorf("make TAP: %w", err)
	}
	return &opened{osFile, raw, make(chan struct{})}, nil
}

// Reopen makes a TAP again that was removed, with the same name and the same offloads. It is
// down. The kernel refuses if there is an interface with that name. After Close the error is
// os.ErrClosed.
func (f *file) Reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	o, err := f.next()
	if err != nil {
		return err
	}
	old := f.now.Swap(o)
	close(old.over)
	old.file.Close() // its device is gone
	return nil
}

// Backlog implements Backlogger.
func (f *file) Backlog() (some bool) {
	_ = f.now.Load().raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		some = n > 0 && err == nil
	}) // a closed file has none
	return some
}

// Close implements Queue.
func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	o := f.now.Load()
	close(o.over)
	return o.file.Close()
}

// replaced waits until another file replaces one that no longer works. It is false if the
// TAP was closed.
func (f *file) replaced(o *opened) bool {
	<-o.over
	return f.now.Load() != o
}
