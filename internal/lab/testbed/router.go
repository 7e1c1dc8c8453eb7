package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/process"
)

// pollInterval is how often a condition is checked while waiting for it.
const pollInterval = 50 * time.Millisecond

// Peers returns the targets that host n is launched with: one peer, or none for the first
// host.
func (l *Lab) Peers(n int) []string {
	switch {
	case n == 1:
		return nil
	case l.Topology == Line:
		return []string{Addr4(n - 1).String()}
	default:
		return []string{Addr4(1).String()}
	}
}

// Launch starts the router of host n with the lab's flags followed by args, and waits until
// it is ready. If the router ends, the error is the last error in its log.
func (l *Lab) Launch(ctx context.Context, n int, args ...string) error {
	p := Place{Host: n}
	if err := l.CheckPlace(p); err != nil {
		return err
	}
	if pid, ok := l.RouterPID(n); ok {
		return fmt.Errorf("the router of %s in lab %s is already running, as process %d", p, l.Name, pid)
	}
	exe := l.Exe
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return fmt.Errorf("launch the router of %s: find the program: %w", p, err)
		}
	}
	log, err := os.OpenFile(l.LogFile(n), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("launch the router of %s: %w", p, err)
	}
	defer log.Close()
	from, err := log.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("launch the router of %s: %w", p, err)
	}
	// The router outlives ctx, which only bounds the wait.
	cmd := exec.Command(exe, l.launchArgs(n, args)...)
	cmd.Env = l.routerEnv()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := l.Start(p, cmd); err != nil {
		return fmt.Errorf("launch the router of %s: %w", p, err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // the log has the reason
		close(ended)
	}()
	if err := os.WriteFile(l.pidFile(n), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		cmd.Process.Kill()
		<-ended
		return fmt.Errorf("launch the router of %s: %w", p, err)
	}
	client := api.NewClient(l.Socket(n))
	for {
		if r, err := client.Ready(ctx); err == nil && r.Ready && r.PID == cmd.Process.Pid {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("launch the router of %s: %s", p, l.lastError(n, from))
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("launch the router of %s: interrupted: %w", p, ctx.Err())
			}
			return fmt.Errorf("launch the router of %s: not ready in time (its log ends with: %s): %w", p, l.lastError(n, from), ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

func (l *Lab) launchArgs(n int, extra []string) []string {
	args := []string{"launch", "--foreground",
		"--socket", l.Socket(n), "--state-dir", l.StateDir(n), "--nickname", hostName(n),
		// The machine's Docker containers do not belong to the lab.
		"--ipalloc-init", "consensus=" + strconv.Itoa(l.Hosts), "--docker-api", ""}
	return slices.Concat(args, l.Flags, extra)
}

// routerEnv is this process's environment without variables of weft, plus the password,
// which must not appear in a list of processes.
func (l *Lab) routerEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "WEFT_") })
	if l.Password != "" {
		env = append(env, "WEFT_PASSWORD="+l.Password)
	}
	return env
}

// lastError returns the last error in host n's log, which was from bytes long before the
// router was started.
func (l *Lab) lastError(n int, from int64) string {
	b, err := os.ReadFile(l.LogFile(n))
	if err != nil || int64(len(b)) < from {
		return "it ended, and its log cannot be read"
	}
	return process.LastError(b[from:])
}

// RouterPID returns the process id of host n's router; false if it does not run.
func (l *Lab) RouterPID(n int) (int, bool) {
	b, err := os.ReadFile(l.pidFile(n))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 2 {
		return 0, false
	}
	host, err := netdev.IdentifyNS(l.Netns(Place{Host: n}))
	if err != nil {
		return 0, false
	}
	// The id may have been reused by a process that is not in that namespace; a zombie
	// is in none.
	got, err := netdev.IdentifyNS(netdev.NSByPID(pid))
	return pid, err == nil && got == host
}

