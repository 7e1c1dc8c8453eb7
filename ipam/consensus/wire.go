package consensus

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// A message between voters; numbers are big-endian:
//
//	 0        1      9       13         14
//	+--------+------+-------+----------+----------------+-------+-------
//	| format | slot | round | proposed | proposal ...   | count | votes
//	+--------+------+-------+----------+----------------+-------+-------
//	  1 = 1    8      4       1          0 if not         1       114 each
//
//	proposal   length 4, body | valid 4 | count 1, proof 97 each | key 32 | signature 64
//	vote       step 1 | voter 1 | id 16 | key 32 | signature 64
//
// valid is 1 more than the round whose quorum of prevotes is the proof, 0 if there is
// none. The id of a vote is zero for nil. Step 1 is a prevote, 2 a precommit.
const (
	format  = 1
	voteLen = 1 + 1 + len(ring.ID{}) + len(peer.Key{}) + peer.SignatureLen

	stepPrevote   = 1
	stepPrecommit = 2

	domainProposal = "weft ipam proposal"
	domainPrevote  = "weft ipam prevote"

	maxBody = 40 << 10
)

// errFormat is the cause if bytes are not a message of a voter.
var errFormat = gossip.ErrMalformed

// vote is a signed prevote or precommit.
type vote struct {
	id  ring.ID
	key peer.Key
	sig peer.Signature
}

// proposal is the body that the proposer of a round wants.
type proposal struct {
	body  []byte
	id    ring.ID
	valid int64 // the round of proof, -1 if there is none
	proof []ring.Vote
	key   peer.Key
	sig   peer.Signature
}

func proposalMessage(r ring.ID, slot uint64, round uint32, p *proposal) []byte {
	b := ring.VoteMessage(r, slot, round, p.id)
	return binary.BigEndian.AppendUint32(b, uint32(p.valid+1))
}

// message is all that a voter knows of a round.
type message struct {
	slot  uint64
	round uint32
	prop  *proposal
	votes []stepVote
}

type stepVote struct {
	step  byte
	voter int
	vote
}

func (m *message) encode() []byte {
	b := []byte{format}
	b = binary.BigEndian.AppendUint64(b, m.slot)
	b = binary.BigEndian.AppendUint32(b, m.round)
	if p := m.prop; p == nil {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = binary.BigEndian.AppendUint32(b, uint32(len(p.body)))
		b = append(b, p.body...)
		b = binary.BigEndian.AppendUint32(b, uint32(p.valid+1))
		b = append(b, byte(len(p.proof)))
		for _, v := range p.proof {
			b = append(b, byte(v.Voter))
			b = append(b, v.Key[:]...)
			b = append(b, v.Sig[:]...)
		}
		b = append(b, p.key[:]...)
		b = append(b, p.sig[:]...)
	}
	b = append(b, byte(len(m.votes)))
	for _, v := range m.votes {
		b = append(b, v.step, byte(v.voter))
		b = append(b, v.id[:]...)
		b = append(b, v.key[:]...)
		b = append(b, v.sig[:]...)
	}
	return b
}

// fields takes fields off the front of a slice. After the first missing field it returns
// zeros and sets bad.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n < 0 || len(f.b) < n {
		f.bad = true
		return make([]byte, max(0, min(n, maxBody)))
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) uint8() int     { return int(f.take(1)[0]) }
func (f *fields) uint32() uint32 { return binary.BigEndian.Uint32(f.take(4)) }
func (f *fields) uint64() uint64 { return binary.BigEndian.Uint64(f.take(8)) }

func (f *fields) key() (k peer.Key) {
	copy(k[:], f.take(len(k)))
	return k
}

func (f *fields) sig() (s peer.Signature) {
	copy(s[:], f.take(len(s)))
	return s
}

func (f *fields) id() (id ring.ID) {
	copy(id[:], f.take(len(id)))
	return id
}

// bytes takes a length of 4 bytes and a body of that length, which it copies.
func (f *fields) bytes() []byte {
	n := f.uint32()
	if n > maxBody {
		f.bad = true
		return nil
	}
	return append([]byte(nil), f.take(int(n))...)
}

// proof takes votes in ascending order of voters.
func (f *fields) proof() (out []ring.Vote) {
	n := f.uint8()
	if n > ring.MaxVoters {
		f.bad = true
		return nil
	}
	for i := range n {
		out = append(out, ring.Vote{Voter: f.uint8(), Key: f.key(), Sig: f.sig()})
		f.bad = f.bad || i > 0 && out[i-1].Voter >= out[i].Voter
	}
	return out
}

