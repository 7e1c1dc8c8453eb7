package daemon

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

// hostileMesh is a mesh of n peers that each claim to have links to the same peers.
func hostileMesh(n, links int) mesh.Status {
	nth := func(i int) peer.Name { return peer.Name{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }
	shared := make([]topology.Link, links)
	for i := range shared {
		shared[i] = topology.Link{To: nth(i), Flags: topology.LinkSession | topology.LinkData}
	}
	s := mesh.Status{Name: nth(0), Sessions: []mesh.SessionStatus{{Peer: nth(1), Addr: "192.0.2.1:6783", Dialled: true}}}
	for i := range n {
		s.Peers = append(s.Peers, mesh.PeerStatus{Name: nth(i), Nickname: fmt.Sprint("evil ", i), Links: shared})
	}
	return s
}

// However many peers claim to have however many links, a report has a bounded size, and says
// what it leaves out.
func TestReportOfAHostileMeshIsBounded(t *testing.T) {
	for _, c := range []struct{ peers, links, listed, each int }{
		{3, 2, 3, 2},
		{1000, 200, 1000, 200},
		{6000, 4000, 6000, 33},
		{50000, 4000, maxListed, minLinks},
	} {
		ms := hostileMesh(c.peers, c.links)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r := &api.Report{}
		if err := listPeers(t.Context(), r, ms, nil, newPeerTexts(func(peer.Name) string { return "evil" })); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if made := after.TotalAlloc - before.TotalAlloc; made > 64<<20 {
			t.Errorf("%+v: the list takes %d bytes", c, made)
		}
		if len(r.Router.Peers) != c.listed || r.Omitted["Peers"] != c.peers-c.listed {
			t.Errorf("%+v: %d peers are listed, %v omitted", c, len(r.Router.Peers), r.Omitted)
		}
		for i, p := range r.Router.Peers {
			want := c.each
			if i == 0 {
				want = c.links // its own are not the word of others
			}
			if len(p.Connections) != want || len(p.Connections)+p.OmittedConnections != c.links {
				t.Fatalf("%+v: peer %d has %d connections and %d omitted, want %d", c, i, len(p.Connections), p.OmittedConnections, want)
			}
		}
		if k := r.Router.Peers[0].Connections[1]; k.Address != "192.0.2.1:6783" || !k.Outbound || !k.Established || k.NickName != "evil" {
			t.Errorf("this peer's connection is listed as %+v", k)
		}
	}
}

func TestReportStopsWithItsClient(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &api.Report{}
	if err := listPeers(ctx, r, hostileMesh(100, 10), nil, newPeerTexts(func(peer.Name) string { return "" })); !errors.Is(err, context.Canceled) || len(r.Router.Peers) > 0 {
		t.Errorf("%d peers are listed for a client that has gone: %v", len(r.Router.Peers), err)
	}
}

func TestBroadcastRoutesAreBounded(t *testing.T) {
	routes := make(map[peer.Name][]peer.Name)
	next := make([]peer.Name, 1000)
	for i := range 1000 {
		routes[peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)}] = next
	}
	r := &api.Report{}
	if err := listBroadcast(t.Context(), r, routes, newPeerTexts(func(peer.Name) string { return "" })); err != nil {
		t.Fatal(err)
	}
	if n := len(r.Router.BroadcastRoutes); n != maxLinks/1000 || r.Omitted["BroadcastRoutes"] != 1000-n {
		t.Errorf("%d routes are listed, %v omitted", n, r.Omitted)
	}
}

// A host that is banned says how it knows, what works and what to do. It names itself by the name,
// as its nickname stands for nobody on the other hosts.
func TestBannedHostSaysWhatToDo(t *testing.T) {
	now := time.Now()
	self := peer.Name{2, 5: 9}
	by := func(n int) (list []mesh.BannedBy) {
		for i := range n {
			list = append(list, mesh.BannedBy{Name: peer.Name{2, 5: byte(i + 1)}, Nickname: fmt.Sprint("h", i+1), Last: now.Add(-time.Duration(90+i) * time.Second)})
		}
		return list
	}
	const (
		works = "Its containers keep their addresses and reach each other, but no container of another host"
		todo  = ". To let it in again, operators on as many other hosts as must agree run: weft unban 02:00:00:00:00:09"
	)
	for _, c := range []struct {
		decided bool
		by      int
		want    string
	}{
		{false, 1, "02:00:00:00:00:01(h1) refuses its sessions with that reason, last 1m30s ago. " + works},
		{false, 2, "02:00:00:00:00:01(h1), 02:00:00:00:00:02(h2) refuse its sessions with that reason, last 1m30s ago. " + works},
		{true, 0, "the voters decided it. " + works + "; new containers get no address of the range"},
		{true, 6, "the voters decided it; 02:00:00:00:00:01(h1), 02:00:00:00:00:02(h2), 02:00:00:00:00:03(h3), 02:00:00:00:00:04(h4), 02:00:00:00:00:05(h5), 1 other " +
			"refuse its sessions with that reason, last 1m30s ago. " + works + "; new containers get no address of the range"},
	} {
		if got, want := banned(self, c.decided, by(c.by), now), "this host is banned from the mesh: "+c.want+todo; got != want {
			t.Errorf("decided %v, refused by %d:\n%s, want\n%s", c.decided, c.by, got, want)
		}
	}
	for state, want := range map[string]string{"ready": "banned from the mesh", "priming": "banned from the mesh; priming"} {
		if got := stateOf(state, true); got != want || stateOf(state, false) != state {
			t.Errorf("state %q becomes %q", state, got)
		}
	}
}
