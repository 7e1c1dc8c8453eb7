package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
)

// A host that others were told to connect to may have no targets itself. If its router starts
// again, the others notice that after seconds, and until then no frame comes through. So a router
// writes down with whom it has sessions, and the next one dials them at once, under the same
// conditions as the targets of the last run: after a crash, or with --resume.

const (
	// keyLastPeers holds the peers: for each a name of 6 bytes, an address of 16, and a port of 2.
	keyLastPeers = "last-peers"
	lastPeerLen  = peer.NameLen + 16 + 2
	// maxLastPeers bounds them. The default limit of sessions is 200.
	maxLastPeers = 256
	// lastPeersEvery is how often peers that went away are forgotten, and lastPeersPause the
	// least time between two writes.
	lastPeersEvery = time.Minute
	lastPeersPause = time.Second
)

// appendLastPeers encodes the peers.
func appendLastPeers(b []byte, list []mesh.LastPeer) []byte {
	for _, p := range list[:min(len(list), maxLastPeers)] {
		a := p.Addr.Addr().As16()
		b = append(append(b, p.Name[:]...), a[:]...)
		b = binary.BigEndian.AppendUint16(b, p.Addr.Port())
	}
	return b
}

// parseLastPeers parses what appendLastPeers returned.
func parseLastPeers(b []byte) (list []mesh.LastPeer, err error) {
	if len(b)%lastPeerLen != 0 || len(b) > maxLastPeers*lastPeerLen {
		return nil, fmt.Errorf("read the peers of the last run: %d bytes, not a multiple of %d, or more than %d peers", len(b), lastPeerLen, maxLastPeers)
	}
	for ; len(b) > 0; b = b[lastPeerLen:] {
		a := netip.AddrFrom16([16]byte(b[peer.NameLen:])).Unmap()
		list = append(list, mesh.LastPeer{
			Name: peer.NameFromBytes(b), Addr: netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[peer.NameLen+16:])),
		})
	}
	return list, nil
}

// loadLastPeers returns the peers of the last run if this one goes on with it, and else forgets
// them. Damage costs only them.
func loadLastPeers(st *store.Store, goesOn bool) ([]mesh.LastPeer, error) {
	if !goesOn {
		return nil, st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyLastPeers)}})
	}
	b, err := st.Get(bucketDaemon, []byte(keyLastPeers))
	if err != nil {
		return nil, fmt.Errorf("read the peers of the last run: %w", err)
	}
	return parseLastPeers(b)
}

// noteLastPeers keeps the peers on disk. It is woken when a session is up. A peer that goes away
// stays on the list for a while: all do if this router loses its network.
func (h *host) noteLastPeers(ctx context.Context) {
	every := time.NewTicker(lastPeersEvery)
	defer every.Stop()
	list := h.lastPeers
	var written []byte
	for {
		drop := false
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			drop = true
		case <-h.peersWake:
		}
		now := h.mesh.DirectPeers()
		if drop && len(now) > 0 {
			list = nil
		}
		for _, p := range list {
			if !slices.ContainsFunc(now, func(q mesh.LastPeer) bool { return p.Name == q.Name }) {
				now = append(now, p)
			}
		}
		list = now[:min(len(now), maxLastPeers)]
		b := appendLastPeers(nil, list)
		if bytes.Equal(b, written) {
			continue
		}
		if err := h.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyLastPeers), Value: b}}); err != nil {
			h.log.Warn("the peers with sessions cannot be noted for the next start", "err", err)
		}
		written = b
		select {
		case <-ctx.Done():
			return
		case <-time.After(lastPeersPause):
		}
	}
}
