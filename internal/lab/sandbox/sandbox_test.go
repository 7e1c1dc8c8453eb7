//go:build docker

package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
)

func TestMain(h *testing.M) {
	Main()
	if os.Getenv(victimVar) != "" {
		victim()
	}
	os.Exit(h.Run())
}

const victimVar = "WEFT_SANDBOX_VICTIM"

// victim makes a network with a host, prints its id and directory, and waits to be killed.
func victim() {
	n, err := New()
	var h *Host
	if err == nil {
		h, err = n.Add("m1")
	}
	if err == nil {
		// When a command stops itself, its nsenter outside stops too.
		cmd := h.Command(context.Background(), "bash", "-c", "kill -STOP $$")
		if err = cmd.Start(); err == nil {
			err = stopped(cmd.Process.Pid)
		}
	}
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString(n.id + " " + n.dir + "\n")
	select {}
}

// stopped waits until a process is stopped by a signal.
func stopped(pid int) error {
	return poll.Until(timeout, 5*time.Millisecond, func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if _, rest, _ := strings.Cut(string(b), ") "); !strings.HasPrefix(rest, "T") {
			return fmt.Errorf("process %d is not stopped", pid)
		}
		return nil
	})
}

const timeout = 60 * time.Second

func newNetwork(t *testing.T) *Network {
	t.Helper()
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		checkRemoved(t, n.id, n.dir)
	})
	return n
}

// checkRemoved fails if an object of a network is left.
func checkRemoved(t *testing.T, id, dir string) {
	t.Helper()
	roots, err := cgroups()
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{dir, netdev.NSByName(prefix + id)}
	for _, root := range roots {
		paths = append(paths, filepath.Join(root, prefix+id))
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
}

func (h *Host) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	out, err := h.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestHostsAreSeparateAndConnected(t *testing.T) {
	n := newNetwork(t)
	var hosts []*Host
	for _, name := range []string{"m1", "m2"} {
		h, err := n.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	hosts[0].must(t, "busybox", "ping", "-c1", "-W", "5", hosts[1].Addr.String())
	for _, h := range hosts {
		if got := h.must(t, "hostname"); got != h.Name {
			t.Errorf("hostname of %s is %s", h.Name, got)
		}
	}
	hosts[0].must(t, "sh", "-c", "echo 1 >/var/lib/kept; echo 1 >/etc/kept; echo 1 >/run/lost")
	if got := hosts[1].must(t, "sh", "-c", "ls /var/lib /run"); strings.Contains(got, "kept") || strings.Contains(got, "lost") {
		t.Errorf("a host sees the other's files:\n%s", got)
	}
	if err := hosts[0].PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := hosts[0].Boot(); err != nil {
		t.Fatal(err)
	}
	if got := hosts[0].must(t, "sh", "-c", "cat /var/lib/kept /etc/kept; ls /run"); strings.Contains(got, "lost") || strings.Count(got, "1") != 2 {
		t.Errorf("after a power cut the files are\n%s", got)
	}
	hosts[0].must(t, "busybox", "ping", "-c1", "-W", "5", hosts[1].Addr.String())
}

func TestTwoEnginesWithDefaultPaths(t *testing.T) {
	n := newNetwork(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	defer cancel()
	for _, name := range []string{"m1", "m2"} {
		h, err := n.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.StartDockerd(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.LoadImage(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range n.hosts {
		if got := h.must(t, "docker", "run", "--rm", "--hostname", "of-"+h.Name, Image, "hostname"); got != "of-"+h.Name {
			t.Errorf("the container on %s has hostname %s", h.Name, got)
		}
	}
}

func TestCleanUpAfterKill(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimVar+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	id, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
	if !ok {
		t.Fatal(line)
	}
	if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	_ = poll.Until(timeout, 50*time.Millisecond, poll.True(func() bool {
		_, err := os.Lstat(dir)
		return os.IsNotExist(err)
	})) // checkRemoved reports what is left
	checkRemoved(t, id, dir)
}
