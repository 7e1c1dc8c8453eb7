package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// bridgedKeys are the sysctls that pass bridged packets to the IP hooks of netfilter.
var bridgedKeys = []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"}

// showBridgedPackets makes the kernel pass bridged packets of the calling thread's network
// namespace to the IP hooks of netfilter. Without it policies would filter routed packets only.
// sysctls is the directory of the sysctls, usually /proc/sys.
func showBridgedPackets(sysctls string) error {
	dir := filepath.Join(sysctls, "net/bridge")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		// If the module cannot be loaded, the error below says so.
		_ = exec.Command("modprobe", "br_netfilter").Run()
	}
	for _, key := range bridgedKeys {
		path := filepath.Join(dir, key)
		have, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("enforce policies between pods of this node: the kernel has no %s: load the module br_netfilter (modprobe br_netfilter)", path)
		}
		if err == nil && strings.TrimSpace(string(have)) == "1" {
			continue
		}
		if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("enforce policies between pods of this node: set net.bridge.%s to 1: %w", key, err)
		}
	}
	return nil
}
