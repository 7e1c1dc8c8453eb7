package ipam

import (
	"net/netip"

	"github.com/weft-net/weft/mesh/peer"
)

// OwnerOf returns the peer that owns an address, and false if there is no ring yet or the
// address is outside the address range.
func (a *Allocator) OwnerOf(address netip.Addr) (owner peer.Name, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, ok := a.core.ring.Owner(address)
	return h.Name, ok
}

// RingEpoch grows whenever a result of OwnerOf may have changed.
func (a *Allocator) RingEpoch() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.core.ring.Epoch()
}
