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
	bridgeName = "sandbox0"
	// prefix begins the names of objects outside the sandbox hosts: network namespaces,
	// cgroups and temporary directories.
	prefix = "weft-sandbox-"
)

// Network is a set of sandbox hosts on one bridge. Its methods are not safe for
// concurrent use.
type Network struct {
	id           string // random, so that the networks of two programs differ
	dir          string
	hosts        []*Host
	cleaner      *exec.Cmd
	cleanerStdin io.Closer // the standard input of the cleaner, which acts when it closes
}

// New makes a network without hosts. Its files are in the directory for temporary files,
// which must not be on an overlay file system, because the hosts mount overlays on it.
func New() (n *Network, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make a sandbox network: needs the rights of root")
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	n = &Network{id: hex.EncodeToString(random[:])}
	if n.dir, err = os.MkdirTemp("", prefix+n.id+"-"); err != nil {
		return nil, fmt.Errorf("make a sandbox network: %w", err)
	}
	if err := n.startCleaner(); err != nil {
		return nil, errors.Join(fmt.Errorf("make a sandbox network: start the cleaner: %w", err), os.RemoveAll(n.dir))
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

// Dir returns a directory that all hosts of the network see. Close removes it.
func (n *Network) Dir() string { return n.dir }

// addr returns the address of host n, counted from 1.
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

// Close ends all hosts and removes everything that the network made.
func (n *Network) Close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.PowerOff())
	}
	n.cleanerStdin.Close()
	if err := n.cleaner.Wait(); err != nil {
		errs = append(errs, fmt.Errorf("clean up sandbox network %s: %w", n.id, err))
	}
	return errors.Join(errs...)
}

// startCleaner starts the process that cleans up when this one ends or closes the
// network. It has a session of its own, so that signals to this program's session or
// process group do not reach it.
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

// cleanUpTimeout bounds how long the cleaner tries: killed processes need a moment to
// leave cgroups and mounts.
const cleanUpTimeout = 30 * time.Second

// cleanUp removes all objects of a network whose hosts have ended.
func cleanUp(id, dir string) error {
	for deadline := time.Now().Add(cleanUpTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := errors.Join(netdev.DeleteNS(prefix+id), killCgroups(prefix+id), removeCgroups(prefix+id))
		if err == nil {
			err = os.RemoveAll(dir) // last, because it shows that all else is removed
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// cgroups lists the mount points of cgroup hierarchies that can hold processes: one of
// version 2, or several of version 1.
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

// killCgroups kills the processes that are left in the cgroups of a network: commands in
// its hosts that were stopped by a signal, for which the kernel would wait.
func killCgroups(name string) error {
	roots, err := cgroups()
	if err != nil {
		return err
	}
	for _, root := range roots {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // it may disappear at any time
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

// removeCgroup removes a cgroup and those below it. The kernel removes the files in it.
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

// makeCgroup makes a cgroup NAME/SUB in a hierarchy that can hold processes.
func makeCgroup(root, path string) error {
	dir := root
	for part := range strings.SplitSeq(path, "/") {
		above := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		// A cpuset accepts no process before it has processors and memory.
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
