package netdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// dockerUserChain is the chain that Docker jumps to before its own rules, and keeps
// for others to put theirs in.
const dockerUserChain = "DOCKER-USER"

// dockerGuard is a program that Docker guards forwarding with, the sysctl that
// shows bridged packets to it, and the family of its tables.
type dockerFilter struct {
	program, sysctl string
	family          nftables.TableFamily
}

var dockerFilters = []dockerFilter{
	{"iptables", "/proc/sys/net/bridge/bridge-nf-call-iptables", nftables.TableFamilyIPv4},
	{"ip6tables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables", nftables.TableFamilyIPv6},
}

// PassGuard has what Docker does to guard forwarding let frames pass that a
// bridge only passes from port to port, and returns what it had to change, for
// the log. Docker drops what it does not know where the host did not forward
// before it came, and the kernel shows bridged packets to that guard as if they
// were forwarded. It asks the same program that Docker does, as only that knows
// where Docker's rules are; hosts without it, without Docker's chain, or where
// bridged packets are not shown, are left alone.
func AllowInDockerUser(ctx context.Context, bridge string) (changed []string, err error) {
	var errs []error
	for _, g := range dockerFilters {
		if !g.sees() {
			continue
		}
		has, err := bridgeRule(ctx, g.program, "-C", dockerUserChain, bridge)
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
		if ok, err := bridgeRule(ctx, g.program, "-I", dockerUserChain, bridge); err != nil || !ok {
			errs = append(errs, fmt.Errorf("let bridge %s pass %s's chain %s: %w", bridge, g.program, dockerUserChain, errors.Join(err, errNotAdded)))
			continue
		}
		changed = append(changed, g.program+" -I "+strings.Join(bridgeMatch(dockerUserChain, bridge), " "))
	}
	return changed, errors.Join(errs...)
}

// sees reports whether bridged packets are shown to it.
func (g dockerFilter) sees() bool {
	shown, err := os.ReadFile(g.sysctl)
	return err == nil && strings.TrimSpace(string(shown)) != "0"
}

// BridgeBlockers returns, in the words of nft, the chains that drop what a bridge
// passes from port to port, and that PassGuard could do nothing about: Docker has
// no chain for others where it guards forwarding by nftables, and drops nothing of
// this itself then, but somebody may, or an earlier Docker did. A rule that accepts
// is looked for where OpenBridge says that it may be.
func BridgeBlockers(ctx context.Context, bridge string) ([]string, error) {
	blockers, err := forwardBlockers()
	if err != nil || len(blockers) == 0 {
		return nil, err
	}
	closed := make(map[nftables.TableFamily]bool)
	for _, g := range dockerFilters {
		if !g.sees() {
			continue
		}
		open, err := g.opened(ctx, bridge)
		if err != nil {
			return nil, err
		}
		closed[g.family] = !open
		closed[nftables.TableFamilyINet] = true
	}
	return names(slices.DeleteFunc(blockers, func(c *nftables.Chain) bool { return !closed[c.Table.Family] })), nil
}

// opened reports whether a rule lets through what only crosses a bridge.
func (g dockerFilter) opened(ctx context.Context, bridge string) (bool, error) {
	for _, chain := range []string{dockerUserChain, iptablesForward} {
		if has, err := bridgeRule(ctx, g.program, "-C", chain, bridge); err != nil || has {
			return has, err
		}
	}
	return false, nil
}

// OpenBridge is the command that has iptables let frames pass which only cross a
// bridge.
func AcceptBridgeCommand(bridge string) string {
	return "iptables " + strings.Join(append([]string{"-I"}, bridgeMatch(iptablesForward, bridge)...), " ")
}

const iptablesForward = "FORWARD"

// UnpassGuard undoes PassGuard.
func RemoveFromDockerUser(ctx context.Context, bridge string) error {
	var errs []error
	for _, g := range dockerFilters {
		if has, err := bridgeRule(ctx, g.program, "-C", dockerUserChain, bridge); err != nil || !has {
			errs = append(errs, err)
			continue
		}
		_, err := bridgeRule(ctx, g.program, "-D", dockerUserChain, bridge)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

var errNotAdded = errors.New("it refused")

func bridgeRule(ctx context.Context, program, action, chain, bridge string) (bool, error) {
	return runIptables(ctx, program, append([]string{action}, bridgeMatch(chain, bridge)...)...)
}

// bridgeMatch is the rule in a chain that accepts what only crosses a bridge.
func bridgeMatch(chain, bridge string) []string {
	return []string{chain, "-i", bridge, "-o", bridge, "-j", "ACCEPT"}
}

// runIptables runs a program and reports whether it said yes. A program that is not
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
