package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	helloFormat  = 1
	helloFixed   = 1 + peer.NameLen + len(peer.Key{}) + peer.SignatureLen + 8 + 8 + 2 + 1 + 18
	maxNickname  = 128
	signDomain   = "weft session static key"
	staticKeyLen = 32
)

// Binding is the channel binding of a handshake (The Noise Protocol Framework, revision 34,
// section 11.2): both ends know it, and neither can choose it.
type Binding [32]byte

// Hello describes a peer in the handshake.
//
//	format u8 | name 6 | key 32 | signature 64 | instance u64 | clock u64 | port u16 |
//	flags u8 | seen: IP 16, port u16 | nickname: length u8, UTF-8 | fields of later versions
//
// The clock is that of the sender, in microseconds since 1970. The signature is made with key over the X25519 key of the handshake. IPv4 addresses are
// in IPv6-mapped form.
type Hello struct {
	Name     peer.Name
	Key      peer.Key
	Instance uint64 // drawn at random at each launch
	Clock    time.Time
	// Port is the number of the TCP port on which the peer listens, and of its UDP port
	// for frames.
	Port uint16
	// From is the address of the far end, as this end sees it. It is not part of the hello.
	From netip.Addr
	// Binding is the channel binding of the handshake. It is not part of the hello.
	Binding Binding
	// Seen is the address at which the sender sees the receiver.
	Seen     netip.AddrPort
	Nickname string
}

func (h *Hello) append(b []byte, s peer.Signer, static []byte) []byte {
	b = append(b, helloFormat)
	b = append(b, h.Name[:]...)
	key := s.Key()
	b = append(b, key[:]...)
	sig := s.Sign(signDomain, static)
	b = append(b, sig[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Instance)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Clock.UnixMicro()))
	b = binary.BigEndian.AppendUint16(b, h.Port)
	b = append(b, 0)
	ip := h.Seen.Addr().As16()
	if !h.Seen.IsValid() {
		ip = [16]byte{}
	}
	b = append(b, ip[:]...)
	b = binary.BigEndian.AppendUint16(b, h.Seen.Port())
	nick := h.Nickname[:min(len(h.Nickname), maxNickname)]
	b = append(b, byte(len(nick)))
	return append(b, nick...)
}

var errForgedHello = errors.New("its key did not sign this handshake")

// parseHello parses the bytes that append wrote, and checks the signature over static.
func parseHello(b []byte, v peer.Verifier, static []byte) (*Hello, error) {
	if len(b) < helloFixed+1 || len(b) < helloFixed+1+int(b[helloFixed]) {
		return nil, fmt.Errorf("hello of %d bytes is cut short", len(b))
	}
	if b[0] != helloFormat {
		return nil, fmt.Errorf("hello of format %d, want %d", b[0], helloFormat)
	}
	h := &Hello{Name: peer.NameFromBytes(b[1:])}
	b = b[1+peer.NameLen:]
	copy(h.Key[:], b)
	b = b[len(h.Key):]
	if !v.Verify(h.Key, signDomain, static, peer.Signature(b[:peer.SignatureLen])) {
		return nil, fmt.Errorf("hello of peer %s: %w", h.Name, errForgedHello)
	}
	b = b[peer.SignatureLen:]
	h.Instance = binary.BigEndian.Uint64(b)
	h.Clock = time.UnixMicro(int64(binary.BigEndian.Uint64(b[8:]) &^ (1 << 63)))
	b = b[16:]
	h.Port = binary.BigEndian.Uint16(b)
	if ip := netip.AddrFrom16([16]byte(b[3:19])); !ip.IsUnspecified() {
		h.Seen = netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(b[19:]))
	}
	h.Nickname = string(b[22 : 22+int(b[21])])
	if h.Name.IsZero() || h.Name == peer.Broadcast || h.Name[0]&1 != 0 {
		return nil, fmt.Errorf("hello of peer %s: the name is reserved", h.Name)
	}
	return h, nil
}
