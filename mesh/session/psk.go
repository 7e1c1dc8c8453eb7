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

// proof authenticates Noise message 1; see the package comment.
func (k *PSK) proof(prologue, msg1 []byte) []byte {
	kd := hmac.New(sha256.New, k[:])
	kd.Write([]byte("weft session proof"))
	h := hmac.New(sha256.New, kd.Sum(nil))
	h.Write(prologue)
	h.Write(msg1)
	return h.Sum(nil)[:proofLen]
}
