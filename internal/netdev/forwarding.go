package netdev

import (
	"fmt"
	"os"
	"path/filepath"
)

// EnableForwarding makes the host forward IPv4, or IPv6, packets. It returns the
// sysctls that it changed, like "net.ipv4.ip_forward=1", for the log. A host that
// forwards IPv6 ignores router advertisements, and so loses its default route, unless
// accept_ra is 2; the function sets that on interfaces whose accept_ra is 1.
func (s Sysctls) EnableForwarding(ipv6 bool) (changed []string, err error) {
	set := func(value string, key ...string) error {
		path := s.Path(key...)
		old, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read sysctl: %w", err)
		}
		if string(old) == value+"\n" {
			return nil
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl to %s: %w", value, err)
		}
		name := ""
		for _, k := range key {
			name += "." + k
		}
		changed = append(changed, name[1:]+"="+value)
		return nil
	}
	if !ipv6 {
		err = set("1", "net", "ipv4", "ip_forward")
		return changed, err
	}
	dirs, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return nil, fmt.Errorf("list ipv6 interfaces: %w", err)
	}
	for _, f := range dirs {
		old, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", f.Name(), "accept_ra"))
		if err == nil && string(old) == "1\n" && f.Name() != "all" {
			if err := set("2", "net", "ipv6", "conf", f.Name(), "accept_ra"); err != nil {
				return changed, err
			}
		}
	}
	err = set("1", "net", "ipv6", "conf", "all", "forwarding")
	return changed, err
}