// Kill ends the router of host n with SIGKILL and waits until it has ended.
func (l *Lab) Kill(n int) error {
	if err := l.CheckPlace(Place{Host: n}); err != nil {
		return err
	}
	pid, ok := l.RouterPID(n)
	if !ok {
		return fmt.Errorf("the router of %s in lab %s does not run", hostName(n), l.Name)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the router of %s, process %d: %w", hostName(n), pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	return process.WaitExit(ctx, pid)
}

// Up launches all routers and waits for WaitConverged.
func (l *Lab) Up(ctx context.Context) error {
	for n := 1; n <= l.Hosts; n++ {
		if err := l.Launch(ctx, n, l.Peers(n)...); err != nil {
			return err
		}
	}
	return l.WaitConverged(ctx)
}

// WaitConverged waits until each running router sees all others and has a route to each. If
// ctx ends first, the error says which routes and peers are missing.
func (l *Lab) WaitConverged(ctx context.Context) error {
	for {
		missing := l.missing(ctx)
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("wait until lab %s has converged: interrupted: %w", l.Name, ctx.Err())
			}
			return fmt.Errorf("lab %s has not converged: %s: %w", l.Name, missing, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// missing returns which routes and peers are missing, "" if the lab has converged.
func (l *Lab) missing(ctx context.Context) string {
	reports := make(map[int]*api.Report)
	names := make(map[string]int)
	var faults []string
	for n := 1; n <= l.Hosts; n++ {
		if _, ok := l.RouterPID(n); !ok {
			continue
		}
		r, err := api.NewClient(l.Socket(n)).Summary(ctx, api.ListRoutes)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s does not answer: %v", hostName(n), err))
			continue
		}
		if other, twice := names[r.Router.Name]; twice {
			faults = append(faults, fmt.Sprintf("%s and %s have the same name, %s", hostName(other), hostName(n), r.Router.Name))
		}
		reports[n], names[r.Router.Name] = r, n
	}
	for n := 1; n <= l.Hosts; n++ {
		r := reports[n]
		if r == nil {
			continue
		}
		lacks := make(map[string]int)
		for name, m := range names {
			if m != n {
				lacks[name] = m
			}
		}
		for _, route := range r.Router.UnicastRoutes {
			delete(lacks, route.Dest)
		}
		if len(lacks) > 0 {
			var hosts []string
			for _, m := range lacks {
				hosts = append(hosts, hostName(m))
			}
			slices.SortFunc(hosts, byLengthThenName)
			faults = append(faults, fmt.Sprintf("%s has no route to %s", hostName(n), some(hosts, ", ")))
		} else if r.Omitted["Peers"] < len(names) {
			faults = append(faults, fmt.Sprintf("%s sees %d of %d peers", hostName(n), r.Omitted["Peers"], len(names)))
		}
	}
	return some(faults, "; ")
}

// maxSaid bounds the parts of a message.
const maxSaid = 5

// some joins the first few of a list, and says how many more there are.
func some(list []string, by string) string {
	text := strings.Join(list[:min(len(list), maxSaid)], by)
	if more := len(list) - maxSaid; more > 0 {
		text += fmt.Sprintf("%sand %d more", by, more)
	}
	return text
}

// AddContainer makes a container on a host and attaches it to the host's router with the
// given addresses, or with one of the default subnet. It returns its addresses. On error
// nothing is left.
func (l *Lab) AddContainer(ctx context.Context, p Place, addrs []api.Address) (got []netip.Prefix, err error) {
	if err := l.CheckPlace(Place{Host: p.Host}); err != nil {
		return nil, err
	}
	if exists(l.Netns(p)) {
		return nil, fmt.Errorf("lab %s has a container %s already", l.Name, p)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, netdev.DeleteNS(p.namespace(l.Name)))
		}
	}()
	if err := newNamespace(p.namespace(l.Name)); err != nil {
		return nil, err
	}
	return api.NewClient(l.Socket(p.Host)).Attach(ctx, api.AttachRequest{Netns: l.Netns(p), Addresses: addrs})
}

// AddNamespace makes a place without a network, for tests of other networks.
func (l *Lab) AddNamespace(p Place) error {
	if err := l.CheckPlace(Place{Host: p.Host}); err != nil {
		return err
	}
	return newNamespace(p.namespace(l.Name))
}

// RemoveContainer detaches a container, kills its processes and removes it.
func (l *Lab) RemoveContainer(ctx context.Context, p Place) error {
	_, err := api.NewClient(l.Socket(p.Host)).Detach(ctx, api.AttachRequest{Netns: l.Netns(p)})
	return errors.Join(err, killAll(l.Netns(p)), netdev.DeleteNS(p.namespace(l.Name)))
}
