package netdev

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/google/nftables"
)

// dockerUserChain is a chain for rules of users. Docker jumps to it before its own
// rules.
const dockerUserChain = "DOCKER-USER"

// dockerFilter is a program with which Docker filters forwarded packets, and the family of
// its tables.
type dockerFilter struct {
	program string
	family  nftables.TableFamily
}

var dockerFilters = []dockerFilter{{"iptables", nftables.TableFamilyIPv4}, {"ip6tables", nftables.TableFamilyIPv6}}

// sees reports whether netfilter passes bridged packets to the program's rules.
func (g dockerFilter) sees(s Shown) bool {
	if g.family == nftables.TableFamilyIPv4 {
		return s.IPv4 != ""
	}
	return s.IPv6 != ""
}

// DockerUserRule is a rule in Docker's chain DOCKER-USER that accepts packets from port to
// port of a bridge.
//
// Docker's forward chain drops unknown packets if the host did not forward before
// Docker was started, and br_netfilter passes bridged packets through that chain. The
// methods run the same program as Docker, because only that program finds Docker's
// rules. Without that program, without Docker's chain, or if br_netfilter does not pass
// bridged packets to it, no rule is needed.
type DockerUserRule struct{ Bridge string }

// missing returns the programs whose rule is missing.
func (r DockerUserRule) missing(ctx context.Context) (list []dockerFilter, err error) {
	shown, err := ShownBy(r.Bridge)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, g := range dockerFilters {
		if !g.sees(shown) {
			continue
		}
		has, err := bridgeRule(ctx, g.program, "-C", r.Bridge)
		if err == nil && !has {
			if has, err = runIptables(ctx, g.program, "-n", "-L", dockerUserChain); err == nil && has {
				list = append(list, g)
			}
		}
		errs = append(errs, err)
	}
	return list, errors.Join(errs...)
}

// Faults returns in words which rules are missing.
func (r DockerUserRule) Faults(ctx context.Context) (faults []string, err error) {
	list, err := r.missing(ctx)
	for _, g := range list {
		faults = append(faults, "that of "+g.program+" is missing")
	}
	return faults, err
}

// Ensure adds the missing rules.
func (r DockerUserRule) Ensure(ctx context.Context) error {
	list, err := r.missing(ctx)
	errs := []error{err}
	for _, g := range list {
		if ok, err := bridgeRule(ctx, g.program, "-I", r.Bridge); err != nil || !ok {
			errs = append(errs, fmt.Errorf("accept bridge %s in chain %s of %s: %w", r.Bridge, dockerUserChain, g.program, errors.Join(err, errNotAdded)))
		}
	}
	return errors.Join(errs...)
}

// RemoveFromDockerUser removes the rule of DockerUserRule.
func RemoveFromDockerUser(ctx context.Context, bridge string) error {
	var errs []error
	for _, g := range dockerFilters {
		if has, err := bridgeRule(ctx, g.program, "-C", bridge); err != nil || !has {
			errs = append(errs, err)
			continue
		}
		_, err := bridgeRule(ctx, g.program, "-D", bridge)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

var errNotAdded = errors.New("the program refused the rule")

// bridgeRule runs a program for the rule in DOCKER-USER that accepts packets from port to
// port of a bridge: -C checks it, -I inserts it, -D deletes it.
func bridgeRule(ctx context.Context, program, action, bridge string) (bool, error) {
	return runIptables(ctx, program, action, dockerUserChain, "-i", bridge, "-o", bridge, "-j", "ACCEPT")
}

// runIptables runs a program and reports whether it succeeded. A missing program gives
// false.
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
	return false, fmt.Errorf("run %s: %w", program, err)
}
