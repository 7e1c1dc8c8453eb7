package names

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

const (
	maxName      = 253 // bytes of a host name, without the root label (RFC 1035, section 2.3.4)
	maxLabel     = 63
	maxContainer = 128 // bytes
)

// Entry is an address of a host name. It is comparable.
type Entry struct {
	// Name is the fully qualified host name in the form that Canonical returns.
	Name string
	// Container is the id of the container that the name belongs to. Its names are removed with
	// it.
	Container string
	Addr      netip.Addr
	// Outside is set if the address is outside the ranges of the mesh and the announcing host says
	// that the name leads there: it attached or exposed the address, or its user allowed such names
	// (--dns-external). It is no more than that host's word.
	Outside bool
}

// Canonical returns a host name in lower case and without a trailing dot. It fails if the name is
// invalid.
func Canonical(name string) (string, error) {
	s := strings.ToLower(strings.TrimSuffix(name, "."))
	if s == "" || len(s) > maxName {
		return "", fmt.Errorf("host name %.80q: want 1 to %d characters", name, maxName)
	}
	label := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if label == 0 || s[i-1] == '-' {
				return "", fmt.Errorf("host name %.80q: no label may be empty or end with a hyphen", name)
			}
			label = 0
			continue
		case c == '-' && label > 0:
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_':
		default:
			return "", fmt.Errorf("host name %.80q: want labels of letters, digits, underscores and inner hyphens, separated by dots", name)
		}
		if label++; label > maxLabel {
			return "", fmt.Errorf("host name %.80q: a label has at most %d characters", name, maxLabel)
		}
	}
	if label == 0 || s[len(s)-1] == '-' {
		return "", fmt.Errorf("host name %.80q: no label may be empty or end with a hyphen", name)
	}
	return s, nil
}

// Check returns an error if the entry is invalid.
func (e Entry) Check() error {
	name, err := Canonical(e.Name)
	if err != nil {
		return err
	}
	if name != e.Name {
		return fmt.Errorf("host name %q is not in its canonical form %q", e.Name, name)
	}
	if e.Container == "" || len(e.Container) > maxContainer || strings.ContainsFunc(e.Container, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Errorf("container %.80q: want the id of a container, 1 to %d printable characters", e.Container, maxContainer)
	}
	a := e.Addr
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return fmt.Errorf("address %s of %s: want a unicast address without a zone", a, e.Name)
	}
	return nil
}

// compare orders entries by name, container, address and flag.
func (e Entry) compare(o Entry) int {
	flag := 0
	if e.Outside != o.Outside {
		flag = 1
		if o.Outside {
			flag = -1
		}
	}
	return cmp.Or(strings.Compare(e.Name, o.Name), strings.Compare(e.Container, o.Container), e.Addr.Compare(o.Addr), flag)
}

// bucketOf returns the bucket of a name: the 32-bit FNV-1a hash of the canonical name, folded to 8
// bits. All peers must compute the same bucket.
func bucketOf(name string) uint8 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return uint8(h ^ h>>8 ^ h>>16 ^ h>>24)
}
