// Package testbed makes labs: hosts that are network namespaces of one machine, connected
// by an underlay, each with a real router process. It makes nothing in the machine's own
// network namespace.
//
//	weft-LAB-underlay     bridge "under0", one port per host: h1, h2, ...
//	weft-LAB-hN           eth0: 192.168.77.N/24 and fd00:77::N/64; the router
//	weft-LAB-hN-NAME      a container of host N, attached by its router
//	/run/weft/lab/LAB/    lab.json, hN/{weft.sock,weft.log,pid,state/}
//
// A lab has no process of its own. Its state is read from the kernel, so any process can
// continue to work with a lab, or take down an incomplete one. Two processes may work at
// once on different labs, or on different containers of one lab.
package testbed

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/weft-net/weft/internal/netdev"
)

const (
	// DefaultName is the default lab of commands.
	DefaultName = "lab"
	// MaxHosts bounds the hosts of a lab: the underlay is a /24.
	MaxHosts = 250

	root       = "/run/weft/lab"
	underlayNS = "underlay"
)

var (
	labName       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	ambiguousName = regexp.MustCompile(`-(h[0-9]+|underlay)(-|$)`)
	containerName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?$`)
	hostPattern   = regexp.MustCompile(`^h([1-9][0-9]{0,2})$`)
)

// CheckName returns an error if name is not a valid name for a lab. Valid names never give
// namespaces of two labs the same name.
func CheckName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: want up to 32 lower-case letters, digits and inner hyphens", name)
	}
	if ambiguousName.MatchString(name) {
		return fmt.Errorf("lab name %q: it looks like the name of a host in another lab", name)
	}
	return nil
}

// Place is a host of a lab, or a container on one.
type Place struct {
	Host      int    // 1 for h1
	Container string // empty: the host itself
}

// ParsePlace reads HOST or HOST/CONTAINER.
func ParsePlace(s string) (Place, error) {
	host, container, hasContainer := cutSlash(s)
	m := hostPattern.FindStringSubmatch(host)
	if m == nil {
		return Place{}, fmt.Errorf("%q: want a host, h1, h2, ..., or HOST/CONTAINER", s)
	}
	n, _ := strconv.Atoi(m[1]) // three digits always fit
	if n > MaxHosts {
		return Place{}, fmt.Errorf("%q: a lab has at most %d hosts", s, MaxHosts)
	}
	if hasContainer && !containerName.MatchString(container) {
		return Place{}, fmt.Errorf("%q: want up to 64 letters, digits, dots, hyphens and underscores as the container's name", s)
	}
	return Place{Host: n, Container: container}, nil
}

func cutSlash(s string) (before, after string, found bool) {
	for i := range len(s) {
		if s[i] == '/' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// String returns the form that ParsePlace reads.
func (p Place) String() string {
	if p.Container == "" {
		return hostName(p.Host)
	}
	return hostName(p.Host) + "/" + p.Container
}

func hostName(n int) string { return "h" + strconv.Itoa(n) }

func (p Place) namespace(lab string) string {
	name := "weft-" + lab + "-" + hostName(p.Host)
	if p.Container != "" {
		name += "-" + p.Container
	}
	return name
}

// namespaces returns the names of all existing namespaces of the lab.
func namespaces(lab string) ([]string, error) {
	all, err := netdev.ListNS()
	if err != nil {
		return nil, err
	}
	own := regexp.MustCompile(`^weft-` + regexp.QuoteMeta(lab) + `-(underlay|h[1-9][0-9]*(-.*)?)$`)
	var found []string
	for _, n := range all {
		if own.MatchString(n) {
			found = append(found, n)
		}
	}
	return found, nil
}

// Addr4 returns the underlay address of host n.
func Addr4(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 77, byte(n)}) }

// Addr6 returns the underlay's IPv6 address of host n.
func Addr6(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x00, 3: 0x77, 15: byte(n)})
}

func labDir(lab string) string { return filepath.Join(root, lab) }
