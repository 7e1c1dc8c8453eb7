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
type Machine struct {
	Name string
	Addr netip.Addr // on the bed's bridge

	bed *Bed
	pid int           // of its first process, as the caller sees it; 0: off
	end chan struct{} // closed once it has ended

	engines []*Dockerd // since it was booted
}

// Add makes a machine and boots it.
func (b *Bed) Add(name string) (*Machine, error) {
	m := &Machine{Name: name, Addr: addr(len(b.machines) + 1), bed: b}
	for _, d := range []string{"var/lib", "var/log", "var/cache", "var/tmp", "etc", "etc-work", "opt", "opt-work"} {
		if err := os.MkdirAll(m.path(d), 0o755); err != nil {
			return nil, fmt.Errorf("make machine %s: %w", name, err)
		}
	}
	if err := os.Symlink("/run", m.path("var/run")); err != nil {
		return nil, fmt.Errorf("make machine %s: %w", name, err)
	}
	b.machines = append(b.machines, m)
	return m, m.Boot()
}

func (m *Machine) path(name string) string { return filepath.Join(m.bed.dir, m.Name, name) }

// Path returns how the caller reaches a file of the machine that is on. Sockets
// too: it is short enough for one's address.
func (m *Machine) Path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.pid, inside)
}

// Netns returns the path of the machine's network namespace.
func (m *Machine) Netns() string { return netdev.NSByPID(m.pid) }

func (m *Machine) cgroup() string { return prefix + m.bed.id + "/" + m.Name }

// Boot starts a machine that is off, with the /var and /etc that it had.
func (m *Machine) Boot() error {
	wrap := func(err error) error { return fmt.Errorf("boot machine %s: %w", m.Name, err) }
	roots, err := cgroups()
	if err != nil {
		return wrap(err)
	}
	for _, root := range roots {
		if err := makeCgroup(root, m.cgroup()); err != nil {
			return wrap(err)
		}
	}
	from, to, err := os.Pipe()
	if err != nil {
		return wrap(err)
	}
	defer from.Close()
	cmd := exec.Command("/proc/self/exe", m.bed.dir, m.Name, m.cgroup())
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
	m.end = end
	if err := m.greet(from); err != nil {
		cmd.Process.Kill()
		<-end
		return wrap(err)
	}
	return nil
}

// greet waits until the machine's two processes say that all is in place, one of
// them with the number of the first inside, and plugs its cable in.
func (m *Machine) greet(from *os.File) error {
	if err := from.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
		return err
	}
	lines := bufio.NewScanner(from)
	for range 2 {
		if !lines.Scan() {
			return errors.Join(errors.New("it ended before it was up"), lines.Err())
		}
		if lines.Text() == readyWord {
			continue
		}
		var err error
		if m.pid, err = strconv.Atoi(lines.Text()); err != nil {
			return err
		}
	}
	return m.plug()
}

// plug joins the machine to the bed's bridge.
func (m *Machine) plug() error {
	err := netdev.Do(netdev.NSByName(m.bed.netns()), func() error {
		bridge, err := netlink.LinkByName(bedBridge)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "v"+m.Name, bridge.Attrs().Index
		// The kernel takes its time to end the namespace of a machine that was
		// switched off, and with it the cable.
		if old, err := netlink.LinkByName(attrs.Name); err == nil {
			if err := netlink.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete the old %s: %w", attrs.Name, err)
			}
		}
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsPid(m.pid)
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("add %s: %w", attrs.Name, err)
		}
		return setUp(attrs.Name)
	})
	if err != nil {
		return err
	}
	return netdev.Do(m.Netns(), func() error {
		if err := setUp("lo", "eth0"); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(m.Addr.String() + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	})
}

// PowerOff ends the machine at once, as a power cut does. Its disk stays.
func (m *Machine) PowerOff() error {
	if m.pid == 0 {
		return nil
	}
	pid, engines := m.pid, m.engines
	m.pid, m.engines = 0, nil
	for _, d := range engines {
		// A parent that was stopped with the engine would never collect it, and
		// the kernel waits for that.
		if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("power machine %s off: %w", m.Name, err)
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("power machine %s off: %w", m.Name, err)
	}
	select {
	case <-m.end:
		return nil
	case <-time.After(bootTimeout):
		return fmt.Errorf("power machine %s off: it still runs", m.Name)
	}
}

// Command prepares a command that runs in the machine. Only the process itself
// is killed when ctx ends, not what it started there.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// A process has to join the cgroup before it enters its namespace.
	const script = `for c in "$@"; do
  case $c in --) shift; break;; esac
  echo $$ >"$c/cgroup.procs" || exit 125; shift
done
exec nsenter --target "$1" --mount --uts --ipc --net --pid --cgroup --wd=/ -- "$2" "${@:3}"`
	all := []string{"-c", script, "bash"}
	roots, _ := cgroups() // Boot has found them
	for _, root := range roots {
		all = append(all, filepath.Join(root, leaf(root, m.cgroup())))
	}
	all = append(all, "--", strconv.Itoa(m.pid), name)
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
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := m.Command(ctx, name, args...)
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w: %s", m.Name, name, strings.Join(args, " "), err, strings.TrimSpace(words.String()))
	}
	return string(out), err
}
