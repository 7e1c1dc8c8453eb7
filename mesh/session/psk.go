package session

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"runtime/debug"

	"golang.org/x/crypto/argon2"
)

// MinPassword is the least length of a password, in bytes.
const MinPassword = 8

// PSK is a pre-shared key, which both ends of a session must know. It is derived from a
// password. A mesh without a password uses the zero PSK.
type PSK [32]byte

// Parameters of Argon2id (RFC 9106, section 4, second recommended option). They cost about
// 0.1 s and 64 MiB at launch, and the same for each guess of an attacker.
const (
	argonPasses = 3
	argonKiB    = 64 << 10
	argonLanes  = 4
)

// DerivePSK derives the key of a password. The salt is constant, because all peers must
// derive the same key without talking to each other.
func DerivePSK(password string) (PSK, error) {
	if len(password) < MinPassword {
		return PSK{}, errors.New("password: shorter than 8 bytes")
	}
	// Otherwise the process would keep the 64 MiB for minutes.
	defer debug.FreeOSMemory()
	return PSK(argon2.IDKey([]byte(password), []byte("weft session psk v1"), argonPasses, argonKiB, argonLanes, 32)), nil
}

// ID names a password without revealing it: a guess costs one run of Argon2id.
type ID [8]byte

// ID returns the id of the password from which k is derived.
func (k *PSK) ID() ID { return ID(k.mac("weft password id")) }

// mac returns the HMAC-SHA256 of parts under a key that is derived from k for one purpose.
func (k *PSK) mac(purpose string, parts ...[]byte) []byte {
	kd := hmac.New(sha256.New, k[:])
	kd.Write([]byte(purpose))
	h := hmac.New(sha256.New, kd.Sum(nil))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// proof authenticates Noise message 1; see the package comment.
func (k *PSK) proof(prologue, msg1 []byte) []byte {
	return k.mac("weft session proof", prologue, msg1)[:proofLen]
}

// LaterProofLen is the length of a proof that Conn.LaterProof returns, in bytes.
const LaterProofLen = 16

// LaterProof returns the proof that one end of a session knows a password that it did not
// use in the handshake: this end, or with far the other one. It holds for this session only,
// and for one end only.
func (c *Conn) LaterProof(k *PSK, far bool) []byte {
	end := []byte{0}
	if c.Dialled != far {
		end[0] = 1 // the dialler's
	}
	return k.mac("weft session later proof", end, c.Secret[:])[:LaterProofLen]
}
