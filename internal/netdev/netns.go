package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nsDir is the directory of named network namespaces, the same as that of `ip netns`.
const nsDir = "/run/netns"

// NSByName returns the path of the network namespace that NewNS(name) made.
func NSByName(name string) string { return filepath.Join(nsDir, name) }

// NSByPID returns the path of the network namespace of a process.
func NSByPID(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/net" }

// NSID identifies a network namespace independent of the path that leads to it. It is
// valid as long as the namespace exists; after that the kernel may reuse it.
type NSID struct{ Dev, Ino uint64 }

// String returns the identity as the kernel prints it, like net:[4026531840].
func (id NSID) String() string { return fmt.Sprintf("net:[%d]", id.Ino) }

// IdentifyNS returns the identity of the network namespace at path.
func IdentifyNS(path string) (NSID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return NSID{}, fmt.Errorf("identify network namespace %s: %w", path, err)
	}
	return NSID{st.Dev, st.Ino}, nil
}

// currentNS is the path of the calling thread's network namespace.
const currentNS = "/proc/thread-self/ns/net"

// NewNS makes a network namespace and mounts it under a name that must not be in use.
// Its loopback interface is down.
func NewNS(name string) (err error) {
	if name == "" || name != filepath.Base(name) {
		return fmt.Errorf("make network namespace %q: not a plain file name", name)
	}
	path := NSByName(name)
	wrap := func(what string, cause error) error {
		return fmt.Errorf("make network namespace %s: %s: %w", name, what, cause)
	}
	if err := shareNSDir(); err != nil {
		return wrap("prepare "+nsDir, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return wrap("create mount point", err)
	}
	f.Close()
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	done := make(chan error)
	go func() {
		// The thread is never unlocked, so the Go runtime ends it with this goroutine
		// and no other goroutine runs in the new namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- wrap("unshare", err)
			return
		}
		if err := unix.Mount(currentNS, path, "", unix.MS_BIND, ""); err != nil {
			done <- wrap("mount on "+path, err)
			return
		}
		done <- nil
	}()
	return <-done
}

// shareNSDir makes nsDir a mount point of its own that propagates to other mount
// namespaces. So an unmount takes effect in all of them, and DeleteNS leaves no
// namespace behind.
func shareNSDir() error {
	if err := os.MkdirAll(nsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", nsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(nsDir, nsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", nsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// DeleteNS removes a name that NewNS made. The namespace ends with its last process. A
// missing name is no error.
func DeleteNS(name string) error {
	path := NSByName(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %s: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// ListNS returns the names of all named network namespaces, sorted.
func ListNS() ([]string, error) {
	entries, err := os.ReadDir(nsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	sort.Strings(names)
	return names, nil
}

// Do runs f on a thread of its own in the network namespace at path and returns its
// error. Goroutines that f starts do not inherit the namespace; sockets that it opens
// stay in it.
//
// It needs CAP_SYS_ADMIN, unless the process is in that namespace already.
func Do(path string, f func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	return onThread(ns, path, f)
}

// DoIn is Do in a network namespace that is open. Unlike the functions that libraries
// have for opening sockets in a namespace, it needs no capability if the thread is in
// that namespace already.
func DoIn(ns netns.NsHandle, f func() error) error { return onThread(ns, ns.String(), f) }

// onThread implements Do. Name is the namespace in error texts.
func onThread(ns netns.NsHandle, name string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- inNS(ns, name, f)
	}()
	return <-done
}

// inNS runs f in ns on the calling goroutine's locked thread. It unlocks the thread only
// if that is back in its former namespace; otherwise the thread ends with its goroutine.
func inNS(ns netns.NsHandle, name string, f func() error) error {
	home, err := netns.GetFromPath(currentNS)
	if err != nil {
		return fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer home.Close()
	if home.Equal(ns) {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	defer func() {
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}
