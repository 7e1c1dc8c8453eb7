package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// AddressKind is the way in which an address is requested.
type AddressKind uint8

// The kinds of Address.
const (
	// FromDefault asks for any free address of the default subnet.
	FromDefault AddressKind = iota
	// FromSubnet asks for any free address of Address.Prefix.
	FromSubnet
	// Exactly asks for the address of Address.Prefix, with its length.
	Exactly
)

// Address is one address as the user writes it:
//
//	net:default     any free address of the default subnet
//	net:SUBNET/LEN  any free address of that subnet
//	[ip:]ADDR/LEN   exactly that address in its subnet
//
// The zero Address is net:default. Addresses are comparable.
type Address struct {
	Kind AddressKind
	// Prefix is the subnet, host bits zero, for FromSubnet; the address with
	// the length of its subnet for Exactly; unset for FromDefault.
	Prefix netip.Prefix
}

// maxAddress is the length of the longest text that ParseAddress reads.
const maxAddress = 64

// ParseAddress reads one address in the forms of Address.
func ParseAddress(s string) (Address, error) {
	if len(s) > maxAddress {
		return Address{}, fmt.Errorf("address of %d characters: the longest has %d", len(s), maxAddress)
	}
	form, rest, found := strings.Cut(s, ":")
	switch {
	case found && form == "net" && rest == "default":
		return Address{Kind: FromDefault}, nil
	case found && form == "net":
		return parseSubnet(s, rest)
	case found && form == "ip":
		return parseExact(s, rest)
	default:
		return parseExact(s, s)
	}
}

func parseSubnet(whole, cidr string) (Address, error) {
	p, err := parsePrefix(whole, cidr)
	if err != nil {
		return Address{}, err
	}
	if m := p.Masked(); m != p {
		return Address{}, fmt.Errorf("address %q: bits are set beyond /%d; the subnet is net:%s, exactly this address is ip:%s", whole, p.Bits(), m, p)
	}
	if p.Addr().BitLen()-p.Bits() < 2 {
		return Address{}, fmt.Errorf("address %q: a subnet of /%d has no address to give", whole, p.Bits())
	}
	return Address{Kind: FromSubnet, Prefix: p}, nil
}

func parseExact(whole, cidr string) (Address, error) {
	p, err := parsePrefix(whole, cidr)
	if err != nil {
		return Address{}, err
	}
	a := p.Addr()
	switch {
	case a.IsMulticast() || a.IsUnspecified() || a.IsLoopback():
		return Address{}, fmt.Errorf("address %q: no interface can have it as its own", whole)
	case a.BitLen()-p.Bits() < 2: // RFC 3021, RFC 6164: both ends of a /31 or /127 are hosts
	case a == p.Masked().Addr():
		return Address{}, fmt.Errorf("address %q: it names the subnet itself; any address of it is net:%s", whole, p)
	case a.Is4() && a == lastAddr(p):
		return Address{}, fmt.Errorf("address %q: it is the broadcast address of its subnet", whole)
	}
	return Address{Kind: Exactly, Prefix: p}, nil
}

func parsePrefix(whole, cidr string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		if a, aerr := netip.ParseAddr(cidr); aerr == nil && a.Zone() == "" {
			return netip.Prefix{}, fmt.Errorf("address %q: the length of its subnet is missing, as in %s/24", whole, cidr)
		}
		return netip.Prefix{}, fmt.Errorf("address %q: want [ip:]ADDRESS/LENGTH, net:SUBNET/LENGTH or net:default", whole)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("address %q: write the IPv4 address by itself", whole)
	}
	return p, nil
}

// lastAddr returns the highest address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// String returns the form that ParseAddress reads.
func (a Address) String() string {
	switch a.Kind {
	case FromSubnet:
		return "net:" + a.Prefix.String()
	case Exactly:
		return "ip:" + a.Prefix.String()
	default:
		return "net:default"
	}
}

// MarshalText implements encoding.TextMarshaler with String.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseAddress.
func (a *Address) UnmarshalText(b []byte) error {
	v, err := ParseAddress(string(b))
	if err != nil {
		return err
	}
	*a = v
	return nil
}

// IsAddress reports whether s is an address rather than the name of a container: it
// begins with ip: or net:, or has a slash.
func IsAddress(s string) bool {
	return strings.HasPrefix(s, "ip:") || strings.HasPrefix(s, "net:") || strings.Contains(s, "/")
}
