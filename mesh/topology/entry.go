package topology

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// The format of an entry; all numbers are big-endian:
//
//	 0      length   u32  bytes of the whole entry, this field and the signature included
//	 4      format   u8   1
//	 5      name     6
//	11      key     32    Ed25519 public key of name
//	43      instance u64  drawn at random at each launch
//	51      version  u64  rises with each change; the higher one wins
//	59      links    u16  count, then for each link, in order of name:
//	            name  6
//	            flags u8
//	            rtt   u8   see Link.Cost
//	  ...   addresses u8   count, then for each: length u8, 6 or 18 | IP | port u16
//	  ...   nickname u8   length, then UTF-8
//	  ...   short id u16  1 to 4095, or 0 for none; entries of older peers end before it
//	  ...   rest          fields of later versions; kept and signed, not read
//	len-64  signature 64  over "weft topology entry" and all bytes from offset 4 on before it
const (
	entryFormat    = 1
	entryFixed     = 4 + 1 + peer.NameLen + len(peer.Key{}) + 8 + 8 + 2
	linkLen        = peer.NameLen + 2
	maxEntryLen    = 12 << 10
	maxNickname    = 128
	signDomain     = "weft topology entry"
	costStepsPerX2 = 4
)

const (
	// MaxLinks is the largest number of links of an entry. It is enough for 1,000 hosts
	// without a connection limit.
	MaxLinks = 1024
	// MaxAddrs is the largest number of addresses of an entry.
	MaxAddrs = 12
)

// LinkFlags are the ways in which two neighbours are linked. The numbers are on the wire:
// append-only.
type LinkFlags uint8

const (
	// LinkSession is set if the two have a TCP session, which carries control messages.
	LinkSession LinkFlags = 1 << iota
	// LinkData is set if the two have a link, which carries frames over UDP.
	LinkData
)

// Link is a link to a neighbour as one of the two peers lists it. It counts only if both
// list it.
type Link struct {
	To    peer.Name
	Flags LinkFlags
	// Cost is the round-trip time on a logarithmic scale; see CostOf.
	Cost uint8
}

// CostOf converts a round-trip time to the scale of Link.Cost: four steps for each
// doubling above 16 us, 0 for a shorter or unknown time. The scale is coarse so that
// entries do not change with each measurement.
func CostOf(rtt time.Duration) uint8 {
	x := float64(rtt) / float64(16*time.Microsecond)
	if x <= 1 {
		return 0
	}
	return uint8(min(math.MaxUint8, math.Log2(x)*costStepsPerX2))
}

// micros returns the middle of the times that CostOf converts to c, in microseconds.
func micros(c uint8) uint64 {
	return uint64(16 * math.Exp2((float64(c)+0.5)/costStepsPerX2))
}

// Entry is one peer's description of itself. It is immutable.
type Entry struct {
	Name     peer.Name
	Key      peer.Key
	Instance uint64
	Version  uint64
	Links    []Link // in order of To, without duplicates, none to Name itself
	// Addrs are the addresses at which the peer may be dialled, as it says itself.
	Addrs    []netip.AddrPort
	Nickname string
	// ShortID is the short id that the peer claims, 0 for none. Another peer may claim
	// the same one; see Routes.ShortIDs.
	ShortID uint16

	hasShortID bool   // whether the encoding has a short id
	raw        []byte // the signed encoding
}

