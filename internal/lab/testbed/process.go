package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// killTimeout bounds killAll. A process that still runs then is stuck in the kernel.
const killTimeout = 10 * time.Second

// killAll kills all processes, except this one, in the network namespace at path until
// there are none. A missing path is no error.
func killAll(path string) error {
	id, err := netdev.IdentifyNS(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	deadline := time.Now().Add(killTimeout)
	for {
		pids, err := processesIn(id)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d in %s: %w", pid, path, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill the processes in %s: still there after %v: %v", path, killTimeout, pids)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// processesIn lists the processes, except this one, in a network namespace. Zombies are in
// none.
func processesIn(id netdev.NSID) ([]int, error) {
	paths, err := filepath.Glob("/proc/[1-9]*/ns/net")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, p := range paths {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(p))))
		if err != nil || pid == os.Getpid() {
			continue
		}
		// An error means that the process has ended, or is a kernel thread.
		if got, err := netdev.IdentifyNS(p); err == nil && got == id {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Command prepares a command that runs in a place. Start it with Lab.Start or Lab.Run, not
// with its own methods. The name weft stands for this program.
func (l *Lab) Command(ctx context.Context, p Place, name string, args ...string) *exec.Cmd {
	env := append(os.Environ(), "WEFT_SOCKET="+l.Socket(p.Host))
	if exe, err := os.Executable(); err == nil {
		if name == "weft" {
			name = exe
		}
		env = append(env, "PATH="+os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(exe))
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	return cmd
}

// Start starts cmd in the network namespace of a place. It sees the file systems of the
// machine, including /sys.
func (l *Lab) Start(p Place, cmd *exec.Cmd) error {
	if err := l.CheckPlace(p); err != nil {
		return err
	}
	return netdev.Do(l.Netns(p), cmd.Start)
}

// Run starts cmd in a place and waits for it.
func (l *Lab) Run(p Place, cmd *exec.Cmd) error {
	if err := l.Start(p, cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
