package mesh

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// Two routers have one identity, a name and a key, if a state folder was copied. One that dials
// the other finds out by itself, as the other proves the key in the handshake. Often both dial
// a third peer instead, and it refuses the second. Its word is not enough, because a peer that
// lies could keep a host with an old state file from giving addresses. So it asks the first
// router for a proof, and sends that with the refusal:
//
//	first router          third peer           second router
//	                                 <-------- handshake
//	          <-------- cloneAsk
//	cloneProof -------->
//	                                 --------> refusal, session.CodeIdentity, with the proof
//
//	recCloneAsk:    channel binding 32, of the handshake that the third peer refuses
//	recCloneProof:  instance u64 | signature 64, over both of them
//
// Only a router that has the key and lives during the handshake can make the proof. The
// instance shows that it is not the second router itself, asked through another session.

const (
	cloneDomain   = "weft identity in use"
	cloneProofLen = 8 + peer.SignatureLen
	// cloneTimeout is how long a refusal waits for its proof. It is shorter than a handshake.
	cloneTimeout = session.Timeout / 4
	// cloneTTL is how long a proof counts: dials are repeated every 6 minutes at least.
	cloneTTL = 10 * time.Minute
	// A neighbour may ask for clonesPerSecond signatures a second, with a burst of clonesBurst.
	clonesPerSecond = 1
	clonesBurst     = 10
)

// cloneAsk is a proof that a neighbour was asked for.
type cloneAsk struct {
	proof chan []byte // takes one
}

// Collides reports whether another live router has lately proved that it has the identity of
// this one, which is its name and its key.
func (m *Mesh) Collides() bool {
	at := m.collided.Load()
	return at != nil && time.Since(*at) < cloneTTL
}

func (m *Mesh) noteCollision() {
	now := time.Now()
	m.collided.Store(&now)
}

// proveClone asks a neighbour to prove to the far end of a handshake, which has the neighbour's
// identity, that it lives. It returns nil if no proof comes in time, or if there is another
// question to the neighbour. A wrong proof harms nobody: the far end checks it.
func (m *Mesh) proveClone(n *neighbour, binding session.Binding) []byte {
	ask := &cloneAsk{make(chan []byte, 1)}
	if !n.cloneAsk.CompareAndSwap(nil, ask) {
		return nil
	}
	defer n.cloneAsk.Store(nil)
	if n.push(append([]byte{recCloneAsk}, binding[:]...)) != nil {
		return nil
	}
	timeout := time.NewTimer(cloneTimeout)
	defer timeout.Stop()
	select {
	case p := <-ask.proof:
		return p
	case <-timeout.C:
	case <-n.done:
	}
	return nil
}

// answerCloneAsk sends a neighbour a proof that this router lives.
func (m *Mesh) answerCloneAsk(n *neighbour, binding []byte) error {
	if len(binding) != len(session.Binding{}) {
		return errShortMessage
	}
	if !n.cloneAsks.Allow() {
		return nil
	}
	proof := binary.BigEndian.AppendUint64([]byte{recCloneProof}, m.instance)
	sig := m.cfg.Identity.Sign(cloneDomain, signedClone(session.Binding(binding), m.instance))
	_ = n.push(append(proof, sig[:]...)) // without it the refusal has no proof
	return nil
}

// receiveCloneProof hands a proof to the handshake that waits for it.
func (n *neighbour) receiveCloneProof(proof []byte) error {
	if len(proof) != cloneProofLen {
		return errShortMessage
	}
	if ask := n.cloneAsk.Load(); ask != nil {
		select {
		case ask.proof <- bytes.Clone(proof):
		default:
		}
	}
	return nil
}

// isCloneProof reports whether a refusal proves that another live router has this peer's
// identity.
func (m *Mesh) isCloneProof(r *session.Refusal) bool {
	if r.Code != session.CodeIdentity || len(r.Proof) != cloneProofLen {
		return false
	}
	instance := binary.BigEndian.Uint64(r.Proof)
	return instance != m.instance &&
		peer.Ed25519{}.Verify(m.cfg.Identity.Key(), cloneDomain, signedClone(r.Binding, instance), peer.Signature(r.Proof[8:]))
}

func signedClone(b session.Binding, instance uint64) []byte {
	return binary.BigEndian.AppendUint64(b[:], instance)
}
