package mesh

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/session"
)

// The passwords of a mesh can change while sessions live (package mesh/rotation decides when).
// A session shows that its far end knows the password of the handshake. When others are
// accepted, too, each end proves that it knows them, so that the session can stay when the
// password of the handshake is accepted no more:
//
//	recProofs:  1 to MaxPasswords of: proof 16 (session.Conn.LaterProof)
//
// The newest of these records counts. It may have proofs of passwords that the receiver learns
// later.

// MaxPasswords is how many passwords a peer can accept at once.
const MaxPasswords = 16

// proofGrace is how long after a change of the passwords a session may be without a proof. It
// is for proofs that are on the way.
const proofGrace = 5 * time.Second

// passwords are the keys of the passwords that this peer accepts, the one that it offers first.
// It is immutable.
type passwords struct {
	accept  []session.PSK // not empty
	changed time.Time
}

// SetPasswords replaces the passwords of which this peer accepts the keys. It offers the first
// one when it dials. Sessions whose far end does not prove one of them within five seconds end.
// There must be at least one, and at most MaxPasswords.
func (m *Mesh) SetPasswords(keys []session.PSK) error {
	if len(keys) == 0 || len(keys) > MaxPasswords {
		return fmt.Errorf("set the passwords of the mesh: %d of them, want 1 to %d", len(keys), MaxPasswords)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passwords.Store(&passwords{accept: slices.Clone(keys), changed: time.Now()})
	for _, n := range *m.neighbours.Load() {
		m.sendProofs(n)
	}
	return nil
}

// handshakeConfig returns the configuration of the next handshake.
func (m *Mesh) handshakeConfig() session.Config {
	hs, p := m.hs, m.passwords.Load()
	hs.Offer, hs.Accept = p.accept[0], p.accept
	return hs
}

// sendProofs sends a neighbour the proofs of the passwords that this peer accepts, unless the
// handshake was the proof of all. It is called with mu held.
func (m *Mesh) sendProofs(n *neighbour) {
	accept := m.passwords.Load().accept
	if len(accept) == 1 && accept[0] == n.Password {
		return
	}
	rec := []byte{recProofs}
	for i := range accept {
		rec = append(rec, n.LaterProof(&accept[i], false)...)
	}
	_ = n.push(rec) // if the queue is full, the session does not outlive its password
}

// receiveProofs keeps the proofs of the far end.
func (n *neighbour) receiveProofs(body []byte) error {
	if len(body) == 0 || len(body)%session.LaterProofLen != 0 || len(body) > MaxPasswords*session.LaterProofLen {
		return fmt.Errorf("proofs of %d bytes: %w", len(body), errShortMessage)
	}
	kept := slices.Clone(body)
	n.proofs.Store(&kept)
	return nil
}

// proved reports whether the far end proved that it knows one of the passwords.
func (n *neighbour) proved(p *passwords) bool {
	if slices.Contains(p.accept, n.Password) {
		return true
	}
	proofs := n.proofs.Load()
	if proofs == nil {
		return false
	}
	for i := range p.accept {
		want := n.LaterProof(&p.accept[i], true)
		for got := range slices.Chunk(*proofs, session.LaterProofLen) {
			if hmac.Equal(got, want) {
				return true
			}
		}
	}
	return false
}

var errUnproved = errors.New("the password changed, and the peer does not know the new one")

// endUnproved ends the sessions whose far ends know none of the passwords. It is called with
// mu held.
func (m *Mesh) endUnproved(now time.Time) {
	p := m.passwords.Load()
	if now.Sub(p.changed) < proofGrace {
		return
	}
	for _, n := range *m.neighbours.Load() {
		if now.Sub(n.since) >= proofGrace && !n.proved(p) {
			m.dismiss(n, session.CodePassword, errUnproved)
		}
	}
}
