// Package rival starts other overlay networks between the first two hosts of a
// lab, so that weft can be measured next to them on the same underlay.
//
//	WireGuard   wireguard-go, host to host        UDP 51820
//	Nebula      nebula, host to host              UDP 4242
//	VXLAN       the kernel's own, unencrypted, under a bridge, container to
//	            container                         UDP 4789
//
// Their programs are built from the Go modules in the directories below, which are
// separate so that weft's module does not depend on them. All processes and interfaces
// end with the lab.
package rival

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// Network is an overlay between two places of a lab.
type Network struct {
	From, To testbed.Place
	Addr     netip.Addr // of To, in the overlay
	PIDs     []int      // of the processes that carry packets; none for the kernel
}

// pollInterval is how often waitFor checks its condition.
const pollInterval = 20 * time.Millisecond

// hosts are the ends of all networks.
var hosts = [2]testbed.Place{{Host: 1}, {Host: 2}}

// start starts a program on a host, with its output in a file of the host's directory. It
// runs until the lab ends. Like a router it has a session of its own: the kernel divides
// the CPUs between sessions (autogroup, sched(7)), so a program in the session of the
// measuring process would get another share.
func start(lab *testbed.Lab, p testbed.Place, env []string, program string, args ...string) (*exec.Cmd, error) {
	name := filepath.Base(program)
	log, err := os.Create(filepath.Join(lab.HostDir(p.Host), name+".log"))
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, p, err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := lab.Start(p, cmd); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, p, err)
	}
	go cmd.Wait() // if it ends early, the measurement fails
	return cmd, nil
}

// waitFor waits until ok returns true, or ctx ends.
func waitFor(ctx context.Context, what string, ok func() bool) error {
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
	return nil
}

// setUp adds an address, if a is valid, to an interface of a place and sets it up.
func setUp(lab *testbed.Lab, p testbed.Place, name string, a netip.Prefix) error {
	err := netdev.Do(lab.Netns(p), func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if a.IsValid() {
			addr, err := netlink.ParseAddr(a.String())
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		return fmt.Errorf("set %s of %s up: %w", name, p, err)
	}
	return nil
}

// Program returns the path of a program in the directory dir. The error says how to get it.
func Program(dir, name string) (string, error) {
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("there is no %s in %s; make it with: make rivals", name, dir)
	} else if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	return path, nil
}
