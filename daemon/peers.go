package daemon

import (
	"context"

	"github.com/weft-net/weft/internal/api"
)

// peerRequests answers requests about other peers. It implements api.Peers.
type peerRequests struct {
	node      node
	targets   *targets
	addresses addresses
}

// Connect implements api.Peers.
func (p *peerRequests) Connect(_ context.Context, r api.PeersRequest) error {
	for _, t := range r.Peers {
		if err := api.CheckTarget(t); err != nil {
			return usage("%w", err)
		}
	}
	if r.Replace {
		return p.targets.replace(r.Peers)
	}
	return p.targets.add(r.Peers)
}

// Forget implements api.Peers.
func (p *peerRequests) Forget(_ context.Context, r api.PeersRequest) error {
	return p.targets.remove(r.Peers)
}

// RemovePeers implements api.Peers.
func (p *peerRequests) RemovePeers(ctx context.Context, r api.PeersRequest) ([]api.Removed, error) {
	if len(p.addresses) == 0 {
		return nil, unavailable("take over a dead peer's addresses: this router was launched without a range of addresses")
	}
	if r.Force && !r.Operator {
		return nil, usage("remove peers by force: only an operator may do that, not a program")
	}
	return p.node.RemovePeers(ctx, r)
}

// Adopt implements api.Peers.
func (p *peerRequests) Adopt(_ context.Context, r api.AdoptRequest) error {
	return p.node.Adopt(r.Ring, r.Here)
}

// Ban implements api.Peers.
func (p *peerRequests) Ban(_ context.Context, r api.BanRequest) ([]api.Vote, error) {
	if len(p.addresses) == 0 {
		return nil, unavailable("ban a peer: this router was launched without a range of addresses, so there are no voters")
	}
	if len(r.Peers) == 0 {
		return nil, usage("ban peers: none is named")
	}
	return p.node.Ban(r)
}

// Prime implements api.Peers.
func (p *peerRequests) Prime(ctx context.Context) error { return p.addresses.prime(ctx) }
