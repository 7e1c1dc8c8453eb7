package daemon

import (
	"testing"

	"github.com/weft-net/weft/internal/api"
)

// A program cannot remove peers without the voters.
func TestOnlyAnOperatorRemovesByForce(t *testing.T) {
	node := &fakeNode{}
	p := &peerRequests{node: node, addresses: addresses{newFakeAddresses()}}
	if _, err := p.RemovePeers(t.Context(), api.PeersRequest{Peers: []string{"h2"}, Force: true}); err == nil {
		t.Error("a program removed a peer by force")
	}
	if _, err := p.RemovePeers(t.Context(), api.PeersRequest{Peers: []string{"h2"}, Force: true, Operator: true}); err != nil {
		t.Error(err)
	}
}
