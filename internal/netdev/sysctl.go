package netdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
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

// Sysctl is the desired value of a sysctl.
type Sysctl struct {
	Dir   Sysctls
	Key   []string // like net, ipv4, ip_forward
	Value string
}

// Name returns the name as sysctl(8) writes it, but with a slash for a dot in the name of
// an interface.
func (s Sysctl) Name() string {
	words := make([]string, len(s.Key))
	for i, k := range s.Key {
		words[i] = strings.ReplaceAll(k, ".", "/")
	}
	return strings.Join(words, ".")
}

// Faults returns how the sysctl differs from the desired value, in words. A sysctl that
// the kernel does not have is right: it has no IPv6, or no such interface.
func (s Sysctl) Faults() ([]string, error) {
	b, err := os.ReadFile(s.Dir.Path(s.Key...))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if have := strings.TrimSpace(string(b)); err == nil && have != s.Value {
		return []string{"it is " + have + ", not " + s.Value}, nil
	}
	return nil, err
}

// Ensure writes the value, unless the kernel does not have the sysctl.
func (s Sysctl) Ensure() error {
	err := s.Dir.Set(s.Value, s.Key...)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
