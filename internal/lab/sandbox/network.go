package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

const (
	bridgeName = "bed0"
	// prefix begins the names of what beds make where all can see it.
	prefix = "weft-bed-"
)

// Bed is a set of machines on one bridge. Its methods are for one goroutine at
// a time.
type Network struct {
	id           string // random: beds of several programs do not meet
	dir          string
	hosts        []*Host
	cleaner      *exec.Cmd
	cleanerStdin io.Closer // the janitor's standard input
}

// New makes a bed without machines. Its files are in the folder for temporary
// files, which must not be an overlay, as the engine makes its own there.
func New() (n *Network, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make machines: needs the rights of root")
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	n = &Network{id: hex.EncodeToString(random[:])}
	if n.dir, err = os.MkdirTemp("", prefix+n.id+"-"); err != nil {
		return nil, fmt.Errorf("make machines: %w", err)
	}
	if err := n.startCleaner(); err != nil {
		return nil, errors.Join(fmt.Errorf("make machines: start the janitor: %w", err), os.RemoveAll(n.dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := netdev.NewNS(n.netns()); err != nil {
		return nil, err
	}
	err = netdev.Do(netdev.NSByName(n.netns()), func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add bridge %s: %w", bridgeName, err)
		}
		return setUp(bridgeName, "lo")
	})
	return n, err
}

func (n *Network) netns() string { return prefix + n.id }

// Dir is a folder that goes with the bed and that no machine hides.
func (n *Network) Dir() string { return n.dir }

// addr is the address of the machine with a number from 1.
func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(10 + n)}) }

func setUp(names ...string) error {
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// Close ends all machines and removes everything that the bed made.
func (n *Network) Close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.PowerOff())
	}
	n.cleanerStdin.Close()
	if err := n.cleaner.Wait(); err != nil {
		errs = append(errs, fmt.Errorf("clean bed %s up: %w", n.id, err))
	}
	return errors.Join(errs...)
}

// startJanitor starts the process that cleans up once this one has ended or
// has closed the bed. It has a session of its own, so that what interrupts or
// kills this program's does not reach it.
func (n *Network) startCleaner() error {
	n.cleaner = exec.Command("/proc/self/exe", n.id, n.dir)
	n.cleaner.Env = append(os.Environ(), roleVar+"="+roleCleaner)
	n.cleaner.Stderr = os.Stderr
	n.cleaner.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	in, err := n.cleaner.StdinPipe()
	if err != nil {
		return err
	}
	n.cleanerStdin = in
	return n.cleaner.Start()
}

// tidyTimeout bounds how long the janitor tries: processes that were killed
// take a moment to leave cgroups and mounts.
const cleanUpTimeout = 30 * time.Second

// tidy removes what a bed has made, once its machines are dead.
func cleanUp(id, dir string) error {
	for deadline := time.Now().Add(cleanUpTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := errors.Join(netdev.DeleteNS(prefix+id), killCgroups(prefix+id), removeCgroups(prefix+id))
		if err == nil {
			err = os.RemoveAll(dir) // at last: a folder that is gone says that all is
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// cgroups lists the folders where a cgroup hierarchy that can hold processes
// is mounted: one of version 2, or some of version 1.
func cgroups() ([]string, error) {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
		return []string{root}, nil
	}
	found, err := filepath.Glob(filepath.Join(root, "*", "cgroup.procs"))
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no cgroups are mounted in %s", root)
	}
	for i, f := range found {
		found[i] = filepath.Dir(f)
	}
	return found, err
}

// killCgroups kills what is left in the cgroups of a bed: commands that were
// run in its machines and that somebody has stopped, for which the kernel waits.
func killCgroups(name string) error {
	roots, err := cgroups()
	if err != nil {
		return err
	}
	for _, root := range roots {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // it may go at any time
			}
			pids, _ := os.ReadFile(path)
			for _, word := range strings.Fields(string(pids)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func removeCgroups(name string) error {
	roots, err := cgroups()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		errs = append(errs, removeCgroup(filepath.Join(root, name)))
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and those below it. Files in it are the
// kernel's and go by themselves.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// makeCgroup makes a cgroup NAME/SUB in a hierarchy, ready for processes.
func makeCgroup(root, path string) error {
	dir := root
	for part := range strings.SplitSeq(path, "/") {
		above := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		// A cpuset takes no process before it has processors and memory.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			have, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil || len(strings.TrimSpace(string(have))) > 0 {
				continue
			}
			if have, err = os.ReadFile(filepath.Join(above, f)); err != nil || len(have) == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, f), have, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
