package names

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

const (
	maxName      = 253 // bytes of a host name: RFC 1035, 2.3.4, without the root's label
	maxLabel     = 63
	maxContainer = 128 // bytes
)

// Entry says that a name has an address. It is comparable.
type Entry struct {
	// Name is the fully qualified host name as Canonical returns it.
	Name string
	// Container is the id of what the name belongs to, so that its names can be
	// found again when it goes.
	Container string
	Addr      netip.Addr
}

// Canonical returns a host name in lower case and without a dot at its end, or
// tells why it is none.
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
			return "", fmt.Errorf("host name %.80q: want letters, digits, hyphens inside and underscores, with dots between", name)
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

// Check tells what is wrong with an entry, or returns nil.
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
		return fmt.Errorf("address %s of %s: no host can be reached by it from everywhere", a, e.Name)
	}
	return nil
}

// compare orders entries by name, container and address.
func (e Entry) compare(o Entry) int {
	return cmp.Or(strings.Compare(e.Name, o.Name), strings.Compare(e.Container, o.Container), e.Addr.Compare(o.Addr))
}

// bucketOf tells in which of its owner's 256 records a name is: FNV-1a, 32 bits,
// of the canonical name, folded to 8. All peers must compute the same.
func bucketOf(name string) uint8 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return uint8(h ^ h>>8 ^ h>>16 ^ h>>24)
}
