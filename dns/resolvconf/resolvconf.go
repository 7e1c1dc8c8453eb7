// Package resolvconf reads which name servers a host asks, see resolv.conf(5).
package resolvconf

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
)

// Where a host's resolver is configured, and where systemd-resolved says which
// servers it asks itself.
const (
	DefaultPath  = "/etc/resolv.conf"
	ResolvedPath = "/run/systemd/resolve/resolv.conf"
)

const (
	port       = 53
	maxServers = 8
	maxFile    = 64 << 10 // bytes that are read
)

// resolvedAddrs are the addresses at which systemd-resolved listens: of containers it
// knows nothing, and it may ask weft.
var resolvedAddrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}

// Parse returns the name servers of a resolv.conf, in order and without
// repetition. Lines that make no sense are passed over, as by the C library.
func Parse(text []byte) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range bytes.Lines(text) {
		words := bytes.Fields(line)
		if len(words) < 2 || string(words[0]) != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(string(words[1]))
		s := netip.AddrPortFrom(a.Unmap(), port)
		if err == nil && len(servers) < maxServers && !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	return servers
}

// Read returns the name servers of the resolv.conf at path; those at the path
// resolved, if the first has no other than systemd-resolved's own listeners.
func Read(path, resolved string) ([]netip.AddrPort, error) {
	servers, err := readFile(path)
	if err != nil || len(servers) == 0 || slices.ContainsFunc(servers, func(s netip.AddrPort) bool { return !slices.Contains(resolvedAddrs, s.Addr()) }) {
		return servers, err
	}
	if upstream, err := readFile(resolved); err == nil && len(upstream) > 0 {
		return upstream, nil
	}
	return servers, nil
}

func readFile(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	return Parse(text), nil
}