func parse(raw []byte) (*message, error) {
	f := fields{b: raw}
	bad := f.uint8() != format
	m := &message{slot: f.uint64(), round: f.uint32()}
	switch f.uint8() {
	case 0:
	case 1:
		p := &proposal{body: f.bytes()}
		p.valid = int64(f.uint32()) - 1
		p.proof = f.proof()
		p.key, p.sig = f.key(), f.sig()
		p.id = ring.BodyID(p.body)
		m.prop = p
		bad = bad || p.valid >= int64(m.round)
	default:
		bad = true
	}
	n := f.uint8()
	bad = bad || f.bad || n > 2*ring.MaxVoters || len(f.b) != n*voteLen
	for range n {
		if bad {
			break
		}
		v := stepVote{step: f.take(1)[0], voter: f.uint8()}
		v.id, v.key, v.sig = f.id(), f.key(), f.sig()
		bad = bad || v.step != stepPrevote && v.step != stepPrecommit || v.voter >= ring.MaxVoters
		m.votes = append(m.votes, v)
	}
	if bad || f.bad {
		return nil, fmt.Errorf("message of a voter, %d bytes: %w", len(raw), errFormat)
	}
	return m, nil
}

// Describe returns a message in words, for tests and logs.
func Describe(raw []byte) (string, error) {
	m, err := parse(raw)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("slot %d, round %d:", m.slot, m.round)
	if m.prop != nil {
		text += " proposal,"
	}
	counts := make(map[byte]int)
	none := make(map[byte]int)
	for _, v := range m.votes {
		if v.id.IsZero() {
			none[v.step]++
		} else {
			counts[v.step]++
		}
	}
	return fmt.Sprintf("%s prevotes %d and %d for nil, precommits %d and %d for nil", text,
		counts[stepPrevote], none[stepPrevote], counts[stepPrecommit], none[stepPrecommit]), nil
}

// SlotOf returns the slot of a message, so that its receiver can tell whether one of the
// two is behind.
func SlotOf(raw []byte) (uint64, error) {
	if len(raw) < 9 || raw[0] != format {
		return 0, fmt.Errorf("message of a voter, %d bytes: %w", len(raw), errFormat)
	}
	return binary.BigEndian.Uint64(raw[1:]), nil
}

// The State of a Machine, as it is written to disk:
//
//	format 1 | ring 16 | slot 8 | round 4 | step 1 | locked 4, id 16 |
//	valid 4 | length 4, body | count 1, proof 97 each | count 1, own votes 114 each
//
// locked and valid are 1 more than a round, 0 if there is none.

// State returns the part of the machine that must survive a restart.
func (m *Machine) State() []byte {
	b := []byte{format}
	b = append(b, m.cfg.Ring[:]...)
	b = binary.BigEndian.AppendUint64(b, m.cfg.Slot)
	b = binary.BigEndian.AppendUint32(b, m.round)
	b = append(b, byte(m.step))
	b = binary.BigEndian.AppendUint32(b, uint32(m.locked+1))
	b = append(b, m.lockedID[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(m.valid+1))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.validBody)))
	b = append(b, m.validBody...)
	b = append(b, byte(len(m.validProof)))
	for _, v := range m.validProof {
		b = append(b, byte(v.Voter))
		b = append(b, v.Key[:]...)
		b = append(b, v.Sig[:]...)
	}
	var own []stepVote
	rs := m.rounds[m.round]
	if rs != nil {
		for _, v := range rs.all() {
			if v.voter == m.self {
				own = append(own, v)
			}
		}
	}
	b = append(b, byte(len(own)))
	for _, v := range own {
		b = append(b, v.step, byte(v.voter))
		b = append(b, v.id[:]...)
		b = append(b, v.key[:]...)
		b = append(b, v.sig[:]...)
	}
	return b
}

// restore continues with a State. A State of another ring or slot is ignored.
func (m *Machine) restore(raw []byte) error {
	f := fields{b: raw}
	if f.uint8() != format {
		f.bad = true
	}
	r, slot := f.id(), f.uint64()
	if !f.bad && (r != m.cfg.Ring || slot != m.cfg.Slot) {
		return nil
	}
	round, st := f.uint32(), step(f.uint8())
	locked, lockedID := int64(f.uint32())-1, f.id()
	valid, body := int64(f.uint32())-1, f.bytes()
	proof := f.proof()
	n := f.uint8()
	if f.bad || st > precommitting || n > 2 || len(f.b) != n*voteLen {
		return fmt.Errorf("votes of %d bytes on disk: %w", len(raw), errFormat)
	}
	m.round, m.step, m.locked, m.lockedID, m.valid, m.validBody, m.validProof = round, st, locked, lockedID, valid, body, proof
	for range n {
		v := stepVote{step: f.take(1)[0], voter: f.uint8()}
		v.id, v.key, v.sig = f.id(), f.key(), f.sig()
		if v.voter == m.self && m.self >= 0 {
			m.at(m.round).set(v)
		}
	}
	m.started = true
	return nil
}
