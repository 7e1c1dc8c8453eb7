package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// bootTimeout bounds how long a host takes to boot or to end.
const bootTimeout = 30 * time.Second

// Host is one sandbox host of a network.
type Host struct {
	Name string
	Addr netip.Addr // on the network's bridge

	network *Network
	pid     int           // of its first process, as the caller sees it; 0: off
	ended   chan struct{} // closed once it has ended

	engines []*Dockerd // started since the last boot
}

// Add makes a host and boots it.
func (n *Network) Add(name string) (*Host, error) {
	h := &Host{Name: name, Addr: addr(len(n.hosts) + 1), network: n}
	for _, d := range []string{"var/lib", "var/log", "var/cache", "var/tmp", "etc", "etc-work", "opt", "opt-work"} {
		if err := os.MkdirAll(h.path(d), 0o755); err != nil {
			return nil, fmt.Errorf("make sandbox host %s: %w", name, err)
		}
	}
	if err := os.Symlink("/run", h.path("var/run")); err != nil {
		return nil, fmt.Errorf("make sandbox host %s: %w", name, err)
	}
	n.hosts = append(n.hosts, h)
	return h, h.Boot()
}

func (h *Host) path(name string) string { return filepath.Join(h.network.dir, h.Name, name) }

// Path returns the path by which the caller reaches a file of a running host. It is short
// enough for the address of a unix socket.
func (h *Host) Path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", h.pid, inside)
}

// Netns returns the path of the host's network namespace.
func (h *Host) Netns() string { return netdev.NSByPID(h.pid) }

func (h *Host) cgroup() string { return prefix + h.network.id + "/" + h.Name }

// Boot starts a host that is off, with its former /var, /etc and /opt.
func (h *Host) Boot() error {
	wrap := func(err error) error { return fmt.Errorf("boot sandbox host %s: %w", h.Name, err) }
	roots, err := cgroups()
	if err != nil {
		return wrap(err)
	}
	for _, root := range roots {
		if err := makeCgroup(root, h.cgroup()); err != nil {
			return wrap(err)
		}
	}
	from, to, err := os.Pipe()
	if err != nil {
		return wrap(err)
	}
	defer from.Close()
	cmd := exec.Command("/proc/self/exe", h.network.dir, h.Name, h.cgroup())
	cmd.Env = append(os.Environ(), roleVar+"="+roleOuter)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{to}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	started, end := make(chan error), make(chan struct{})
	go func() {
		// The kernel sends the signal when this thread ends.
		runtime.LockOSThread()
		err := cmd.Start()
		to.Close()
		started <- err
		if err == nil {
			cmd.Wait() // it ends when it is killed, so its status does not matter
		}
		close(end)
	}()
	if err := <-started; err != nil {
		return wrap(err)
	}
	h.ended = end
	if err := h.awaitReady(from); err != nil {
		cmd.Process.Kill()
		<-end
		return wrap(err)
	}
	return nil
}

// awaitReady waits for the lines of the host's two processes, see readyFD, then connects
// the host to the bridge.
func (h *Host) awaitReady(from *os.File) error {
	if err := from.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
		return err
	}
	lines := bufio.NewScanner(from)
	for range 2 {
		if !lines.Scan() {
			return errors.Join(errors.New("it ended before it was up"), lines.Err())
		}
		if lines.Text() == readyLine {
			continue
		}
		var err error
		if h.pid, err = strconv.Atoi(lines.Text()); err != nil {
			return err
		}
	}
	return h.connect()
}

// connect connects the host to the network's bridge.
func (h *Host) connect() error {
	err := netdev.Do(netdev.NSByName(h.network.netns()), func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "v"+h.Name, bridge.Attrs().Index
		// After PowerOff the kernel removes the namespace, and with it the veth pair,
		// only some time later.
		if old, err := netlink.LinkByName(attrs.Name); err == nil {
			if err := netlink.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete the old %s: %w", attrs.Name, err)
			}
		}
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsPid(h.pid)
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("add %s: %w", attrs.Name, err)
		}
		return setUp(attrs.Name)
	})
	if err != nil {
		return err
	}
	return netdev.Do(h.Netns(), func() error {
		if err := setUp("lo", "eth0"); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(h.Addr.String() + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	})
}

// PowerOff ends the host at once, like a power cut. Its /var, /etc and /opt stay.
func (h *Host) PowerOff() error {
	if h.pid == 0 {
		return nil
	}
	pid, engines := h.pid, h.engines
	h.pid, h.engines = 0, nil
	for _, d := range engines {
		// If the parent was stopped together with the engine, it would never reap the
		// engine, and the kernel waits for that.
		if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("power off sandbox host %s: %w", h.Name, err)
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("power off sandbox host %s: %w", h.Name, err)
	}
	select {
	case <-h.ended:
		return nil
	case <-time.After(bootTimeout):
		return fmt.Errorf("power off sandbox host %s: it still runs", h.Name)
	}
}

// Command prepares a command that runs in the host. When ctx ends, only that process is
// killed, not its children.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// A process must join the cgroup before it enters the cgroup namespace.
	const script = `for c in "$@"; do
  case $c in --) shift; break;; esac
  echo $$ >"$c/cgroup.procs" || exit 125; shift
done
exec nsenter --target "$1" --mount --uts --ipc --net --pid --cgroup --wd=/ -- "$2" "${@:3}"`
	all := []string{"-c", script, "bash"}
	roots, _ := cgroups() // Boot has succeeded with them
	for _, root := range roots {
		all = append(all, filepath.Join(root, leaf(root, h.cgroup())))
	}
	all = append(all, "--", strconv.Itoa(h.pid), name)
	cmd := exec.CommandContext(ctx, "bash", append(all, args...)...)
	cmd.WaitDelay = time.Second // for children that inherited its output
	return cmd
}

// leaf returns the cgroup for processes: in version 2 a cgroup with child cgroups may hold
// none.
func leaf(root, group string) string {
	if filepath.Base(root) == "cgroup" {
		return filepath.Join(group, "init")
	}
	return group
}

// Run runs a command in the host and returns its standard output. The error has its
// standard error.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := h.Command(ctx, name, args...)
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w: %s", h.Name, name, strings.Join(args, " "), err, strings.TrimSpace(words.String()))
	}
	return string(out), err
}
