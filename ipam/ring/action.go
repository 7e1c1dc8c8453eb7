package ring

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

// Kind is the kind of an Action. The numbers are on the wire and on disk: append-only.
type Kind uint8

// The kinds of actions.
const (
	Transfer Kind = 1 // From gives Range to To
	Leave    Kind = 2 // From gives everything to To, which agrees
	Remove   Kind = 3 // everything of From goes to To
	Voters   Kind = 4 // the voters are Voters from the next slot on
	Ban      Kind = 5 // as Remove; From has no vote and may own nothing from now on
	Unban    Kind = 6 // From may own again
	Adopt    Kind = 7 // all peers leave this ring for that of Genesis
	Snapshot Kind = 8 // the state before this decision is Parts
)

// String returns the kind as users read it.
func (k Kind) String() string {
	names := []string{"", "transfer", "leave", "removal", "change of the voters", "ban", "unban", "adoption", "snapshot"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("action %d", uint8(k))
}

// Action is one change of a ring. Numbers are big-endian; a is the length of an address.
//
//	transfer   kind 1 | family 1 | first a | last a | as of 8 | from 22 | to 22 | key 32 | signature 64
//	leave      kind 1 | as of 8 | from 22 | to 22 | key 32 | signature 64 | key 32 | signature 64
//	remove     kind 1 | from 22 | to 22
//	voters     kind 1 | count 2 | holder 22 each, ascending
//	ban        kind 1 | from 22 | to 22
//	unban      kind 1 | from 22
//	adopt      kind 1 | genesis
//	snapshot   kind 1 | count 2 | id 16 each
//
// A signature covers the id of the ring and the action up to its first key. "As of" is
// the latest slot that the signer knew: the action moves only ranges that did not change
// since, so it cannot be repeated. One of a slot that is not decided yet has no effect.
type Action struct {
	Kind     Kind
	Range    addr.Range
	AsOf     uint64
	From, To Holder
	Key      peer.Key // of From
	Sig      peer.Signature
	HeirKey  peer.Key // of To
	HeirSig  peer.Signature
	Voters   []Holder
	Genesis  *Genesis
	Parts    []ID

	raw []byte
}

const domainAction = "weft ipam action"

// maxParts bounds the parts of a snapshot: 3 MB.
const maxParts = 64

// unsigned returns the encoding up to the first key.
func (a *Action) unsigned() []byte {
	b := []byte{byte(a.Kind)}
	switch a.Kind {
	case Transfer:
		b = append(b, family(a.Range.First))
		b = append(b, a.Range.First.AsSlice()...)
		b = append(b, a.Range.Last.AsSlice()...)
		b = binary.BigEndian.AppendUint64(b, a.AsOf)
		return a.To.Append(a.From.Append(b))
	case Leave:
		b = binary.BigEndian.AppendUint64(b, a.AsOf)
		return a.To.Append(a.From.Append(b))
	case Remove, Ban:
		return a.To.Append(a.From.Append(b))
	case Unban:
		return a.From.Append(b)
	case Voters:
		b = binary.BigEndian.AppendUint16(b, uint16(len(a.Voters)))
		for _, h := range a.Voters {
			b = h.Append(b)
		}
	case Adopt:
		b = append(b, a.Genesis.raw...)
	case Snapshot:
		b = binary.BigEndian.AppendUint16(b, uint16(len(a.Parts)))
		for _, id := range a.Parts {
			b = append(b, id[:]...)
		}
	}
	return b
}

// Encode returns the encoded action. The slice is read-only.
func (a *Action) Encode() []byte {
	if a.raw == nil {
		b := a.unsigned()
		if a.Kind == Transfer || a.Kind == Leave {
			b = append(b, a.Key[:]...)
			b = append(b, a.Sig[:]...)
		}
		if a.Kind == Leave {
			b = append(b, a.HeirKey[:]...)
			b = append(b, a.HeirSig[:]...)
		}
		a.raw = b
	}
	return a.raw
}

// SignedID names what From has signed: actions that differ in other signatures only have one.
func (a *Action) SignedID() ID { return idOf(domainAction, a.unsigned()) }

func (a *Action) message(ring ID) []byte { return append(ring[:], a.unsigned()...) }

// sign signs a for From.
func (a *Action) sign(ring ID, s peer.Signer) {
	a.Key = s.Key()
	a.Sig = s.Sign(domainAction, a.message(ring))
	a.raw = nil
}

// signAsHeir signs a for To.
func (a *Action) signAsHeir(ring ID, s peer.Signer) {
	a.HeirKey = s.Key()
	a.HeirSig = s.Sign(domainAction, a.message(ring))
	a.raw = nil
}

// ParseAction parses the bytes that Encode returned. The action shares no memory with
// raw.
func ParseAction(raw []byte) (*Action, error) {
	if len(raw) == 0 {
		return nil, malformed("action", raw)
	}
	a := &Action{Kind: Kind(raw[0]), raw: slices.Clone(raw)}
	r := reader{b: raw[1:]}
	switch a.Kind {
	case Transfer:
		f := r.family()
		a.Range = addr.Range{First: r.address(f), Last: r.address(f)}
		a.AsOf, a.From, a.To = r.uint64(), r.holder(), r.holder()
		a.Key, a.Sig = r.key(), r.sig()
		r.bad = r.bad || !a.Range.IsValid()
	case Leave:
		a.AsOf, a.From, a.To = r.uint64(), r.holder(), r.holder()
		a.Key, a.Sig, a.HeirKey, a.HeirSig = r.key(), r.sig(), r.key(), r.sig()
	case Remove, Ban:
		a.From, a.To = r.holder(), r.holder()
	case Unban:
		a.From = r.holder()
	case Voters:
		for range r.counted(holderLen) {
			a.Voters = append(a.Voters, r.holder())
		}
		r.bad = r.bad || len(a.Voters) == 0 || len(a.Voters) > MaxVoters || !ascending(a.Voters, Holder.Compare)
	case Adopt:
		g, err := ParseGenesis(r.b)
		if err != nil {
			return nil, err
		}
		a.Genesis, r.b = g, nil
	case Snapshot:
		for range r.counted(len(ID{})) {
			a.Parts = append(a.Parts, r.id())
		}
		r.bad = r.bad || len(a.Parts) == 0 || len(a.Parts) > maxParts
	default:
		r.bad = true
	}
	if !r.end() || (a.Kind == Leave || a.Kind == Remove || a.Kind == Ban) && a.From == a.To {
		return nil, malformed(a.Kind.String(), raw)
	}
	return a, nil
}

// Check returns an error if the action has no effect on the present state of the ring,
// or if those who must sign it did not. It says nothing about whether a voter should
// agree to it.
func (r *Ring) Check(a *Action) error {
	if err := r.CheckEffect(a); err != nil {
		return err
	}
	return r.checkSignatures(a)
}

// CheckEffect returns an error if the action has no effect on the present state of the
// ring. It checks no signature, so it is for actions that Check accepted before.
func (r *Ring) CheckEffect(a *Action) error {
	if r.st == nil {
		return fmt.Errorf("%s: there is no ring: %w", a.Kind, ErrState)
	}
	by, _ := r.Ranges()
	if err := r.st.check(a, func(h Holder) bool { return by[h] > 0 }); err != nil {
		return fmt.Errorf("%s: %w", a.Kind, err)
	}
	return nil
}

func (r *Ring) checkSignatures(a *Action) error {
	if a.Kind == Adopt {
		return a.Genesis.check(r.verifier, r.keys)
	}
	if a.Kind != Transfer && a.Kind != Leave {
		return nil
	}
	msg := a.message(r.st.genesis.id)
	check := func(h Holder, k peer.Key, s peer.Signature) error {
		if err := h.signedBy(k, r.keys); err != nil {
			return fmt.Errorf("%s: %w", a.Kind, err)
		}
		if !r.verifier.Verify(k, domainAction, msg, s) {
			return fmt.Errorf("%s by %s: %w", a.Kind, h, ErrSignature)
		}
		return nil
	}
	if err := check(a.From, a.Key, a.Sig); err != nil || a.Kind == Transfer {
		return err
	}
	return check(a.To, a.HeirKey, a.HeirSig)
}

// check returns an error if a would not change the state. owns reports whether a peer owns
// anything: st.ownsAny, or a faster way to find out.
func (st *state) check(a *Action, owns func(Holder) bool) error {
	no := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrState)
	}
	if st.next != nil {
		return no("ring %s was left for ring %s", st.genesis.id, st.next.id)
	}
	switch a.Kind {
	case Transfer, Leave, Remove, Ban:
		if st.banned[a.To] {
			return no("%s is banned", a.To)
		}
	}
	if (a.Kind == Transfer || a.Kind == Leave) && a.AsOf > st.slot {
		return no("it is signed as of slot %d, after slot %d", a.AsOf, st.slot)
	}
	switch a.Kind {
	case Transfer:
		switch {
		case !st.whole.Covers(a.Range):
			return fmt.Errorf("%s: %w %s", a.Range, ErrRange, st.whole)
		case a.AsOf < st.departed[a.To]:
			return no("%s left in slot %d, after slot %d", a.To, st.departed[a.To], a.AsOf)
		case len(st.pieces) >= MaxRanges && st.cuts(a.Range, a.To) > 0:
			return no("the ring has %d ranges, which is the limit", len(st.pieces))
		}
		for i := st.at(a.Range.First); i < len(st.pieces) && !a.Range.Last.Less(st.pieces[i].first); i++ {
			switch p := st.pieces[i]; {
			case p.holder != a.From:
				return no("%s is owned by %s, not by %s", p.first, p.holder, a.From)
			case p.since > a.AsOf:
				return no("%s changed in slot %d, after slot %d", p.first, p.since, a.AsOf)
			}
		}
	case Leave, Remove:
		has := a.Kind == Leave && st.ownsAsOf(a.From, a.AsOf) || a.Kind == Remove && owns(a.From)
		if !has && !slices.Contains(st.voters, a.From) {
			return no("%s owns nothing and has no vote", a.From)
		}
	case Ban:
		if st.banned[a.From] {
			return no("%s is banned already", a.From)
		}
		if len(st.banned) >= maxBanned {
			return no("%d peers are banned, which is the limit", maxBanned)
		}
	case Unban:
		if !st.banned[a.From] {
			return no("%s is not banned", a.From)
		}
	case Voters:
		if slices.Equal(a.Voters, st.voters) {
			return no("these are the voters")
		}
		for _, h := range a.Voters {
			switch {
			case st.banned[h]:
				return no("%s is banned", h)
			case !slices.Contains(st.voters, h) && !owns(h):
				// It may have just left, or follow another ring.
				return no("%s owns nothing", h)
			}
		}
	case Adopt:
		if a.Genesis.id == st.genesis.id || a.Genesis.Range != st.genesis.Range {
			return no("ring %s is this ring or divides another range", a.Genesis.id)
		}
	case Snapshot:
		if !slices.Equal(a.Parts, st.partIDs()) {
			return no("it is not the state before slot %d", st.slot+1)
		}
	}
	return nil
}

// takesAll reports whether a moves all ranges of a peer.
func (a *Action) takesAll() bool { return a.Kind == Leave || a.Kind == Remove || a.Kind == Ban }

// alone reports whether an action must be the only one of its decision. A change of the
// voters is kept after a snapshot, so it must be small, and a snapshot is the state before
// its decision.
func (st *state) alone(a *Action) bool {
	switch a.Kind {
	case Voters, Snapshot, Adopt:
		return true
	}
	return a.takesAll() && slices.Contains(st.voters, a.From)
}
