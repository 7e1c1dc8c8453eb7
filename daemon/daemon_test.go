package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/store"
)

// The page "What survives what" of the site.
func TestTargetsAtStart(t *testing.T) {
	for _, c := range []struct {
		name    string
		stored  []string
		crashed bool
		given   []string
		resume  bool
		want    []string
	}{
		{"first launch", nil, false, []string{"a", "b", "a"}, false, []string{"a", "b"}},
		{"stop, launch", []string{"a"}, false, []string{"b"}, false, []string{"b"}},
		{"stop, launch without peers", []string{"a"}, false, nil, false, nil},
		{"stop, launch --resume", []string{"a"}, false, nil, true, []string{"a"}},
		{"stop, start of the unit with WEFT_PEERS", []string{"a"}, false, []string{"b", "a"}, true, []string{"a", "b"}},
		{"crash, launch", []string{"a", "b"}, true, []string{"b", "c"}, false, []string{"a", "b", "c"}},
		{"crash, launch --resume", []string{"a"}, true, nil, true, []string{"a"}},
	} {
		st := openStore(t)
		var inMesh []string
		ts := &targets{store: st, set: func(list []string) { inMesh = list }}
		if err := ts.replace(c.stored); err != nil {
			t.Fatal(err)
		}
		if c.crashed {
			if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyRunning), Value: []byte{1}}}); err != nil {
				t.Fatal(err)
			}
		}
		got, crashed, err := startTargets(st, c.given, c.resume)
		if err != nil || crashed != c.crashed || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, crashed %v, %v; want %v", c.name, got, crashed, err, c.want)
		}
		if !slices.Equal(inMesh, c.stored) {
			t.Errorf("%s: the mesh has %v, want %v", c.name, inMesh, c.stored)
		}
	}
}

func TestConnectAndForget(t *testing.T) {
	var inMesh []string
	ts := &targets{store: openStore(t), set: func(list []string) { inMesh = list }}
	for _, c := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return ts.add([]string{"a", "b"}) }, []string{"a", "b"}},
		{func() error { return ts.add([]string{"b", "c"}) }, []string{"a", "b", "c"}},
		{func() error { return ts.remove([]string{"b"}) }, []string{"a", "c"}},
		{func() error { // one that is no target: nothing is removed
			if err := ts.remove([]string{"a", "x"}); err == nil || !strings.Contains(err.Error(), "forget x: it is no target") {
				return fmt.Errorf("forget of a peer that is no target: %w", err)
			}
			return nil
		}, []string{"a", "c"}},
		{func() error { return ts.replace([]string{"d"}) }, []string{"d"}},
		{func() error { return ts.replace(nil) }, nil},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(inMesh, c.want) || !slices.Equal(ts.get(), c.want) {
			t.Errorf("the mesh has %v, kept %v, want %v", inMesh, ts.get(), c.want)
		}
	}
}

func TestIdentityIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.key")
	a, err := loadIdentity(path, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := loadIdentity(path, rand.Reader)
	if err != nil || a.Name != b.Name || a.Key() != b.Key() {
		t.Errorf("a second launch is %v, %v; want %v", b, err, a.Name)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(path, rand.Reader); err == nil || !strings.Contains(err.Error(), "put the right file back") {
		t.Errorf("a damaged key: %v", err)
	}
}

func FuzzParseSeed(f *testing.F) {
	f.Add([]byte(strings.Repeat("0a", 32) + "\n"))
	f.Add([]byte(strings.Repeat("0A", 32)))
	f.Add([]byte(strings.Repeat("zz", 32)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		seed, err := parseSeed(b)
		if err == nil && (len(seed) != 32 || bytes.Equal(seed, b)) {
			t.Fatalf("%q is read as %x", b, seed)
		}
	})
}

// Neither peers that are made up nor long names grow the number of series or a line without
// a bound.
func TestMetricsAreBounded(t *testing.T) {
	r := &api.Report{}
	for i := range 5 * maxSeries {
		r.Router.Connections = append(r.Router.Connections, api.Connection{
			State: "established", Kind: "sleeve", Name: fmt.Sprintf("p%d\x1b\n", i) + strings.Repeat("x", 5000),
			Counters: api.Counters{RxBytes: 1, Drops: map[string]uint64{fmt.Sprint("reason ", i): 1}},
		})
		r.Router.Fastdp.Peers = append(r.Router.Fastdp.Peers, api.FastdpPeer{Name: fmt.Sprint("p", i), RxBytes: 1})
	}
	w := httptest.NewRecorder()
	metricsHandler(func(context.Context, api.Lists) (*api.Report, error) { return r, nil }, func(context.Context) int { return 0 }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body := w.Body.String()
	for _, name := range []string{"weft_link_bytes_total{", "weft_link_packets_total{", "weft_link_drops_total{", "weft_fastdp_bytes_total{"} {
		if n := strings.Count(body, "\n"+name); n != maxSeries+1 {
			t.Errorf("%s: %d series, want %d and the others in one", name, n, maxSeries)
		}
	}
	if want := fmt.Sprintf(`weft_link_drops_total{peer="other",reason="other",type="other"} %d`, 4*maxSeries); !strings.Contains(body, want+"\n") {
		t.Errorf("metrics lack %s", want)
	}
	for line := range strings.Lines(body) {
		if len(line) > 1000 || strings.ContainsAny(line, "\x1b\r") {
			t.Errorf("a line of %d bytes: %.200q", len(line), line)
			break
		}
	}
}

func TestMetrics(t *testing.T) {
	h := metricsHandler(func(context.Context, api.Lists) (*api.Report, error) {
		return &api.Report{
			Router: api.Router{
				MACTable:         api.MACTable{Entries: 16, Moves: 17, Refused: 18, Elsewhere: 23},
				Neighbours:       api.Neighbours{Answered: 31, Local: 32, Flooded: 33, Announced: 34, Dropped: 35},
				TerminationCount: 3, Flows: 4, Peers: make([]api.Peer, 2),
				Connections: []api.Connection{
					{State: "established", Kind: "sleeve", Encrypted: true, Name: "p", Counters: api.Counters{RxBytes: 10, TxPackets: 2, Drops: map[string]uint64{"queue full": 5}}},
					{State: "established", Kind: "sleeve", Encrypted: true, Name: "p", Counters: api.Counters{RxBytes: 1}},
					{State: "retrying"},
				},
				HandshakeFailures: map[string]uint64{"pass\xffword": 6},
				Drops:             map[string]uint64{"looped": 7},
				Queues:            []api.Queue{{Name: "gossip", Depth: 8, Limit: 9, Drops: 10}},
			},
			IPAM: &api.IPAM{
				RangeNumIPs: 1000, ActiveIPs: 11, PendingAllocates: []string{"a"}, PendingClaims: []string{"b", "c"},
				Owners: []api.Owner{{NumIPs: 750, Reachable: true}, {NumIPs: 250}},
			},
			IPAM6: &api.IPAM{RangeNumIPs: 1e30},
			Kernel: api.Kernel{
				Repairs: map[string]uint64{"bridge": 19}, Faults: []api.KernelFault{{Kind: "tap"}, {Kind: "sysctl"}, {Kind: "sysctl"}},
			},
			DNS: &api.DNS{
				Refused: 13,
				Queries: []api.DNSQueries{{Type: "A", Result: "answer", Count: 14}, {Type: "PTR", Result: "forwarded", Count: 15}},
			},
			Bindings:  api.Bindings{Known: 20, Own: 21, Refused: 22},
			Multicast: api.Multicast{Known: 41, Own: 42, Pruned: 43, Unwanted: 44, Flooded: 45, Ignored: 46},
			SpoofGuard: api.SpoofGuard{Containers: []api.Spoofing{
				{Name: "default/web", ID: "cni:pods:c1:eth0", Port: "vethwe1", Frames: map[string]uint64{"mac": 24, "arp": 25}},
				{ID: "netns:7", Port: "vethwe2", Frames: map[string]uint64{"nd": 26}},
			}},
			Omitted: map[string]int{"DNS.Entries": 12},
		}, nil
	}, func(context.Context) int { return 1 })
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`weft_connections{encryption="yes",state="established",type="sleeve"} 2`, `weft_connections{encryption="",state="retrying",type=""} 1`,
		"weft_connection_terminations_total 3", "weft_flows 4", "weft_macs 16", "weft_mac_moves_total 17", "weft_macs_refused_total 18", "weft_macs_elsewhere_total 23",
		`weft_neighbour_requests_total{result="answered"} 31`, `weft_neighbour_requests_total{result="local"} 32`, `weft_neighbour_requests_total{result="flooded"} 33`,
		`weft_neighbour_announcements_total{result="sent"} 34`, `weft_neighbour_announcements_total{result="dropped"} 35`, "weft_peers 2", `weft_ips{state="local-used"} 11`, "weft_max_ips 1000",
		"weft_ipam_unreachable_count 250", "weft_ipam_unreachable_percentage 25", "weft_ipam_pending_allocates 1", "weft_ipam_pending_claims 2",
		`weft_link_bytes_total{direction="rx",peer="p",type="sleeve"} 11`, `weft_link_packets_total{direction="tx",peer="p",type="sleeve"} 2`,
		`weft_link_drops_total{peer="p",reason="queue full",type="sleeve"} 5`, `weft_handshake_failures_total{reason="pass\\xffword"} 6`,
		"weft_bindings 20", "weft_bindings_own 21", "weft_bindings_refused 22",
		"weft_multicast_groups 41", "weft_multicast_groups_own 42", `weft_multicast_frames_total{result="pruned"} 43`, `weft_multicast_frames_total{result="unwanted"} 44`,
		`weft_multicast_frames_total{result="flooded"} 45`, "weft_multicast_reports_ignored_total 46",
		`weft_spoofed_frames_total{container="default/web",reason="mac"} 24`, `weft_spoofed_frames_total{container="default/web",reason="arp"} 25`,
		`weft_spoofed_frames_total{container="netns:7",reason="nd"} 26`,
		"weft_dns_entries 12", "weft_dns_entries_refused 1", "weft_dns_forwards_refused_total 13",
		`weft_dns_queries_total{result="answer",type="A"} 14`, `weft_dns_queries_total{result="forwarded",type="PTR"} 15`,
		`weft_kernel_repairs_total{object="bridge"} 19`, `weft_kernel_faults{object="tap"} 1`, `weft_kernel_faults{object="sysctl"} 2`,
		`weft_drops_total{reason="looped"} 7`, `weft_queue_depth{queue="gossip"} 8`, `weft_queue_limit{queue="gossip"} 9`, `weft_queue_drops_total{queue="gossip"} 10`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("metrics lack %s:\n%s", want, w.Body)
		}
	}
}
