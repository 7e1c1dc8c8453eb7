// Package resolvconf reads the name servers of a host from its resolv.conf, see resolv.conf(5). It
// has no state; its functions are safe for concurrent use.
package resolvconf

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
)

// The path of the host's resolver configuration, and the path of the file in which
// systemd-resolved lists the servers that it uses itself.
const (
	DefaultPath  = "/etc/resolv.conf"
	ResolvedPath = "/run/systemd/resolve/resolv.conf"
)

const (
	port       = 53
	maxServers = 8
	maxFile    = 64 << 10 // bytes; the rest of a file is ignored
)

// resolvedAddrs are the addresses at which systemd-resolved listens. It does not know the names of
// containers, and it may forward to weft.
var resolvedAddrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}

// Parse returns the name servers in the text of a resolv.conf, in order and without duplicates,
// and how many it leaves out because there are more than it takes. It ignores invalid lines, as the
// C library does.
func Parse(text []byte) (servers []netip.AddrPort, more int) {
	for line := range bytes.Lines(text) {
		words := bytes.Fields(line)
		if len(words) < 2 || string(words[0]) != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(string(words[1]))
		s := netip.AddrPortFrom(a.Unmap(), port)
		switch {
		case err != nil || slices.Contains(servers, s):
		case len(servers) < maxServers:
			servers = append(servers, s)
		default:
			more++
		}
	}
	return servers, more
}

// Read returns the name servers of the resolv.conf at path. If these are only systemd-resolved's
// own listeners, it returns the servers of the file at the path resolved. With a TooManyError it
// returns those that it takes.
func Read(path, resolved string) ([]netip.AddrPort, error) {
	servers, err := readFile(path)
	if len(servers) == 0 || slices.ContainsFunc(servers, func(s netip.AddrPort) bool { return !slices.Contains(resolvedAddrs, s.Addr()) }) {
		return servers, err
	}
	if upstream, err := readFile(resolved); len(upstream) > 0 {
		return upstream, err
	}
	return servers, err
}

// TooManyError says that a file has more name servers than are taken.
type TooManyError struct {
	Path string
	More int // those that are not used
}

// Error implements error.
func (e *TooManyError) Error() string {
	return fmt.Sprintf("%s has %d name servers, of which the first %d are used", e.Path, maxServers+e.More, maxServers)
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
	servers, more := Parse(text)
	if more > 0 {
		return servers, &TooManyError{path, more}
	}
	return servers, nil
}
