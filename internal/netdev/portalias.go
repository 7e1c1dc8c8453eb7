package netdev

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PortUser is who a port of a container belongs to, by the records of weft.
type PortUser struct {
	// Owner is the name in the allocators, "" if unknown.
	Owner string
	// Name is for people: that of a container or pod. It may be missing.
	Name string
	// Addrs are the addresses that weft gave to the container here.
	Addrs []netip.Prefix
	// AllowSpoof says that frames of the container may have other source addresses too.
	AllowSpoof bool
}

// portAlias is the alias of the host's end of a container's veth pair. It says how the
// port must be and whose it is, so that a router can restore both from the kernel alone,
// whoever made the port.
//
//	weft port mtu 1376 hairpin unguarded mac 02:42:0a:20:00:05 of cni:pods:c1:eth0 has 10.32.0.5/12,fd00::5/64 named default/web
//
// The MAC address is that which the other end was given. All but the MTU may be missing. Bytes of
// a value that are not printable ASCII, spaces and percent signs are written as %XX. The kernel
// keeps maxAlias bytes. An owner that is too long is left out, then addresses from the end, then
// the name. Addresses that were left out are in alternative names of the interface instead, as
// many as necessary of up to maxAltName bytes each:
//
//	vethwe1a2b3c4d+10.32.0.9-12+fd00::9-64
//
// An alternative name must be unique on the host, so it begins with the name of the port, and it
// must not contain a slash.
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
	maxAltName      = 127 // ALTIFNAMSIZ of linux/if.h with the zero at the end is 128
	altSeparator    = "+"
)

// String returns the text of the alias.
func (a portAlias) String() string {
	s, _ := a.text()
	return s
}

// text returns the text of the alias, and the addresses that are not in it.
func (a portAlias) text() (s string, rest []netip.Prefix) {
	s = fmt.Sprintf("%s mtu %d", portAliasPrefix, a.mtu)
	if a.hairpin {
		s += " hairpin"
	}
	if a.user.AllowSpoof {
		s += " unguarded"
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
			rest = a.user.Addrs[i:]
			break
		}
		s += word
	}
	if name := escapeAlias(a.user.Name); name != "" && len(s)+len(" named ")+len(name) <= maxAlias {
		s += " named " + name
	}
	return s, rest
}

// altNames returns the alternative names of a port, with the addresses that are not in its alias.
func altNames(port string, rest []netip.Prefix) (names []string) {
	name := ""
	for _, p := range rest {
		word := altSeparator + strings.ReplaceAll(p.String(), "/", "-")
		if name == "" || len(name)+len(word) > maxAltName {
			names = append(names, "")
			name = port
		}
		name += word
		names[len(names)-1] = name
	}
	return names
}

// isAltName reports whether weft wrote an alternative name of a port.
func isAltName(name string) bool {
	return strings.HasPrefix(name, HostPrefix) && strings.Contains(name, altSeparator)
}

// addrsOfAltNames returns the addresses in alternative names of a port.
func addrsOfAltNames(names []string) (addrs []netip.Prefix) {
	for _, name := range names {
		if !isAltName(name) {
			continue
		}
		for _, word := range strings.Split(name, altSeparator)[1:] {
			if p, err := netip.ParsePrefix(strings.ReplaceAll(word, "-", "/")); err == nil {
				addrs = append(addrs, p)
			}
		}
	}
	return addrs
}

// readPortAlias reads the alias of a port with its alternative names. It is false if weft did
// not write the alias.
func readPortAlias(alias string, names []string) (a portAlias, ok bool) {
	if a, ok = parsePortAlias(alias); ok {
		a.user.Addrs = append(a.user.Addrs, addrsOfAltNames(names)...)
	}
	return a, ok
}

// writePortAlias sets the alias of a port, with its alternative names. Whoever reads meanwhile
// finds all addresses that the port keeps.
func (h handle) writePortAlias(port netlink.Link, a portAlias) error {
	at := port.Attrs()
	text, rest := a.text()
	names := altNames(at.Name, rest)
	for _, name := range names {
		if !slices.Contains(at.AltNames, name) {
			if err := h.LinkAddAltName(port, name); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add the alternative name %s to %s: %w", name, at.Name, err)
			}
		}
	}
	if text != at.Alias {
		if err := h.LinkSetAlias(port, text); err != nil {
			return fmt.Errorf("set alias of %s: %w", at.Name, err)
		}
	}
	for _, name := range at.AltNames {
		if isAltName(name) && !slices.Contains(names, name) {
			if err := h.LinkDelAltName(port, name); err != nil {
				return fmt.Errorf("remove the alternative name %s of %s: %w", name, at.Name, err)
			}
		}
	}
	at.Alias, at.AltNames = text, names
	return nil
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
	if len(words) > 0 && words[0] == "unguarded" {
		a.user.AllowSpoof, words = true, words[1:]
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
	a.user.AllowSpoof = more.AllowSpoof
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
	// RateLimited is that of Attachment.
	RateLimited bool
	PortUser
}

func givenPort(a *netlink.LinkAttrs, alias portAlias) GivenPort {
	return GivenPort{a.Name, a.Index, alias.mac, a.Group == rateLimitedGroup, alias.user}
}

// FindGivenPort returns the port of a container with that name. It is false if there is none.
func FindGivenPort(name string) (p GivenPort, ok bool, err error) {
	h, err := here()
	if err != nil {
		return p, false, err
	}
	defer h.Close()
	l, ok, err := h.link(name)
	if err != nil || !ok || l.Type() != "veth" {
		return p, false, err
	}
	alias, ok := readPortAlias(l.Attrs().Alias, l.Attrs().AltNames)
	return givenPort(l.Attrs(), alias), ok, nil
}

// GivenPorts returns the ports of containers, whoever made them, in the order in which they were
// made.
func GivenPorts(v *View) (ports []GivenPort) {
	for name, l := range v.Links {
		if a, ours := readPortAlias(l.Alias, l.AltNames); ours && l.Kind == "veth" {
			ports = append(ports, GivenPort{name, l.Index, a.mac, l.Group == rateLimitedGroup, a.user})
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
