package netdev

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// PortUser is who a port of a container belongs to, by the records of weft.
type PortUser struct {
	// Owner is the name in the allocators, "" if unknown.
	Owner string
	// Name is for people: that of a container or pod. It may be missing.
	Name string
	// Addrs are the addresses that weft gave to the container here.
	Addrs []netip.Prefix
}

// portAlias is the alias of the host's end of a container's veth pair. It says how the
// port must be and whose it is, so that a router can restore both from the kernel alone,
// whoever made the port.
//
//	weft port mtu 1376 hairpin mac 02:42:0a:20:00:05 of cni:pods:c1:eth0 has 10.32.0.5/12,fd00::5/64 named default/web
//
// The MAC address is that which the other end was given. All but the MTU may be missing. Bytes of a value that are not printable ASCII, spaces and
// percent signs are written as %XX. The kernel keeps maxAlias bytes. An owner that is too long
// is left out, then addresses from the end, then the name.
type portAlias struct {
	mtu     int // bytes of IP packet
	hairpin bool
	mac     net.HardwareAddr // of the other end
	user    PortUser
}

const (
	portAliasPrefix = "weft port"
	maxAlias        = 255 // IFALIASZ of linux/if.h with the zero at the end is 256
	maxAliasOwner   = 128 // leaves space for four addresses
)

// String returns the text of the alias.
func (a portAlias) String() string {
	s := fmt.Sprintf("%s mtu %d", portAliasPrefix, a.mtu)
	if a.hairpin {
		s += " hairpin"
	}
	if len(a.mac) == macLen {
		s += " mac " + a.mac.String()
	}
	if owner := escapeAlias(a.user.Owner); owner != "" && len(owner) <= maxAliasOwner {
		s += " of " + owner
	}
	for i, p := range a.user.Addrs {
		word := "," + p.String()
		if i == 0 {
			word = " has " + p.String()
		}
		if len(s)+len(word) > maxAlias {
			break
		}
		s += word
	}
	if name := escapeAlias(a.user.Name); name != "" && len(s)+len(" named ")+len(name) <= maxAlias {
		s += " named " + name
	}
	return s
}

// parsePortAlias reads an alias. It is false if weft did not write it.
func parsePortAlias(s string) (a portAlias, ok bool) {
	rest, ok := strings.CutPrefix(s, portAliasPrefix+" mtu ")
	if !ok {
		return portAlias{}, false
	}
	words := strings.Split(rest, " ")
	mtu, err := strconv.Atoi(words[0])
	if err != nil || mtu < 68 || mtu > 65535 {
		return portAlias{}, false
	}
	a.mtu, words = mtu, words[1:]
	if len(words) > 0 && words[0] == "hairpin" {
		a.hairpin, words = true, words[1:]
	}
	for ; len(words) >= 2; words = words[2:] {
		switch value := words[1]; words[0] {
		case "mac":
			if a.mac, err = net.ParseMAC(value); err != nil {
				return portAlias{}, false
			}
		case "of":
			a.user.Owner = unescapeAlias(value)
		case "has":
			for text := range strings.SplitSeq(value, ",") {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return portAlias{}, false
				}
				a.user.Addrs = append(a.user.Addrs, p)
			}
		case "named":
			a.user.Name = unescapeAlias(value)
		}
	}
	return a, len(words) == 0 && a.String() == s
}

// with returns the alias for a container that is attached again with more addresses.
func (a portAlias) with(more PortUser) portAlias {
	if more.Owner != "" {
		a.user.Owner, a.user.Name = more.Owner, more.Name
	}
	a.user.Addrs = slices.Clone(a.user.Addrs)
	for _, p := range more.Addrs {
		if !slices.Contains(a.user.Addrs, p) {
			a.user.Addrs = append(a.user.Addrs, p)
		}
	}
	return a
}

// without returns the alias for a container that lost addresses.
func (a portAlias) without(addrs []netip.Prefix) portAlias {
	a.user.Addrs = slices.DeleteFunc(slices.Clone(a.user.Addrs), func(p netip.Prefix) bool { return slices.Contains(addrs, p) })
	return a
}

func plainInAlias(c byte) bool { return c > ' ' && c < 0x7f && c != '%' }

func escapeAlias(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plainInAlias(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// unescapeAlias undoes escapeAlias. What is no escape stays.
func unescapeAlias(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// macLen is the length of a MAC address, in bytes.
const macLen = 6

// randomMAC returns a MAC address that is locally administered and unicast, as the kernel does
// (eth_random_addr of linux/etherdevice.h).
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, macLen)
	_, _ = rand.Read(mac) // never fails, by its documentation
	mac[0] = mac[0]&^1 | 2
	return mac
}

// GivenPort is the host's end of a veth pair that weft made for a container, with what weft gave to
// the other end.
type GivenPort struct {
	Name  string
	Index int
	MAC   net.HardwareAddr // nil if it is unknown
	PortUser
}

// GivenPorts returns the ports of containers, whoever made them, in the order in which they were
// made.
func GivenPorts(v *View) (ports []GivenPort) {
	for name, l := range v.Links {
		if a, ours := parsePortAlias(l.Alias); ours && l.Kind == "veth" {
			ports = append(ports, GivenPort{name, l.Index, a.mac, a.user})
		}
	}
	slices.SortFunc(ports, func(a, b GivenPort) int { return cmp.Compare(a.Index, b.Index) })
	return ports
}

// AddressesOfPorts returns the addresses that weft gave to containers, with the names of their
// ports, whoever made them.
func AddressesOfPorts(v *View) map[netip.Addr]string {
	ports := make(map[netip.Addr]string)
	for _, port := range GivenPorts(v) {
		for _, p := range port.Addrs {
			ports[p.Addr()] = port.Name
		}
	}
	return ports
}
