package peer

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Key is a peer's public signing key. It is comparable, so that it can be
// part of a replicated record.
type Key [ed25519.PublicKeySize]byte

// SignatureLen is the length of a signature in bytes.
const SignatureLen = ed25519.SignatureSize

// Signature is made by Signer.Sign.
type Signature [SignatureLen]byte

// Signer signs what a peer says of itself. Domain separates the kinds of
// message, so that a signature made for one cannot be shown as another.
type Signer interface {
	Key() Key
	Sign(domain string, msg []byte) Signature
}

// Verifier checks what a Signer signed.
type Verifier interface {
	Verify(key Key, domain string, msg []byte, sig Signature) bool
}

// Identity is this peer: the name it goes by and the key that proves it.
type Identity struct {
	Name Name
	priv ed25519.PrivateKey
}

// NewIdentity makes a fresh identity from 32 bytes of random.
func NewIdentity(random io.Reader) (*Identity, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return nil, fmt.Errorf("make an identity: read %d random bytes: %w", len(seed), err)
	}
	return IdentityFromSeed(seed)
}

// IdentityFromSeed rebuilds an identity from what Seed returned.
func IdentityFromSeed(seed []byte) (*Identity, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("identity: seed of %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	priv := ed25519.NewKeyFromSeed(seed)
	return &Identity{Name: NameOf(priv.Public().(ed25519.PublicKey)), priv: priv}, nil
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

// Ed25519 is the Verifier of what an Identity signed.
type Ed25519 struct{}

// Verify implements Verifier.
func (Ed25519) Verify(key Key, domain string, msg []byte, sig Signature) bool {
	return ed25519.Verify(key[:], signed(domain, msg), sig[:])
}

func signed(domain string, msg []byte) []byte {
	d := sha256.Sum256([]byte(domain))
	return append(d[:], msg...)
}

// Cheap is a Signer and Verifier for large simulations: it tells a forged
// message from a true one only as long as nobody tries.
type Cheap struct{ ID Key }

// Key implements Signer.
func (c Cheap) Key() Key { return c.ID }

// Sign implements Signer with a sum that costs a few nanoseconds a byte.
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

// ErrNameTaken is the cause when a name is shown with another key than the
// one it was first seen with.
var ErrNameTaken = errors.New("the name belongs to another key")

// Book records the key that each name was first seen with. It is not safe for
// concurrent use.
type Book struct{ keys map[Name]Key }

// Bind records that name goes with key, or tells why it cannot: the name was
// first seen with another key.
func (b *Book) Bind(name Name, key Key) error {
	if err := b.Check(name, key); err != nil {
		return err
	}
	if b.keys == nil {
		b.keys = make(map[Name]Key)
	}
	b.keys[name] = key
	return nil
}

// Check tells what Bind would, and records nothing.
func (b *Book) Check(name Name, key Key) error {
	if old, ok := b.keys[name]; ok && old != key {
		return fmt.Errorf("peer %s shows key %s, first seen with %s: %w",
			name, fingerprint(key), fingerprint(old), ErrNameTaken)
	}
	return nil
}

// Lookup returns the key that name was first seen with.
func (b *Book) Lookup(name Name) (Key, bool) {
	k, ok := b.keys[name]
	return k, ok
}

// Forget drops the record of name, so that a peer that lost its disk may take
// its old name again once the mesh has let the old one go.
func (b *Book) Forget(name Name) { delete(b.keys, name) }

func fingerprint(k Key) string { return hex.EncodeToString(k[:4]) }
