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

func TestMain(m *testing.M) {
	Main()
	if os.Getenv(victimVar) != "" {
		victim()
	}
	os.Exit(m.Run())
}

const victimVar = "WEFT_MACHINE_VICTIM"

// victim makes a bed with a machine, tells its name, and waits to be killed.
func victim() {
	b, err := New()
	var m *Machine
	if err == nil {
		m, err = b.Add("m1")
	}
	if err == nil {
		// Who runs a command that is stopped is stopped too, outside.
		cmd := m.Command(context.Background(), "bash", "-c", "kill -STOP $$")
		if err = cmd.Start(); err == nil {
			err = stopped(cmd.Process.Pid)
		}
	}
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString(b.id + " " + b.dir + "\n")
	select {}
}

// stopped waits until a process is.
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

func newBed(t *testing.T) *Bed {
	t.Helper()
	b, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		gone(t, b.id, b.dir)
	})
	return b
}

// gone fails if something of a bed is left.
func gone(t *testing.T, id, dir string) {
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

func (m *Machine) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	out, err := m.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestMachinesAreApartAndReachEachOther(t *testing.T) {
	b := newBed(t)
	var ms []*Machine
	for _, name := range []string{"m1", "m2"} {
		m, err := b.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	ms[0].must(t, "busybox", "ping", "-c1", "-W", "5", ms[1].Addr.String())
	for _, m := range ms {
		if got := m.must(t, "hostname"); got != m.Name {
			t.Errorf("hostname of %s is %s", m.Name, got)
		}
	}
	ms[0].must(t, "sh", "-c", "echo 1 >/var/lib/kept; echo 1 >/etc/kept; echo 1 >/run/lost")
	if got := ms[1].must(t, "sh", "-c", "ls /var/lib /run"); strings.Contains(got, "kept") || strings.Contains(got, "lost") {
		t.Errorf("a machine sees the other's files:\n%s", got)
	}
	if err := ms[0].PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := ms[0].Boot(); err != nil {
		t.Fatal(err)
	}
	if got := ms[0].must(t, "sh", "-c", "cat /var/lib/kept /etc/kept; ls /run"); strings.Contains(got, "lost") || strings.Count(got, "1") != 2 {
		t.Errorf("after a power cut there is\n%s", got)
	}
	ms[0].must(t, "busybox", "ping", "-c1", "-W", "5", ms[1].Addr.String())
}

func TestTwoEnginesWithTheirDefaultPaths(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	defer cancel()
	for _, name := range []string{"m1", "m2"} {
		m, err := b.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.StartDockerd(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.LoadImage(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range b.machines {
		if got := m.must(t, "docker", "run", "--rm", "--hostname", "of-"+m.Name, Image, "hostname"); got != "of-"+m.Name {
			t.Errorf("the container on %s says it is %s", m.Name, got)
		}
	}
}

func TestNothingIsLeftWhenTheProgramIsKilled(t *testing.T) {
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
	})) // gone says what is left
	gone(t, id, dir)
}
