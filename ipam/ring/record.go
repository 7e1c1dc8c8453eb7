package ring

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/mesh/peer"
)

// The records of a ring. Numbers are big-endian; a is the length of an address,
// 4 if family is 4, 16 if it is 6. Kinds are append-only; a reader skips kinds
// that it does not know.
//
//	holder, 10 bytes
//	 0       6        10
//	+-------+--------+
//	| name  | incarn |
//	+-------+--------+
//
//	grant (kind 1), 126+2a bytes
//	 0      1        2         10     20   30      30+a   30+2a  62+2a
//	+------+--------+---------+------+----+-------+------+------+-----------+
//	| kind | family | version | from | to | first | last | key  | signature |
//	+------+--------+---------+------+----+-------+------+------+-----------+
//	  1      1        8         10     10   a       a      32     64
//
//	removal (kind 2) signed by the leaving peer, 118 bytes
//	 0      1       2      12     22    54
//	+------+-------+------+------+-----+-----------+
//	| kind | proof | gone | heir | key | signature |
//	+------+-------+------+------+-----+-----------+
//	  1      1 = 0   10     10     32    64
//
//	removal (kind 2) by votes; a count is 2 bytes
//	 0      1       2      12     22    + 6 each + 10 each   + 8 each
//	+------+-------+------+------+-------+---------+-------+--------+-------+
//	| kind | proof | gone | heir | named | members | basis | ballot | votes |
//	+------+-------+------+------+-------+---------+-------+--------+-------+
//	  1      1 = 1   10     10    2+6n    2+10n     2+8n    10       2+106n
//	a vote: voter 10, key 32, signature 64
//
//	genesis (kind 3), 5+a+6n bytes
//	 0      1        2          2+a    3+a     5+a
//	+------+--------+----------+------+-------+----------
//	| kind | family | address  | bits | count | names ...
//	+------+--------+----------+------+-------+----------
//	  1      1        a          1      2       6 each, ascending
//
//	adoption (kind 4), 139 bytes
//	 0      1      17    33     43    75
//	+------+------+-----+------+-----+-----------+
//	| kind | old  | new | by   | key | signature |
//	+------+------+-----+------+-----+-----------+
//	  1      16     16    10     32    64
//
// A signature covers the id of the genesis (none in an adoption) and the record
// up to the signature. The signature of a vote covers the genesis, the ballot and
// the SHA-256 of the removal up to its ballot.
const (
	kindGrant    = 1
	kindRemoval  = 2
	kindGenesis  = 3
	kindAdoption = 4

	proofSelf  = 0
	proofVotes = 1

	holderLen = peer.NameLen + 4
	voteLen   = holderLen + len(peer.Key{}) + peer.SignatureLen

	domainGrant    = "weft ipam grant"
	domainRemoval  = "weft ipam removal"
	domainVote     = "weft ipam vote"
	domainGenesis  = "weft ipam genesis"
	domainAdoption = "weft ipam adoption"
)

// maxVersion bounds the version of a grant, so that the next one has room.
const maxVersion = 1 << 62

// maxRecord is the size limit of a record in bytes, so that it fits a delta.
const maxRecord = 44 << 10

// ErrFormat is the cause when bytes are not a record, delta or digest.
var ErrFormat = errors.New("malformed")

// ID names a record by its content: the first 16 bytes of its SHA-256.
type ID [16]byte

// String returns the first bytes of the id in hexadecimal, for people to compare.
func (id ID) String() string { return hex.EncodeToString(id[:4]) }

// IsZero reports whether id is the zero ID, which names nothing.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) less(o ID) bool { return string(id[:]) < string(o[:]) }

// short returns the part of an id that a Basis holds.
func (id ID) short() uint64 { return binary.BigEndian.Uint64(id[:]) }

func idOf(raw []byte) (id ID) {
	sum := sha256.Sum256(raw)
	copy(id[:], sum[:])
	return id
}

// Holder is one incarnation of a peer; ranges are given to it. Incarnation is the
// number of times that the name was removed from the ring before.
type Holder struct {
	Name        peer.Name
	Incarnation uint32
}

// String returns the name, with the incarnation if it is not the first.
func (h Holder) String() string {
	if h.Incarnation == 0 {
		return h.Name.String()
	}
	return fmt.Sprintf("%s (incarnation %d)", h.Name, h.Incarnation)
}

func (h Holder) less(o Holder) bool {
	if c := h.Name.Compare(o.Name); c != 0 {
		return c < 0
	}
	return h.Incarnation < o.Incarnation
}

// Compare orders holders by name, then incarnation.
func (h Holder) Compare(o Holder) int {
	switch {
	case h == o:
		return 0
	case h.less(o):
		return -1
	}
	return 1
}

// Append appends the encoded holder to b.
func (h Holder) Append(b []byte) []byte {
	b = append(b, h.Name[:]...)
	return binary.BigEndian.AppendUint32(b, h.Incarnation)
}

// Grant is the record that From gives the addresses of Range to To.
type Grant struct {
	Range    addr.Range
	Version  uint64
	From, To Holder
	Key      peer.Key
	Sig      peer.Signature

	id  ID
	raw []byte
}

// beats reports whether g rules where both g and o speak.
func (g *Grant) beats(o *Grant) bool {
	if g.Version != o.Version {
		return g.Version > o.Version
	}
	return o.id.less(g.id)
}

func (g *Grant) appendUnsigned(b []byte) []byte {
	b = append(b, kindGrant, family(g.Range.First))
	b = binary.BigEndian.AppendUint64(b, g.Version)
	b = g.From.Append(b)
	b = g.To.Append(b)
	b = append(b, g.Range.First.AsSlice()...)
	b = append(b, g.Range.Last.AsSlice()...)
	return append(b, g.Key[:]...)
}

