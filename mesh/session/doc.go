// Package session makes the encrypted control connection between two peers:
// a handshake over any net.Conn, then records in both directions.
//
// # Handshake
//
// The dialler starts; all numbers are big-endian.
//
//	dialler   -> preamble    "WEFT" | min u8 | max u8 | ciphers u8 | 0
//	responder -> preamble    the same for the responder
//	dialler   -> message 1   length u16 | Noise message 1 (e) | proof 16
//	responder -> message 2   length u16 | Noise message 2 (e, ee, s, es, hello)
//	dialler   -> message 3   length u16 | Noise message 3 (s, se, psk, hello)
//	both      -> verdict     a record: 0 | code u8 | seed 32 | proof: length u8, bytes | reason UTF-8
//
// The protocol version is the highest one that both speak. The cipher is AES-GCM if both
// have it in hardware, else ChaCha20-Poly1305. Both preambles are the prologue, so a
// downgrade is detected. The handshake is Noise_XXpsk3_25519_*_SHA256 (The Noise Protocol
// Framework, revision 34).
//
// The proof is the first 16 bytes of HMAC-SHA256 under a key derived from the pre-shared
// key, over the prologue and Noise message 1. From it the responder learns which of its
// accepted passwords the dialler uses, before it spends a Diffie-Hellman operation. It
// does not help an attacker: a guess at a password costs one run of Argon2id in any case.
//
// In place of messages 1 to 3 either side may send a refusal. It is in clear text and
// unauthenticated, so it is used only for error messages:
//
//	0xffff | code u8 | length u8 | reason UTF-8
//
// A hello describes the peer; see Hello. Its signature binds the X25519 key of the
// handshake to the peer's Ed25519 key. Each side checks the other's hello and sends a
// verdict. The session is established if both verdicts are positive, so both sides know
// the reason of a refusal. The proof shows the far end that what the code says is true; see
// Refusal.
//
// # Records
//
//	length u16 | ciphertext, tag of 16 bytes included
//
// The nonce is the implicit counter of the Noise transport. A record carries at most
// MaxRecord bytes.
package session

const (
	magic       = "WEFT"
	preambleLen = 8
	cipherAES   = 1 << 0

	proofLen   = 16
	refusalTag = 0xffff

	// MaxRecord is the size limit of a record, in bytes.
	MaxRecord = 65535 - 1 - 16
)

// Versions of the protocol that this program speaks.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)
