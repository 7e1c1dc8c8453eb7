package ring

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// Causes for which a record is refused.
var (
	// ErrFormat: the bytes are not a record, delta or digest.
	ErrFormat = gossip.ErrMalformed
	// ErrSignature: a signature is wrong, or its key may not sign for the peer.
	ErrSignature = errors.New("wrong signature")
	// ErrVotes: there are too few valid votes.
	ErrVotes = errors.New("not enough votes")
	// ErrRange: addresses are outside the address range.
	ErrRange = errors.New("outside the address range")
	// ErrEarly: decisions before it are unknown. It comes again.
	ErrEarly = errors.New("decisions before it are unknown")
	// ErrState: the action does not fit the present state of the ring.
	ErrState = errors.New("does not fit the state of the ring")
)

// ID names a record by its content: the first 16 bytes of its SHA-256.
type ID [16]byte

// String returns the first bytes of the id in hexadecimal, for people to compare.
func (id ID) String() string { return hex.EncodeToString(id[:4]) }

// IsZero reports whether id is the zero ID, which names nothing.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) less(o ID) bool { return string(id[:]) < string(o[:]) }

func idOf(domain string, raw []byte) (id ID) {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write([]byte{0})
	h.Write(raw)
	copy(id[:], h.Sum(nil))
	return id
}

// Holder is a peer as the ring knows it: its name together with its key, so that nobody
// can speak for it under the same name. In a ring from seeds the founders have no Key,
// because the user gave only their names: any key that may use the name speaks for them.
type Holder struct {
	Name peer.Name
	Key  peer.KeyID
}

const holderLen = peer.NameLen + len(peer.KeyID{})

// String returns the name.
func (h Holder) String() string { return h.Name.String() }

// Compare orders holders by name, then key: -1, 0 or 1.
func (h Holder) Compare(o Holder) int {
	if c := h.Name.Compare(o.Name); c != 0 {
		return c
	}
	return h.Key.Compare(o.Key)
}

// IsZero reports whether h is the zero Holder, which is nobody.
func (h Holder) IsZero() bool { return h == Holder{} }

// Append appends the encoded holder to b: name 6, id of the key 16.
func (h Holder) Append(b []byte) []byte {
	b = append(b, h.Name[:]...)
	return append(b, h.Key[:]...)
}

// ParseHolders parses holders as Append appended them. The number of bytes bounds them.
func ParseHolders(b []byte) (out []Holder, err error) {
	r := reader{b: b}
	for len(r.b) > 0 && !r.bad {
		out = append(out, r.holder())
	}
	if !r.end() || len(out) == 0 {
		return nil, malformed("list of peers", b)
	}
	return out, nil
}

// HolderOf returns the holder of a name and its key.
func HolderOf(n peer.Name, k peer.Key) Holder { return Holder{n, peer.IDOf(k)} }

// Keys returns the key to which an overridden name is bound, for founders that are known
// by their names only.
type Keys func(peer.Name) (peer.Key, bool)

// signedBy returns an error if key may not sign for h.
func (h Holder) signedBy(key peer.Key, keys Keys) error {
	id := peer.IDOf(key)
	switch {
	case h.Key != (peer.KeyID{}) && h.Key != id:
		return fmt.Errorf("key %s signs for %s, whose key is %s: %w", id, h, h.Key, ErrSignature)
	case h.Key != (peer.KeyID{}) || h.Name.Derived():
		return h.Name.Matches(id)
	}
	if k, ok := keys(h.Name); !ok || k != key {
		return fmt.Errorf("key %s signs for %s, whose name is not bound to it: %w", id, h, ErrSignature)
	}
	return nil
}

// valid reports whether h may stand in a record.
func (h Holder) valid() bool {
	return !h.Name.IsZero() && h.Name != peer.Broadcast &&
		(h.Key == peer.KeyID{} || h.Name.Matches(h.Key) == nil)
}

// reader takes fields off the front of a slice. After the first missing field it
// returns zeros and sets bad.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) uint8() int     { return int(r.take(1)[0]) }
func (r *reader) uint16() int    { return int(binary.BigEndian.Uint16(r.take(2))) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) holder() (h Holder) {
	h.Name = peer.NameFromBytes(r.take(peer.NameLen))
	copy(h.Key[:], r.take(len(h.Key)))
	if !h.valid() {
		r.bad = true
	}
	return h
}

func (r *reader) id() (id ID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) key() (k peer.Key) {
	copy(k[:], r.take(len(k)))
	return k
}

func (r *reader) sig() (s peer.Signature) {
	copy(s[:], r.take(len(s)))
	return s
}

// counted returns a count of items of size bytes, 0 if some of them are missing.
func (r *reader) counted(size int) int {
	n := r.uint16()
	if len(r.b) < n*size {
		r.bad = true
		return 0
	}
	return n
}

func (r *reader) address(family byte) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte(r.take(4)))
	}
	a := netip.AddrFrom16([16]byte(r.take(16)))
	if a.Is4In6() {
		r.bad = true
	}
	return a
}

func (r *reader) family() byte {
	f := r.take(1)[0]
	if f != 4 && f != 6 {
		r.bad = true
	}
	return f
}

// end reports whether all bytes were read and well-formed.
func (r *reader) end() bool { return !r.bad && len(r.b) == 0 }

func family(a netip.Addr) byte {
	if a.Is4() {
		return 4
	}
	return 6
}

func malformed(what string, raw []byte) error {
	return fmt.Errorf("%s of %d bytes: %w", what, len(raw), ErrFormat)
}

func ascending[T any](s []T, compare func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) >= 0 {
			return false
		}
	}
	return true
}
