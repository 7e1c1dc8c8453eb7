package netdev

import (
	"os"
	"path/filepath"
)

// Sysctls is the directory of the host's sysctls; "" is /proc/sys. In a container
// /proc/sys is read-only, and the host's may be mounted elsewhere.
type Sysctls string

// ProcSys is the directory of sysctls on a host.
const ProcSys Sysctls = "/proc/sys"

// Path returns the file of a sysctl. Those of net belong to the network namespace of
// the thread that opens it.
func (s Sysctls) Path(key ...string) string {
	if s == "" {
		s = ProcSys
	}
	return filepath.Join(append([]string{string(s)}, key...)...)
}

// Set writes a sysctl of the calling thread's network namespace. It does not write the
// current value again, so it succeeds on a read-only directory if another program has
// set the value.
func (s Sysctls) Set(value string, key ...string) error {
	path := s.Path(key...)
	if old, err := os.ReadFile(path); err == nil && len(old) > 0 && string(old[:len(old)-1]) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}