func (g *Grant) sign(genesis ID, s peer.Signer) {
	g.Key = s.Key()
	g.raw = g.appendUnsigned(nil)
	g.Sig = s.Sign(domainGrant, append(genesis[:], g.raw...))
	g.raw = append(g.raw, g.Sig[:]...)
	g.id = idOf(g.raw)
}

// Vote is one elector's consent to a Removal.
type Vote struct {
	Voter Holder
	Key   peer.Key
	Sig   peer.Signature
}

// Removal is the record that all of Gone's space belongs to Heir.
type Removal struct {
	Gone, Heir Holder

	// Key and Sig are Gone's own, if it left by itself.
	Key peer.Key
	Sig peer.Signature

	// The rest is set if others decided. Named are the peers that the command
	// named dead, which have no vote. Members is the electorate if no owner other
	// than those named is left. Basis has the first 8 bytes of the ids of the
	// records that ruled, ascending.
	ByVotes bool
	Named   []peer.Name
	Members []Holder
	Basis   []uint64
	Ballot  paxos.Ballot
	Votes   []Vote

	id  ID
	raw []byte
}

// proposal is the record up to its ballot or key.
func (r *Removal) proposal() []byte {
	proof := byte(proofSelf)
	if r.ByVotes {
		proof = proofVotes
	}
	b := []byte{kindRemoval, proof}
	b = r.Gone.Append(b)
	b = r.Heir.Append(b)
	if !r.ByVotes {
		return b
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Named)))
	for _, n := range r.Named {
		b = append(b, n[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Members)))
	for _, m := range r.Members {
		b = m.Append(b)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Basis)))
	for _, s := range r.Basis {
		b = binary.BigEndian.AppendUint64(b, s)
	}
	return b
}

// Proposal returns the bytes that voters decide on: the removal without ballot
// and votes. ParseProposal reads them.
func (r *Removal) Proposal() []byte { return r.proposal() }

// seal encodes the record, whose fields are complete.
func (r *Removal) seal() {
	r.raw = r.proposal()
	if r.ByVotes {
		r.raw = r.Ballot.Append(r.raw)
		r.raw = binary.BigEndian.AppendUint16(r.raw, uint16(len(r.Votes)))
		for _, v := range r.Votes {
			r.raw = v.Voter.Append(r.raw)
			r.raw = append(r.raw, v.Key[:]...)
			r.raw = append(r.raw, v.Sig[:]...)
		}
	} else {
		r.raw = append(r.raw, r.Key[:]...)
		r.raw = append(r.raw, r.Sig[:]...)
	}
	r.id = idOf(r.raw)
}

func voteMessage(genesis ID, b paxos.Ballot, proposal []byte) []byte {
	sum := sha256.Sum256(proposal)
	msg := b.Append(append([]byte{}, genesis[:]...))
	return append(msg, sum[:]...)
}

// Genesis is the first division of the address range. A ring is named by it.
type Genesis struct {
	Range netip.Prefix
	Peers []peer.Name // ascending, without duplicates

	id  ID
	raw []byte
}

// NewGenesis makes the genesis that divides addrRange among peers, which may be in
// any order and repeated. Equal sets of peers make equal geneses.
func NewGenesis(addrRange netip.Prefix, peers []peer.Name) (*Genesis, error) {
	g := &Genesis{Range: addrRange.Masked(), Peers: slices.Clone(peers)}
	slices.SortFunc(g.Peers, peer.Name.Compare)
	g.Peers = slices.Compact(g.Peers)
	if len(g.Peers) == 0 {
		return nil, fmt.Errorf("make a ring over %s: no peers to divide it among", addrRange)
	}
	if !addrRange.IsValid() || addrRange.Addr().Is4In6() {
		return nil, fmt.Errorf("make a ring over %s: not a range of addresses", addrRange)
	}
	b := []byte{kindGenesis, family(g.Range.Addr())}
	b = append(b, g.Range.Addr().AsSlice()...)
	b = append(b, byte(g.Range.Bits()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.Peers)))
	for _, n := range g.Peers {
		b = append(b, n[:]...)
	}
	if len(b) > maxRecord {
		return nil, fmt.Errorf("make a ring over %s: %d peers are too many", addrRange, len(g.Peers))
	}
	g.raw = b
	g.id = idOf(append([]byte(domainGenesis), b...))
	return g, nil
}

// ID names the ring that grows from g.
func (g *Genesis) ID() ID { return g.id }

// grants returns the genesis as grants of version 0 from nobody.
func (g *Genesis) grants() []*Grant {
	var out []*Grant
	for i, r := range addr.Split(g.Range, len(g.Peers)) {
		if r.IsValid() {
			out = append(out, &Grant{Range: r, To: Holder{Name: g.Peers[i]}})
		}
	}
	return out
}

// Adoption is the record that makes the peers of ring Old take ring New instead.
// It is signed by By, which holds or held a part of Old.
type Adoption struct {
	Old, New ID
	By       Holder
	Key      peer.Key
	Sig      peer.Signature

	id  ID
	raw []byte
}

func (a *Adoption) sign(s peer.Signer) {
	a.Key = s.Key()
	b := append([]byte{kindAdoption}, a.Old[:]...)
	b = append(b, a.New[:]...)
	b = a.By.Append(b)
	b = append(b, a.Key[:]...)
	a.Sig = s.Sign(domainAdoption, b)
	a.raw = append(b, a.Sig[:]...)
	a.id = idOf(a.raw)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return 4
	}
	return 6
}
