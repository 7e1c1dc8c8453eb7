package peer

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"io"
)

// Key is a peer's public signing key.
type Key [ed25519.PublicKeySize]byte

// SignatureLen is the length of a signature in bytes.
const SignatureLen = ed25519.SignatureSize

// Signature is made by Signer.Sign.
type Signature [SignatureLen]byte

// Signer signs messages of a peer. The domain separates the kinds of message, so that a
// signature of one kind is not valid for another.
type Signer interface {
	Key() Key
	Sign(domain string, msg []byte) Signature
}

// Verifier checks signatures of a Signer.
type Verifier interface {
	Verify(key Key, domain string, msg []byte, sig Signature) bool
}

// Identity is the name of this peer, and the key that proves it.
type Identity struct {
	Name Name
	priv ed25519.PrivateKey
}

// NewIdentity makes an identity from 32 bytes of random.
func NewIdentity(random io.Reader) (*Identity, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return nil, fmt.Errorf("make an identity: read %d random bytes: %w", len(seed), err)
	}
	return IdentityFromSeed(seed)
}

// IdentityFromSeed rebuilds an identity from the bytes that Seed returned.
func IdentityFromSeed(seed []byte) (*Identity, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("identity: seed of %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	priv := ed25519.NewKeyFromSeed(seed)
	id := &Identity{priv: priv}
	id.Name = IDOf(id.Key()).Name()
	return id, nil
}

// Seed returns the secret from which IdentityFromSeed rebuilds the identity.
// The Name is not part of it, as it may have been overridden.
func (id *Identity) Seed() []byte { return id.priv.Seed() }

// Key returns the public key.
func (id *Identity) Key() (k Key) {
	copy(k[:], id.priv.Public().(ed25519.PublicKey))
	return k
}

// Sign implements Signer with Ed25519 over SHA-256(domain) || msg.
func (id *Identity) Sign(domain string, msg []byte) (s Signature) {
	copy(s[:], ed25519.Sign(id.priv, signed(domain, msg)))
	return s
}

// Ed25519 is the Verifier for signatures of an Identity.
type Ed25519 struct{}

// Verify implements Verifier.
func (Ed25519) Verify(key Key, domain string, msg []byte, sig Signature) bool {
	return ed25519.Verify(key[:], signed(domain, msg), sig[:])
}

func signed(domain string, msg []byte) []byte {
	d := sha256.Sum256([]byte(domain))
	return append(d[:], msg...)
}

// Cheap is a Signer and Verifier for large simulations. Its signatures are not secure.
type Cheap struct{ ID Key }

// Key implements Signer.
func (c Cheap) Key() Key { return c.ID }

// Sign implements Signer with a hash that costs a few nanoseconds per byte.
func (c Cheap) Sign(domain string, msg []byte) (s Signature) {
	h := uint64(14695981039346656037)
	mix := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for _, b := range c.ID {
		mix(b)
	}
	for i := range len(domain) {
		mix(domain[i])
	}
	for _, b := range msg {
		mix(b)
	}
	for i := range 8 {
		s[i] = byte(h >> (8 * i))
	}
	return s
}

// Verify implements Verifier.
func (Cheap) Verify(key Key, domain string, msg []byte, sig Signature) bool {
	return Cheap{key}.Sign(domain, msg) == sig
}
