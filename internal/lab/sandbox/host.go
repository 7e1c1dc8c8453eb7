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

// bootTimeout bounds how long a machine takes to boot or to end.
const bootTimeout = 30 * time.Second

// Machine is one machine of a bed.
type Host struct {
	Name string
	Addr netip.Addr // on the bed's bridge

	network *Network
	pid     int           // of its first process, as the caller sees it; 0: off
	ended   chan struct{} // closed once it has ended

	engines []*Dockerd // since it was booted
}

// Add makes a machine and boots it.
func (n *Network) Add(name string) (*Host, error) {
	h := &Host{Name: name, Addr: addr(len(n.hosts) + 1), network: n}
	for _, d := range []string{"var/lib", "var/log", "var/cache", "var/tmp", "etc", "etc-work", "opt", "opt-work"} {
		if err := os.MkdirAll(h.path(d), 0o755); err != nil {
			return nil, fmt.Errorf("make machine %s: %w", name, err)
		}
	}
	if err := os.Symlink("/run", h.path("var/run")); err != nil {
		return nil, fmt.Errorf("make machine %s: %w", name, err)
	}
	n.hosts = append(n.hosts, h)
	return h, h.Boot()
}

func (h *Host) path(name string) string { return filepath.Join(h.network.dir, h.Name, name) }

// Path returns how the caller reaches a file of the machine that is on. Sockets
// too: it is short enough for one's address.
func (h *Host) Path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", h.pid, inside)
}

// Netns returns the path of the machine's network namespace.
func (h *Host) Netns() string { return netdev.NSByPID(h.pid) }

func (h *Host) cgroup() string { return prefix + h.network.id + "/" + h.Name }

// Boot starts a machine that is off, with the /var and /etc that it had.
func (h *Host) Boot() error {
	wrap := func(err error) error { return fmt.Errorf("boot machine %s: %w", h.Name, err) }
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
			cmd.Wait() // it is killed; there is nothing to tell
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

// greet waits until the machine's two processes say that all is in place, one of
// them with the number of the first inside, and plugs its cable in.
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

// plug joins the machine to the bed's bridge.
func (h *Host) connect() error {
	err := netdev.Do(netdev.NSByName(h.network.netns()), func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "v"+h.Name, bridge.Attrs().Index
		// The kernel takes its time to end the namespace of a machine that was
		// switched off, and with it the cable.
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

// PowerOff ends the machine at once, as a power cut does. Its disk stays.
func (h *Host) PowerOff() error {
	if h.pid == 0 {
		return nil
	}
	pid, engines := h.pid, h.engines
	h.pid, h.engines = 0, nil
	for _, d := range engines {
		// A parent that was stopped with the engine would never collect it, and
		// the kernel waits for that.
		if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("power machine %s off: %w", h.Name, err)
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("power machine %s off: %w", h.Name, err)
	}
	select {
	case <-h.ended:
		return nil
	case <-time.After(bootTimeout):
		return fmt.Errorf("power machine %s off: it still runs", h.Name)
	}
}

// Command prepares a command that runs in the machine. Only the process itself
// is killed when ctx ends, not what it started there.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// A process has to join the cgroup before it enters its namespace.
	const script = `for c in "$@"; do
  case $c in --) shift; break;; esac
  echo $$ >"$c/cgroup.procs" || exit 125; shift
done
exec nsenter --target "$1" --mount --uts --ipc --net --pid --cgroup --wd=/ -- "$2" "${@:3}"`
	all := []string{"-c", script, "bash"}
	roots, _ := cgroups() // Boot has found them
	for _, root := range roots {
		all = append(all, filepath.Join(root, leaf(root, h.cgroup())))
	}
	all = append(all, "--", strconv.Itoa(h.pid), name)
	cmd := exec.CommandContext(ctx, "bash", append(all, args...)...)
	cmd.WaitDelay = time.Second // for those that inherited its output
	return cmd
}

// leaf is the cgroup that holds processes themselves: of version 2, one that
// has others below it may hold none.
func leaf(root, group string) string {
	if filepath.Base(root) == "cgroup" {
		return filepath.Join(group, "init")
	}
	return group
}

// Run runs a command in the machine and returns what it wrote. The error has
// what it wrote to standard error.
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
