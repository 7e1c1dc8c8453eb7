package rotation

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// ID names a password without revealing it; see session.PSK.
type ID [8]byte

// String returns the id in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

const (
	// MinText and MaxText are the least and the largest length of a password, in bytes.
	MinText, MaxText = 8, 1024
	// MaxPeers is the largest number of peers that an order can name. With it and MaxText an
	// order fits into one message of the mesh.
	MaxPeers = 3500

	orderFormat = 1
	orderHeader = 51
	orderDomain = "weft rotation"
	keyIDLen    = len(peer.KeyID{})
)

// Order says that a password is to take the place of older ones.
type Order struct {
	Time     int64 // microseconds since 1970
	By       peer.Key
	Password ID
	Peers    []peer.KeyID // that may know the password, in order

	giver  peer.KeyID // of By
	signed []byte     // encoded, with the signature and without the text
}

// ErrMalformed is the cause if bytes are no order.
var ErrMalformed = errors.New("malformed order")

// newOrder makes and signs an order.
func newOrder(s peer.Signer, at int64, id ID, peers []peer.KeyID) (*Order, error) {
	peers = slices.Clone(peers)
	slices.SortFunc(peers, peer.KeyID.Compare)
	peers = slices.Compact(peers)
	if len(peers) > MaxPeers {
		return nil, fmt.Errorf("an order for %d peers, at most %d", len(peers), MaxPeers)
	}
	o := &Order{Time: at, By: s.Key(), Password: id, Peers: peers}
	b := binary.BigEndian.AppendUint64([]byte{orderFormat}, uint64(at))
	b = append(b, o.By[:]...)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(peers)))
	for _, p := range peers {
		b = append(b, p[:]...)
	}
	sig := s.Sign(orderDomain, b)
	o.signed = append(b, sig[:]...)
	return o, nil
}

// parseOrder returns an order and the text behind it. Both own their memory. The signature is
// not checked.
func parseOrder(b []byte) (*Order, string, error) {
	if len(b) < orderHeader+peer.SignatureLen || b[0] != orderFormat {
		return nil, "", fmt.Errorf("%d bytes: %w", len(b), ErrMalformed)
	}
	at := binary.BigEndian.Uint64(b[1:])
	n := int(binary.BigEndian.Uint16(b[49:]))
	end := orderHeader + n*keyIDLen + peer.SignatureLen
	if at == 0 || at >= 1<<62 || n > MaxPeers || len(b) < end || len(b) > end+MaxText {
		return nil, "", fmt.Errorf("%d bytes for %d peers, time %d: %w", len(b), n, at, ErrMalformed)
	}
	o := &Order{Time: int64(at), By: peer.Key(b[9:]), Password: ID(b[41:]), signed: slices.Clone(b[:end])}
	o.Peers = make([]peer.KeyID, n)
	for i := range o.Peers {
		o.Peers[i] = peer.KeyID(b[orderHeader+i*keyIDLen:])
		if i > 0 && o.Peers[i-1].Compare(o.Peers[i]) >= 0 {
			return nil, "", fmt.Errorf("peers out of order: %w", ErrMalformed)
		}
	}
	return o, string(b[end:]), nil
}

// verify reports whether the signature is valid.
func (o *Order) verify(v peer.Verifier) bool {
	end := len(o.signed) - peer.SignatureLen
	return v.Verify(o.By, orderDomain, o.signed[:end], peer.Signature(o.signed[end:]))
}

// names reports whether a peer may know the password.
func (o *Order) names(p peer.KeyID) bool {
	_, found := slices.BinarySearchFunc(o.Peers, p, peer.KeyID.Compare)
	return found
}

// message returns the order with the password.
func (o *Order) message(text string) []byte { return append(slices.Clone(o.signed), text...) }
