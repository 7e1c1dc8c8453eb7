package netdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// dockerUserChain is the chain that Docker jumps to before its own rules, and keeps
// for others to put theirs in.
const dockerUserChain = "DOCKER-USER"

// dockerGuards are the programs that Docker dockerGuards forwarding with, and the sysctls
// that show bridged packets to them.
var dockerGuards = []struct{ program, sysctl string }{
	{"iptables", "/proc/sys/net/bridge/bridge-nf-call-iptables"},
	{"ip6tables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"},
}

// PassGuard has what Docker does to guard forwarding let frames pass that a
// bridge only passes from port to port, and returns what it had to change, for
// the log. Docker drops what it does not know where the host did not forward
// before it came, and the kernel shows bridged packets to that guard as if they
// were forwarded. It asks the same program that Docker does, as only that knows
// where Docker's rules are; hosts without it, without Docker's chain, or where
// bridged packets are not shown, are left alone.
func PassGuard(ctx context.Context, bridge string) (changed []string, err error) {
	var errs []error
	for _, g := range dockerGuards {
		if shown, err := os.ReadFile(g.sysctl); err != nil || strings.TrimSpace(string(shown)) == "0" {
			continue
		}
		has, err := dockerRule(ctx, g.program, "-C", bridge)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if has {
			continue
		}
		if there, err := runIptables(ctx, g.program, "-n", "-L", dockerUserChain); err != nil || !there {
			errs = append(errs, err)
			continue
		}
		if ok, err := dockerRule(ctx, g.program, "-I", bridge); err != nil || !ok {
			errs = append(errs, fmt.Errorf("let bridge %s pass %s's chain %s: %w", bridge, g.program, dockerUserChain, errors.Join(err, errRefused)))
			continue
		}
		changed = append(changed, fmt.Sprintf("%s -I %s -i %s -o %s -j ACCEPT", g.program, dockerUserChain, bridge, bridge))
	}
	return changed, errors.Join(errs...)
}

// UnpassGuard undoes PassGuard.
func UnpassGuard(ctx context.Context, bridge string) error {
	var errs []error
	for _, g := range dockerGuards {
		if has, err := dockerRule(ctx, g.program, "-C", bridge); err != nil || !has {
			errs = append(errs, err)
			continue
		}
		_, err := dockerRule(ctx, g.program, "-D", bridge)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

var errRefused = errors.New("it refused")

func dockerRule(ctx context.Context, program, action, bridge string) (bool, error) {
	return runIptables(ctx, program, action, dockerUserChain, "-i", bridge, "-o", bridge, "-j", "ACCEPT")
}

// runIptables runs a program and tells whether it said yes. A program that is not
// there says no.
func runIptables(ctx context.Context, program string, args ...string) (bool, error) {
	cmd := exec.CommandContext(ctx, program, append([]string{"-w", "5"}, args...)...)
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, exec.ErrNotFound), errors.As(err, &exit) && ctx.Err() == nil:
		return false, nil
	}
	return false, fmt.Errorf("ask %s: %w", program, err)
}
