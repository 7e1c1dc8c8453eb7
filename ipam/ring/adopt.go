package ring

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// maxAdoptions bounds how many adoptions a copy keeps. A mesh that needs more has
// another problem.
const maxAdoptions = 64

// Adopt signs the adoption of ring other by all peers of this copy's ring, and
// merges it. From then on the copy waits for other.
func (r *Ring) Adopt(s peer.Signer, self peer.Name, other ID) (Outcome, error) {
	if r.st == nil {
		return Outcome{}, fmt.Errorf("adopt ring %s: this peer has no ring to leave", other)
	}
	old := r.st.genesis.id
	if other == old || other.IsZero() {
		return Outcome{}, fmt.Errorf("adopt ring %s: it is the ring of this peer", other)
	}
	a := &Adoption{Old: old, New: other, By: r.st.current(self)}
	a.sign(s)
	out, err := r.Merge(appendRecord(newDelta(ID{}), a.raw))
	if err == nil && r.st != nil && r.st.genesis.id == old {
		err = fmt.Errorf("adopt ring %s: an adoption in the opposite direction is known, and ring %s stays", other, old)
	}
	return out, err
}

// adoptionDelta returns all adoptions.
func (r *Ring) adoptionDelta() []byte {
	d := newDelta(ID{})
	for _, a := range r.adoptions {
		d = appendRecord(d, a.raw)
	}
	return d
}

// resolve follows the adoptions from ring id. Of several it follows the one to the
// lowest id; a circle resolves to its lowest id.
func (r *Ring) resolve(id ID) ID {
	var path []ID
	for {
		if at := slices.Index(path, id); at >= 0 {
			lowest := path[at]
			for _, p := range path[at:] {
				if p.less(lowest) {
					lowest = p
				}
			}
			return lowest
		}
		path = append(path, id)
		var next ID
		for _, a := range r.adoptions {
			if a.Old == id && (next.IsZero() || a.New.less(next)) {
				next = a.New
			}
		}
		if next.IsZero() {
			return id
		}
		id = next
	}
}

var errTooMany = errors.New("too many adoptions are known")

// adopt accepts adoptions and changes to the ring that they lead to.
func (m *merge) adopt() {
	r := m.ring
	for _, a := range m.adoptions {
		if err := r.checkAdoption(a); err != nil {
			m.refuse(&RefusedError{What: "adoption", By: a.By, Cause: err})
			continue
		}
		a.raw = bytes.Clone(a.raw)
		r.adoptions[a.id] = a
		m.accept(a.id, a.raw)
		r.epoch++
	}
	if r.origin.IsZero() {
		return
	}
	target := r.resolve(r.origin)
	if r.st != nil && r.st.genesis.id != target {
		r.epoch += r.st.epoch + 1
		r.abandoned[r.st.genesis.id] = r.st
		r.st = nil
	}
	if r.st == nil && r.abandoned[target] != nil {
		r.st = r.abandoned[target]
		delete(r.abandoned, target)
		r.epoch++
	}
}

// checkAdoption returns an error if a cannot be accepted. If this copy does not
// know the ring Old, it cannot check the author, and does not have to.
func (r *Ring) checkAdoption(a *Adoption) error {
	if len(r.adoptions) >= maxAdoptions {
		return fmt.Errorf("%w: %d", errTooMany, maxAdoptions)
	}
	st := r.abandoned[a.Old]
	if r.st != nil && r.st.genesis.id == a.Old {
		st = r.st
	}
	if st != nil {
		if err := st.checkKey(a.By, a.Key); err != nil {
			return err
		}
		if len(st.wasGiven(st.whole, a.By, 0)) == 0 {
			return ErrAuthority
		}
	}
	if !r.verifier.Verify(a.Key, domainAdoption, a.raw[:len(a.raw)-peer.SignatureLen], a.Sig) {
		return ErrSignature
	}
	return nil
}
