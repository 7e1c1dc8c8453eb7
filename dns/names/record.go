package names

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// A record on the wire, all numbers big endian:
//
//	 0      length   u32  bytes of the whole record, this field and the signature included
//	 4      format   u8   1
//	 5      owner    6    name of the peer
//	11      key      32   its Ed25519 public key
//	43      incarn.  u64  incarnation; the highest one replaces all others
//	51      version  u64  of the bucket; the highest one replaces the others
//	59      bucket   u8
//	60      count    u16  entries, then for each, in order of name, container and address:
//	            name       u8 length, then the host name, lower case, without a trailing dot
//	            container  u8 length, then its id
//	            address    u8 length, 4 or 16, then its bytes
//	  ...   rest          fields of later formats; kept and signed, not parsed
//	len-64  signature 64  over "weft dns names" and all bytes from offset 4 to the signature
const (
	recordFormat = 1
	recordFixed  = 4 + 1 + peer.NameLen + len(peer.Key{}) + 8 + 8 + 1 + 2
	minRecord    = recordFixed + peer.SignatureLen
	// maxRecord is the maximum size of a record in bytes. It fits into a delta.
	maxRecord  = 40 << 10
	signDomain = "weft dns names"
)

// header is the start of a record. It is sufficient to decide whether the record is new.
type header struct {
	length      int
	format      uint8
	owner       peer.Name
	key         peer.Key
	incarnation uint64
	version     uint64
	bucket      uint8
}

// record is one bucket of one owner. It is immutable.
type record struct {
	header
	entries []Entry // sorted, without duplicates
	raw     []byte  // the signed encoding
}

var errShort = errors.New("truncated")

// parseHeader parses the header of the first record of b.
func parseHeader(b []byte) (h header, err error) {
	if len(b) < 4 {
		return h, fmt.Errorf("parse names record: length: %w", errShort)
	}
	h.length = int(binary.BigEndian.Uint32(b))
	if h.length < minRecord || h.length > maxRecord {
		return h, fmt.Errorf("parse names record: length: %d bytes, want %d to %d", h.length, minRecord, maxRecord)
	}
	if len(b) < h.length {
		return h, fmt.Errorf("parse names record: body: %w", errShort)
	}
	h.format = b[4]
	h.owner = peer.NameFromBytes(b[5:])
	copy(h.key[:], b[11:])
	h.incarnation = binary.BigEndian.Uint64(b[43:])
	h.version = binary.BigEndian.Uint64(b[51:])
	h.bucket = b[59]
	return h, nil
}

// parseRecord parses the first record of b, whose format must be known. The record does not keep
// b. The signature is not checked: see verify.
func parseRecord(b []byte) (*record, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	r := &record{header: h, raw: slices.Clone(b[:h.length])}
	rest := r.raw[recordFixed : h.length-peer.SignatureLen]
	field := func() (f []byte, ok bool) {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return nil, false
		}
		f, rest = rest[1:1+int(rest[0])], rest[1+int(rest[0]):]
		return f, true
	}
	const least = 3 + 1 + 1 + 4 // minimum bytes of an entry
	count := int(binary.BigEndian.Uint16(r.raw[recordFixed-2:]))
	r.entries = make([]Entry, 0, min(count, len(rest)/least))
	for i := range count {
		name, ok1 := field()
		container, ok2 := field()
		address, ok3 := field()
		if !ok1 || !ok2 || !ok3 {
			return nil, fmt.Errorf("parse names record of %s: entry %d of %d: %w", h.owner, i+1, count, errShort)
		}
		addr, _ := netip.AddrFromSlice(address)
		e := Entry{Name: string(name), Container: string(container), Addr: addr}
		if err := e.Check(); err != nil {
			return nil, fmt.Errorf("parse names record of %s: entry %d: %w", h.owner, i+1, err)
		}
		if bucketOf(e.Name) != h.bucket || i > 0 && r.entries[i-1].compare(e) >= 0 {
			return nil, fmt.Errorf("parse names record of %s: entry %d: %s is out of order or in the wrong bucket", h.owner, i+1, e.Name)
		}
		r.entries = append(r.entries, e)
	}
	return r, nil
}

// encodedLen returns the size of an entry in a record in bytes.
func (e Entry) encodedLen() int { return 3 + len(e.Name) + len(e.Container) + e.Addr.BitLen()/8 }

// newRecord makes and signs a record. The entries must be valid and sorted, and must fit into a
// record.
func newRecord(h header, entries []Entry, s peer.Signer) *record {
	h.format, h.key = recordFormat, s.Key()
	b := make([]byte, 4, 512)
	b = append(b, h.format)
	b = append(b, h.owner[:]...)
	b = append(b, h.key[:]...)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.version)
	b = append(b, h.bucket)
	b = binary.BigEndian.AppendUint16(b, uint16(len(entries)))
	for _, e := range entries {
		b = append(b, byte(len(e.Name)))
		b = append(b, e.Name...)
		b = append(b, byte(len(e.Container)))
		b = append(b, e.Container...)
		b = append(b, byte(e.Addr.BitLen()/8))
		b = append(b, e.Addr.AsSlice()...)
	}
	h.length = len(b) + peer.SignatureLen
	binary.BigEndian.PutUint32(b, uint32(h.length))
	sig := s.Sign(signDomain, b[4:])
	return &record{header: h, entries: entries, raw: append(b, sig[:]...)}
}

// verify reports whether the record is signed with the key that it names.
func (r *record) verify(v peer.Verifier) bool {
	end := len(r.raw) - peer.SignatureLen
	return v.Verify(r.key, signDomain, r.raw[4:end], peer.Signature(r.raw[end:]))
}

// supersedes reports whether r replaces old, which has the same owner, incarnation and bucket. Two
// records with the same version come only from a clone or an attacker. Their bytes decide, so that
// all peers choose the same one.
func (r *record) supersedes(old *record) bool {
	return old == nil || cmp.Or(cmp.Compare(r.version, old.version), slices.Compare(r.raw, old.raw)) > 0
}

// sum returns the record's contribution to its owner's sum in a digest. The signature covers all
// of a record, so hashing the signature is enough.
func (r *record) sum() uint64 {
	h := fnv.New64a()
	h.Write(r.raw[43:recordFixed])
	h.Write(r.raw[len(r.raw)-peer.SignatureLen:])
	return h.Sum64()
}
