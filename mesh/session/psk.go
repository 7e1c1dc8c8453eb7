package session

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"runtime/debug"

	"golang.org/x/crypto/argon2"
)

// MinPassword is the length in bytes below which a password is refused.
const MinPassword = 8

// PSK is what both ends of a session must know: 32 bytes derived from a
// password. The zero PSK is that of a mesh without a password.
type PSK [32]byte

// Parameters of Argon2id (RFC 9106, section 4, second recommended option):
// about a tenth of a second and 64 MiB at launch, and the same for each guess.
const (
	argonPasses = 3
	argonKiB    = 64 << 10
	argonLanes  = 4
)

// DerivePSK stretches a password. The salt is a constant, as all peers must
// come to the same key without having talked.
func DerivePSK(password string) (PSK, error) {
	if len(password) < MinPassword {
		return PSK{}, errors.New("password: shorter than 8 bytes")
	}
	// What was needed once would else stay with the process for minutes.
	defer debug.FreeOSMemory()
	return PSK(argon2.IDKey([]byte(password), []byte("weft session psk v1"), argonPasses, argonKiB, argonLanes, 32)), nil
}

// proof authenticates Noise message 1, see the package comment.
func (k *PSK) proof(prologue, msg1 []byte) []byte {
	kd := hmac.New(sha256.New, k[:])
	kd.Write([]byte("weft session proof"))
	h := hmac.New(sha256.New, kd.Sum(nil))
	h.Write(prologue)
	h.Write(msg1)
	return h.Sum(nil)[:proofLen]
}
