package daemon

import (
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/peer"
)

// keyBindings holds the keys to which names given by users (--name) are bound: for each a
// name of 6 bytes, a key of 32, the address from which the name came in 16 bytes, or zeros,
// and a byte that is 1 if the peer itself came from there. A router that starts again so
// still knows to whom the name of a host that is away belongs.
const keyBindings = "name-keys"

const bindingLen = peer.NameLen + len(peer.Key{}) + 16 + 1

// loadBindings returns the bindings of the last run. Damage costs only them.
func loadBindings(st *store.Store) ([]peer.Binding, error) {
	b, err := st.Get(bucketDaemon, []byte(keyBindings))
	if err != nil {
		return nil, fmt.Errorf("read the keys of names given by users: %w", err)
	}
	if len(b)%bindingLen != 0 {
		return nil, fmt.Errorf("read the keys of names given by users: %d bytes, not a multiple of %d", len(b), bindingLen)
	}
	var list []peer.Binding
	for ; len(b) > 0; b = b[bindingLen:] {
		e := peer.Binding{Name: peer.NameFromBytes(b), Key: peer.Key(b[peer.NameLen:])}
		rest := b[peer.NameLen+len(e.Key) : bindingLen]
		if a := netip.AddrFrom16([16]byte(rest)); !a.IsUnspecified() {
			e.Via = peer.Via{Addr: a.Unmap(), Own: rest[16] == 1}
		}
		list = append(list, e)
	}
	return list, nil
}

func saveBindings(st *store.Store, list []peer.Binding) error {
	b := make([]byte, 0, len(list)*bindingLen)
	for _, e := range list {
		b = append(b, e.Name[:]...)
		b = append(b, e.Key[:]...)
		var from [16]byte
		own := byte(0)
		if e.Via.Addr.IsValid() {
			from = e.Via.Addr.As16()
			if e.Via.Own {
				own = 1
			}
		}
		b = append(append(b, from[:]...), own)
	}
	if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyBindings), Value: b}}); err != nil {
		return fmt.Errorf("keep the keys of names given by users: %w", err)
	}
	return nil
}
