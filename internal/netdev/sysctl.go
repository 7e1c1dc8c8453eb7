package netdev

import (
	"os"
	"path/filepath"
	"sync/atomic"
)

// sysctlRoot is where sysctls are written; nil: /proc/sys.
var sysctlRoot atomic.Pointer[string]

// SetSysctlRoot has sysctls of the network be written under another folder than
// /proc/sys: in a container, that one is read-only. It is for the start of a program.
func SetSysctlRoot(dir string) { sysctlRoot.Store(&dir) }

// SysctlPath returns the file of a sysctl. Those of net belong to the network
// namespace of the thread that opens it.
func SysctlPath(key ...string) string {
	root := "/proc/sys"
	if r := sysctlRoot.Load(); r != nil {
		root = *r
	}
	return filepath.Join(append([]string{root}, key...)...)
}

// SetSysctl writes a sysctl of the calling thread's network namespace. It does
// not write what is there already, so that it works on a read-only /proc/sys
// that someone else has set up right.
func SetSysctl(value string, key ...string) error {
	path := SysctlPath(key...)
	if old, err := os.ReadFile(path); err == nil && len(old) > 0 && string(old[:len(old)-1]) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}