// sign signs the entry and sets raw. The fields must be within their limits.
func (e *Entry) sign(s peer.Signer) {
	b := make([]byte, 4, entryFixed+len(e.Links)*linkLen+256)
	b = append(b, entryFormat)
	b = append(b, e.Name[:]...)
	b = append(b, e.Key[:]...)
	b = binary.BigEndian.AppendUint64(b, e.Instance)
	b = binary.BigEndian.AppendUint64(b, e.Version)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Links)))
	for _, l := range e.Links {
		b = append(b, l.To[:]...)
		b = append(b, byte(l.Flags), l.Cost)
	}
	b = append(b, byte(len(e.Addrs)))
	for _, a := range e.Addrs {
		ip := a.Addr().AsSlice()
		b = append(b, byte(len(ip)+2))
		b = append(b, ip...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	b = append(b, byte(len(e.Nickname)))
	b = append(b, e.Nickname...)
	b = binary.BigEndian.AppendUint16(b, e.ShortID)
	binary.BigEndian.PutUint32(b, uint32(len(b)+peer.SignatureLen))
	sig := s.Sign(signDomain, b[4:])
	e.raw = append(b, sig[:]...)
}

var errShort = errors.New("cut short")

// header is the start of an entry. It shows whether the entry is new.
type header struct {
	length   int
	name     peer.Name
	key      peer.Key
	instance uint64
	version  uint64
}

// peek reads the header of the first entry of b.
func peek(b []byte) (h header, err error) {
	if len(b) < 4 {
		return h, fmt.Errorf("topology entry: length: %w", errShort)
	}
	h.length = int(binary.BigEndian.Uint32(b))
	if h.length < entryFixed+1+peer.SignatureLen || h.length > maxEntryLen {
		return h, fmt.Errorf("topology entry: length: %d bytes, want %d to %d", h.length, entryFixed+1+peer.SignatureLen, maxEntryLen)
	}
	if len(b) < h.length {
		return h, fmt.Errorf("topology entry: body: %w", errShort)
	}
	h.name = peer.NameFromBytes(b[5:])
	copy(h.key[:], b[11:])
	h.instance = binary.BigEndian.Uint64(b[43:])
	h.version = binary.BigEndian.Uint64(b[51:])
	return h, nil
}

// stale reports whether an entry that begins with h cannot supersede e.
func (h *header) stale(e *Entry) bool {
	return e != nil && h.key == e.Key &&
		(h.version < e.Version || h.version == e.Version && h.instance == e.Instance && h.length == len(e.raw))
}

// parseEntry parses the first entry of b and returns its length. The entry keeps a copy
// of the bytes. The signature is not checked; see verify.
func parseEntry(b []byte) (*Entry, int, error) {
	bad := func(what string, cause error) (*Entry, int, error) {
		return nil, 0, fmt.Errorf("topology entry: %s: %w", what, cause)
	}
	h, err := peek(b)
	if err != nil {
		return nil, 0, err
	}
	n := h.length
	raw := slices.Clone(b[:n])
	if raw[4] != entryFormat {
		return bad("format", fmt.Errorf("%d, want %d", raw[4], entryFormat))
	}
	e := &Entry{Name: h.name, Key: h.key, Instance: h.instance, Version: h.version, raw: raw}
	links := int(binary.BigEndian.Uint16(raw[59:]))
	rest := raw[entryFixed : n-peer.SignatureLen]
	if links > MaxLinks || len(rest) < links*linkLen {
		return bad("links", fmt.Errorf("%d of them: %w", links, errShort))
	}
	e.Links = make([]Link, links)
	for i := range e.Links {
		l := Link{To: peer.NameFromBytes(rest), Flags: LinkFlags(rest[6]), Cost: rest[7]}
		rest = rest[linkLen:]
		if l.To == e.Name || i > 0 && e.Links[i-1].To.Compare(l.To) >= 0 {
			return bad("links", fmt.Errorf("link %d to %s is out of order or leads to the peer itself", i, l.To))
		}
		e.Links[i] = l
	}
	if e.Addrs, rest, err = parseAddrs(rest); err != nil {
		return bad("addresses", err)
	}
	if len(rest) < 1 || len(rest) < 1+int(rest[0]) || rest[0] > maxNickname {
		return bad("nickname", errShort)
	}
	e.Nickname = string(rest[1 : 1+int(rest[0])])
	if e.ShortID, e.hasShortID, err = parseShortID(rest[1+int(rest[0]):]); err != nil {
		return bad("short id", err)
	}
	return e, n, nil
}

// parseAddrs parses the addresses of an entry and returns the bytes after them.
func parseAddrs(b []byte) (addrs []netip.AddrPort, rest []byte, err error) {
	if len(b) < 1 {
		return nil, nil, errShort
	}
	count := int(b[0])
	if b = b[1:]; count > MaxAddrs {
		return nil, nil, fmt.Errorf("%d of them, want at most %d", count, MaxAddrs)
	}
	for range count {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return nil, nil, errShort
		}
		n := int(b[0])
		if n != 6 && n != 18 {
			return nil, nil, fmt.Errorf("one of %d bytes, want 6 or 18", n)
		}
		ip, _ := netip.AddrFromSlice(b[1 : n-1])
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(b[n-1:])))
		b = b[1+n:]
	}
	return addrs, b, nil
}

// verify reports whether the entry is signed by the key that it names.
func (e *Entry) verify(v peer.Verifier) bool {
	end := len(e.raw) - peer.SignatureLen
	return v.Verify(e.Key, signDomain, e.raw[4:end], peer.Signature(e.raw[end:]))
}

// linked reports whether the two entries list each other for a common purpose.
func (e *Entry) linked(o *Entry) bool {
	a, ok := e.link(o.Name)
	if !ok {
		return false
	}
	b, ok := o.link(e.Name)
	return ok && a.Flags&b.Flags != 0
}

// link returns the link to n that e lists.
func (e *Entry) link(n peer.Name) (Link, bool) {
	i, ok := slices.BinarySearchFunc(e.Links, n, func(l Link, n peer.Name) int { return l.To.Compare(n) })
	if !ok {
		return Link{}, false
	}
	return e.Links[i], true
}

// supersedes reports whether e replaces old, an entry of the same name and key. The
// higher version wins. The instance and then the bytes break a tie, so that all peers
// choose equally.
func (e *Entry) supersedes(old *Entry) bool {
	switch {
	case old == nil || e.Version > old.Version:
		return true
	case e.Version < old.Version:
		return false
	case e.Instance != old.Instance:
		return e.Instance > old.Instance
	}
	return slices.Compare(e.raw, old.raw) > 0
}
