package records

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/weft-net/weft/mesh/peer"
)

// A record on the wire, all numbers big-endian:
//
//	 0      length    u32  bytes of the whole record, this field and the signature included
//	 4      format    u8   1; records of other formats are skipped
//	 5      owner     6    name of the peer
//	11      key       32   its Ed25519 public key
//	43      incarn.   u64  incarnation; the highest one replaces all others
//	51      version   u64  counted by the owner in its incarnation, over all buckets
//	59      bucket    u8
//	60      payload        in the format of the use; empty if the bucket is deleted
//	len-64  signature 64   over "weft records ", the name of the use, and all bytes from
//	                       offset 4 to the signature
const (
	recordFormat = 1
	recordFixed  = 4 + 1 + peer.NameLen + len(peer.Key{}) + 8 + 8 + 1
	minRecord    = recordFixed + peer.SignatureLen
	// maxRecord is the largest size of a record in bytes. It fits into a delta. A smaller
	// limit would make owners with many values need more buckets.
	maxRecord  = 40 << 10
	signDomain = "weft records "
)

// MaxPayload is the largest size of a payload in bytes.
const MaxPayload = maxRecord - minRecord

// Buckets is the number of buckets of an owner.
const Buckets = 256

// header is the start of a record. It shows whether the record is new.
type header struct {
	length      int
	format      uint8
	owner       peer.Name
	key         peer.Key
	incarnation uint64
	version     uint64
	bucket      uint8
}

// record is one bucket of one owner. Only sums and rows change it.
type record[V any] struct {
	header
	raw   []byte // the signed encoding
	value V
	cost  int    // in bytes of memory
	sum   uint64 // its contribution to the sum of its row
	row   int
	place int // in the row
}

var errShort = errors.New("truncated")

// parseHeader parses the header of the first record of b.
func parseHeader(b []byte) (h header, err error) {
	if len(b) < 4 {
		return h, fmt.Errorf("parse a record: length: %w", errShort)
	}
	h.length = int(binary.BigEndian.Uint32(b))
	if h.length < minRecord || h.length > maxRecord {
		return h, fmt.Errorf("parse a record: length: %d bytes, want %d to %d", h.length, minRecord, maxRecord)
	}
	if len(b) < h.length {
		return h, fmt.Errorf("parse a record: body: %w", errShort)
	}
	h.format = b[4]
	h.owner = peer.NameFromBytes(b[5:])
	copy(h.key[:], b[11:])
	h.incarnation = binary.BigEndian.Uint64(b[43:])
	h.version = binary.BigEndian.Uint64(b[51:])
	h.bucket = b[59]
	return h, nil
}

// payload returns the payload of an encoded record.
func payload(raw []byte) []byte { return raw[recordFixed : len(raw)-peer.SignatureLen] }

// sign makes the encoding of a record. The payload must be within its limit.
func sign(h header, payload []byte, domain string, s peer.Signer) []byte {
	b := make([]byte, 4, minRecord+len(payload))
	b = append(b, recordFormat)
	b = append(b, h.owner[:]...)
	key := s.Key()
	b = append(b, key[:]...)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.version)
	b = append(b, h.bucket)
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b, uint32(len(b)+peer.SignatureLen))
	sig := s.Sign(domain, b[4:])
	return append(b, sig[:]...)
}

// verify reports whether an encoded record is signed with the key that it names.
func verify(raw []byte, key peer.Key, domain string, v peer.Verifier) bool {
	end := len(raw) - peer.SignatureLen
	return v.Verify(key, domain, raw[4:end], peer.Signature(raw[end:]))
}

// supersedes reports whether r replaces old, which has the same owner, incarnation and
// bucket. Two records with the same version come only from a clone or a liar. Their bytes
// decide, so that all peers choose the same one.
func (r *record[V]) supersedes(old *record[V]) bool {
	return old == nil || cmp.Or(cmp.Compare(r.version, old.version), bytes.Compare(r.raw, old.raw)) > 0
}

// sumOf returns the hash of an encoded record. The signature covers all of a record, so
// hashing the signature is enough.
func sumOf(raw []byte) uint64 {
	s := sha256.Sum256(raw[len(raw)-peer.SignatureLen:])
	return binary.BigEndian.Uint64(s[:])
}

// rowOf returns the row of a bucket.
func rowOf(owner peer.Name, bucket uint8) int {
	h := fnv.New32a()
	h.Write(owner[:])
	h.Write([]byte{bucket})
	s := h.Sum32()
	return int((s ^ s>>16) % rowCount)
}
