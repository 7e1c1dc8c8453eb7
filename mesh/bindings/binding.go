package bindings

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// MAC is an Ethernet address, in the order of the wire.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func (m MAC) compare(o MAC) int { return bytes.Compare(m[:], o[:]) }

// IsUnicast reports whether a frame can have m as its source. Others cannot be bound.
func (m MAC) IsUnicast() bool { return m[0]&1 == 0 && m != MAC{} }

// Kind says what has a MAC address.
type Kind uint8

// The kinds. They are on the wire.
const (
	Container Kind = 1 // of Docker or CNI
	Exposed   Kind = 2 // the host itself, by weft expose
	Port      Kind = 3 // a network namespace that weft attach plugged in by its path
)

var kindNames = [...]string{Container: "container", Exposed: "host", Port: "port"}

func (k Kind) isValid() bool { return k >= Container && k <= Port }

// String returns a word for people.
func (k Kind) String() string {
	if !k.isValid() {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// MaxAddrs bounds the IP addresses of one binding.
const MaxAddrs = 16

// Binding is a MAC address with the IP addresses that weft gave to it.
type Binding struct {
	MAC   MAC
	Kind  Kind
	Addrs []netip.Addr // ascending
}

// Equal reports whether two bindings are the same.
func (b Binding) Equal(o Binding) bool {
	return b.MAC == o.MAC && b.Kind == o.Kind && slices.Equal(b.Addrs, o.Addrs)
}

// Bindable reports whether an IP address can be bound. Containers choose link-local addresses
// themselves: with a binding of one, a member could make all hosts answer for it.
func Bindable(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

// check returns an error if others refuse the binding.
func (b Binding) check() error {
	switch {
	case !b.Kind.isValid():
		return fmt.Errorf("binding of %s: %v, want 1 to %d", b.MAC, b.Kind, Port)
	case !b.MAC.IsUnicast():
		return fmt.Errorf("binding of %s: want a unicast MAC address", b.MAC)
	case len(b.Addrs) > MaxAddrs:
		return fmt.Errorf("binding of %s: %d addresses, want at most %d", b.MAC, len(b.Addrs), MaxAddrs)
	}
	for i, a := range b.Addrs {
		switch {
		case !Bindable(a):
			return fmt.Errorf("binding of %s: address %s, want a unicast address that is not link-local, without a zone", b.MAC, a)
		case i > 0 && b.Addrs[i-1].Compare(a) >= 0:
			return fmt.Errorf("binding of %s: address %s is out of order", b.MAC, a)
		}
	}
	return nil
}

// bucketCount is how many of the buckets of mesh/records are used.
const bucketCount = 16

// bucketOf returns the bucket of a MAC address. All peers must compute the same one. The last
// bytes differ most: many MAC addresses are made from IP addresses.
func bucketOf(m MAC) uint8 { return (m[3] ^ m[4] ^ m[5] ^ m[5]>>4 ^ m[4]>>4) % bucketCount }

var errShort = errors.New("truncated")

// decode parses the payload of a bucket.
func decode(bucket uint8, b []byte) ([]Binding, error) {
	var out []Binding
	fail := func(err error) ([]Binding, error) {
		return nil, fmt.Errorf("parse bindings: number %d: %w", len(out), err)
	}
	for len(b) > 0 {
		if len(b) < 8 {
			return fail(errShort)
		}
		x := Binding{Kind: Kind(b[0]), MAC: MAC(b[1:7])}
		n := int(b[7])
		b = b[8:]
		for range min(n, MaxAddrs+1) {
			if len(b) == 0 || len(b) < 1+int(b[0]) {
				return fail(errShort)
			}
			a, ok := netip.AddrFromSlice(b[1 : 1+int(b[0])])
			if !ok {
				return fail(fmt.Errorf("address of %d bytes, want 4 or 16", b[0]))
			}
			x.Addrs, b = append(x.Addrs, a), b[1+int(b[0]):]
		}
		if err := x.check(); err != nil {
			return fail(err)
		}
		if bucketOf(x.MAC) != bucket {
			return fail(fmt.Errorf("%s belongs to bucket %d, not to %d", x.MAC, bucketOf(x.MAC), bucket))
		}
		if n := len(out); n > 0 && out[n-1].MAC.compare(x.MAC) >= 0 {
			return fail(fmt.Errorf("%s is out of order", x.MAC))
		}
		out = append(out, x)
	}
	return out, nil
}

// encode makes the payload of a bucket from valid bindings in order.
func encode(list []Binding) (b []byte) {
	for _, x := range list {
		b = append(append(append(b, byte(x.Kind)), x.MAC[:]...), byte(len(x.Addrs)))
		for _, a := range x.Addrs {
			b = append(append(b, byte(a.BitLen()/8)), a.AsSlice()...)
		}
	}
	return b
}

// sorted returns valid bindings in order of MAC address, with ascending addresses and each
// address once.
func sorted(list []Binding) []Binding {
	out := slices.Clone(list)
	for i := range out {
		out[i].Addrs = slices.Compact(slices.SortedFunc(slices.Values(out[i].Addrs), netip.Addr.Compare))
	}
	slices.SortFunc(out, func(a, b Binding) int { return cmp.Or(a.MAC.compare(b.MAC), cmp.Compare(a.Kind, b.Kind)) })
	return out
}
