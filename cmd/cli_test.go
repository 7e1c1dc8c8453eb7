package cmd

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-net/weft/cni"
	"github.com/weft-net/weft/internal/api"
)

// TestMain makes the test binary run as weft when a test starts it, so that labs run
// the code under test.
func TestMain(m *testing.M) {
	if plugin := filepath.Base(os.Args[0]); strings.HasPrefix(plugin, "weft-") {
		skel.PluginMainFuncs(cni.Verbs(plugin), cni.Versions, "weft CNI plugin")
		return
	}
	if os.Getenv(beWeft) != "" {
		os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	// From here on every process that a test starts from this binary runs as weft.
	os.Setenv(beWeft, "1")
	os.Exit(m.Run())
}

const beWeft = "BE_THE_WEFT_PROGRAM"

var update = flag.Bool("update", false, "write the golden files")

// fakeBackend answers like a router, and records the requests.
type fakeBackend struct {
	report *api.Report
	err    error      // of everything but Ready
	votes  []api.Vote // the answers to ban, the last one from then on
	// inherited is how many addresses a removal gives; 0 stands for a quarter of the range.
	inherited float64

	mu    sync.Mutex
	calls []any
}

func (f *fakeBackend) handler() http.Handler {
	return api.Handler(api.StatusRoutes(f, nil), api.ContainerRoutes(f), api.ExposureRoutes(f), api.LeaseRoutes(f), api.NameRoutes(f),
		api.PeerRoutes(f), api.LifecycleRoutes(f))
}

func (f *fakeBackend) note(call any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	return f.err
}

func (f *fakeBackend) Ready(context.Context) api.Ready {
	return api.Ready{Ready: true, Version: "9.9", Name: "02:00:00:00:00:01"}
}

func (f *fakeBackend) Report(context.Context, api.Lists) (*api.Report, error) {
	return f.report, f.err
}

func (f *fakeBackend) Attachments(context.Context) ([]api.Attachment, error) {
	return f.report.Attachments, f.err
}

var onePrefix = []netip.Prefix{netip.MustParsePrefix("10.32.0.1/12")}

func (f *fakeBackend) Attach(_ context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	return append(onePrefix, netip.MustParsePrefix("10.32.0.2/12")), f.note(r)
}

func (f *fakeBackend) Detach(_ context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	return onePrefix, f.note(r)
}

func (f *fakeBackend) Expose(_ context.Context, r api.ExposeRequest) ([]netip.Prefix, error) {
	return onePrefix, f.note(r)
}

func (f *fakeBackend) Hide(_ context.Context, r api.ExposeRequest) ([]netip.Prefix, error) {
	return nil, f.note(r)
}

func (f *fakeBackend) Lease(_ context.Context, r api.LeaseRequest) (api.LeaseReply, func(), error) {
	return api.LeaseReply{Addresses: onePrefix}, nil, f.err
}

func (f *fakeBackend) Release(context.Context, api.LeaseRequest) ([]netip.Prefix, error) {
	return onePrefix, f.err
}

func (f *fakeBackend) Leases(context.Context) ([]api.Lease, error) { return nil, f.err }

func (f *fakeBackend) AddName(_ context.Context, r api.NameRequest) error { return f.note(r) }

func (f *fakeBackend) RemoveName(_ context.Context, r api.NameRequest) error { return f.note(r) }

func (f *fakeBackend) LookupName(_ context.Context, r api.LookupRequest) ([]string, error) {
	return []string{"10.32.0.1", "fd00::1"}, f.note(r)
}

func (f *fakeBackend) Connect(_ context.Context, r api.PeersRequest) error { return f.note(r) }

func (f *fakeBackend) Forget(_ context.Context, r api.PeersRequest) error { return f.note(r) }

func (f *fakeBackend) RemovePeers(_ context.Context, r api.PeersRequest) ([]api.Removed, error) {
	return []api.Removed{{Peer: r.Peers[0], Addresses: cmp.Or(f.inherited, 1<<18), Unknown: r.Peers[0] == "unknown"}}, f.note(r)
}

func (f *fakeBackend) Ban(_ context.Context, r api.BanRequest) ([]api.Vote, error) {
	if err := f.note(r); err != nil || len(f.votes) == 0 {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.votes[0]
	if len(f.votes) > 1 {
		f.votes = f.votes[1:]
	}
	return []api.Vote{next}, nil
}

func (f *fakeBackend) Adopt(_ context.Context, r api.AdoptRequest) error { return f.note(r) }

func (f *fakeBackend) Prime(context.Context) error { return f.note("prime") }

func (f *fakeBackend) Stop(context.Context) error { return f.note("stop") }

func (f *fakeBackend) Reset(context.Context) error { return f.note("reset") }

// someReport has content in every part that a view shows.
func someReport() *api.Report {
	return &api.Report{
		Ready: true, Version: "9.9",
		Router: api.Router{
			Protocol: "weft", ProtocolMinVersion: 1, ProtocolMaxVersion: 2,
			Name: "02:00:00:00:00:01", NickName: "h1", Port: 6783, Encryption: true, PeerDiscovery: true,
			Targets:         []string{"h2", "192.0.2.3:7000"},
			PeerConnections: api.PeerConnections{Established: 1, Pending: 1},
			Peers: []api.Peer{
				{Name: "02:00:00:00:00:01", NickName: "h1", Connections: []api.PeerConnection{
					{Name: "02:00:00:00:00:02", NickName: "h2", Address: "192.0.2.2:6783", Outbound: true, Established: true}}},
				{Name: "02:00:00:00:00:02", NickName: "h2", Connections: []api.PeerConnection{
					{Name: "02:00:00:00:00:01", NickName: "h1", Address: "192.0.2.1:40000", Established: false}}},
			},
			Relayed: []api.RelayedPeer{
				{Name: "02:00:00:00:00:03", NickName: "h3", Via: "02:00:00:00:00:02", ViaNickName: "h2", Sealed: true, Info: "aes-256-gcm"},
				{Name: "02:00:00:00:00:04", NickName: "h4", Via: "02:00:00:00:00:02", ViaNickName: "h2", Info: "keys are agreed when the first frame is sent"},
			},
			Connections: []api.Connection{
				{Address: "192.0.2.2:6783", Outbound: true, State: api.StateEstablished, Name: "02:00:00:00:00:02", NickName: "h2", Kind: "sleeve", Encrypted: true, MTU: 1429},
				{Address: "192.0.2.3:7000", Outbound: true, State: api.StateRetrying, Info: "connection refused; again in 3s"},
			},
			TrustedSubnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			Neighbours:     api.Neighbours{Answered: 20, Local: 3, Flooded: 4},
		},
		IPAM: &api.IPAM{
			Status: "ready", Range: netip.MustParsePrefix("10.32.0.0/12"), RangeNumIPs: 1 << 20, ActiveIPs: 2,
			DefaultSubnet: netip.MustParsePrefix("10.32.0.0/12"),
			Owners: []api.Owner{
				{Peer: "02:00:00:00:00:01", NickName: "h1", NumIPs: 1 << 19, Active: 2, Reachable: true},
				{Peer: "02:00:00:00:00:02", NickName: "h2", NumIPs: 1 << 19},
			},
			Banned: []string{"02:00:00:00:00:08"},
			Votes: []api.Vote{{Kind: api.VoteBan, Peer: "02:00:00:00:00:09", Needed: 2, Until: time.Date(2030, 1, 1, 15, 4, 5, 0, time.Local),
				For: []api.Voter{{Peer: "02:00:00:00:00:01", NickName: "h1"}}, Missing: []api.Voter{{Peer: "02:00:00:00:00:02", NickName: "h2"}}}},
			PendingClaims: []string{"10.40.0.1 for netns:1: its owner does not answer"},
		},
		DNS: &api.DNS{
			Domain: "weft.internal", Address: "172.17.0.1:53", TTL: 1,
			Listening: []api.DNSListener{
				{Place: "docker0:53", Addresses: []netip.AddrPort{netip.MustParseAddrPort("172.17.0.1:53")}},
				{Place: "weft:53", Fault: "interface weft has no address", Idle: true},
			},
			Upstream: []api.DNSUpstream{
				{Address: netip.MustParseAddrPort("192.0.2.53:53")},
				{Address: netip.MustParseAddrPort("[2001:db8::53]:53"), Fault: "asked last: no answer in time"},
			},
			Entries: []api.DNSEntry{
				{Hostname: "db.prod.weft.internal", Address: netip.MustParseAddr("fd00::2"), ContainerID: strings.Repeat("0123456789abcdef", 4), Origin: "02:00:00:00:00:02", NickName: "h2"},
				{Hostname: "web.weft.internal", Address: netip.MustParseAddr("10.32.0.1"), ContainerID: "netns:4026532281", Origin: "02:00:00:00:00:01", NickName: "h1"},
				{Hostname: "web.weft.internal", Address: netip.MustParseAddr("10.32.0.9"), ContainerID: "netns:4026532281", Origin: "02:00:00:00:00:02", NickName: "h2", Refused: "the address belongs to another peer"},
			},
			Queries: []api.DNSQueries{{Type: "A", Result: "answer", Count: 7}},
		},
		Docker: &api.Docker{
			Host: "unix:///var/run/docker.sock", Containers: 2, DriverName: "weft", DriverSocket: "/run/docker/plugins/weft.sock",
			ProxyAddresses: []string{"unix:///run/weft/docker.sock"},
		},
		Attachments: []api.Attachment{
			{ID: api.Exposed, Interface: "weft", Addresses: onePrefix},
			{ID: strings.Repeat("0123456789abcdef", 4), Name: "db", Netns: "/proc/42/ns/net", Interface: "ethwe", MAC: "02:11:22:33:44:66", Addresses: onePrefix},
			{ID: "netns:4026532281", Netns: "/run/netns/web", Interface: "ethwe", MAC: "02:11:22:33:44:55", Addresses: onePrefix},
			{ID: "netns:4026532282", Interface: "ethwe", Addresses: onePrefix},
			{ID: "cni:pods:" + strings.Repeat("fedcba9876543210", 4) + ":eth0", Netns: "/run/netns/cni-1", Interface: "eth0", MAC: "02:11:22:33:44:77", Addresses: onePrefix},
			{ID: "cni:pods:" + strings.Repeat("a", 64) + ":eth0", Name: "shop/web-0", Interface: "eth0", Addresses: onePrefix},
		},
		Multicast: api.Multicast{Known: 2, Own: 1, All: true, Pruned: 40, Unwanted: 5, Flooded: 6, Groups: []api.MulticastGroup{
			{Group: netip.MustParseAddr("239.7.7.7"), Peer: "02:00:00:00:00:01", NickName: "h1"},
			{Group: netip.MustParseAddr("239.7.7.7"), Peer: "02:00:00:00:00:02", NickName: "h2"},
		}},
		Bindings: api.Bindings{Known: 3, Own: 1, Refused: 1, Entries: []api.Binding{
			{MAC: "02:42:0a:20:00:01", Kind: "container", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")}, Peer: "02:00:00:00:00:01", NickName: "h1"},
			{MAC: "02:11:22:33:44:88", Kind: "port", Peer: "02:00:00:00:00:02", NickName: "h2"},
			{MAC: "02:11:22:33:44:99", Kind: "container", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.1")}, Peer: "02:00:00:00:00:02", NickName: "h2", Refused: "10.32.0.1 belongs to another peer"},
		}},
		Warnings: []string{"something is not as it should be"},
		Kernel:   api.Kernel{Repairs: map[string]uint64{"address": 1, "bridge": 2}},
	}
}

// serve serves the API of a router with a backend and returns the socket.
func serve(t *testing.T, b *fakeBackend) string {
	t.Helper()
	// A short path: those of t.TempDir can be too long for a socket.
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "run", "weft.sock")
	l, err := api.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, b.handler(), slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

// weft runs a command line in this process.
func weft(args ...string) (code int, stdout, stderr string) {
	var out, words strings.Builder
	code = Main(args, &out, &words)
	return code, out.String(), words.String()
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; if the change is right, run the test with -update\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// Every wrong use gives one clear line and exit code 2.
func TestWrongUseIsOneLineAndExitCode2(t *testing.T) {
	// A launch that is not refused finds a running router, and stops there.
	t.Setenv("WEFT_SOCKET", serve(t, &fakeBackend{report: someReport()}))
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := []string{
		"bogus", "--bogus", "lab bogus", "help bogus", "help lab bogus", "stat", "completion", "completion tcsh",
		"stop now", "reset now", "version now", "prime now", "doctor now", "doctor --port 0", "doctor --ipalloc-range x",
		"status bogus", "status peers ipam", "report x", "report -f {{", "report -f {{.Bogus",
		"connect", "connect a:b", "connect a/b", "forget", "rmpeer", "ban", "unban", "ban h2 --timeout -1s",
		"attach", "attach 10.0.0.1/24", "attach web db", "attach web 10.0.0.1/24", "attach web --add-host x", "attach --netns /x --without-dns", "attach web --netns /run/netns/x", "attach 10.0.0.1 --netns /x",
		"attach --netns /x --pid 3", "attach --pid 0", "attach --pid x", "attach 10.0.0.5/24 ip:10.0.0.5/24 --netns /x",
		"dns-add", "dns-add 10.0.0.1", "dns-add a b -h web", "dns-remove", "dns-remove 10.0.0.1", "dns-lookup", "dns-lookup a b", "expose -h",
		"launch --dns-domain a..b", "launch --dns-ttl -1", "launch --dns-ttl x", "launch --dns-listen-address 10.0.0", "launch --dns-listen-address x:0",
		"launch --dns-fallback-timeout 1ns", "launch --resolv-conf x",
		"detach", "detach net:10.0.0.1/24 --netns /x", "expose 10.0.0.0/24", "expose net:", "hide x",
		"launch --bogus", "launch --mtu x", "launch --mtu 10", "launch --mtu 1000 --ipalloc-range6 fd00::/64", "launch --port 0",
		"launch --port 65535", "launch --name x", "launch --name ff:ff:ff:ff:ff:ff", "launch --host h", "launch --conn-limit -1",
		"launch --resume peer", "launch a..b", "launch --ipalloc-range 10.0.0.1/8", "launch --ipalloc-range fd00::/64",
		"launch --ipalloc-range 10.0.0.0/31", "launch --ipalloc-range '' --ipalloc-default-subnet 10.0.0.0/24",
		"launch --ipalloc-default-subnet 192.168.0.0/24", "launch --ipalloc-range6 10.0.0.0/8", "launch --ipalloc-init x",
		"launch --ipalloc-init consensus=0", "launch --ipalloc-init consensus=x", "launch --ipalloc-init seed", "launch --ipalloc-init seed=x",
		"launch --ipalloc-init seed=::1,::1", "launch --ipalloc-init observer=1", "launch --trusted-subnets x", "launch --allow-peers-from x", "launch --no-express-to h2", "launch --encap gre", "launch --encap none,none", "launch --encap vxlan,none", "launch --encap-to 10.0.0.0/8=vxlan+none", "launch --encap-to 10.0.0.0/8", "launch --encap-to x=none", "launch --encap-to 10.0.0.0/8=none,ipip", "launch --mtu large", "launch --mtu 0", "launch --log-level loud",
		"launch --bridge a/b", "launch --bridge averyveryverylongname", "launch --bridge vethwe0", "launch --http-addr 127.0.0.1:6784",
		"launch --socket x", "launch --state-dir x", "launch --log-file x", "launch --status-addr x", "launch --status-addr host:1", "launch --status-host x:1", "launch --status-host a/b",
		"launch --password short", "lab up --password short", "launch --password a --password-file " + empty, "launch --password-file " + empty, "launch --password-file /nowhere/at/all",
		"launch --docker-api x", "launch --plugin-socket x", "launch --plugin=false --proxy", "launch -H x", "launch -H tcp://0.0.0.0:1", "launch -H tcp://0.0.0.0:1 --tls --tlscert c --tlskey k",
		"launch --tls", "launch --tlsverify --tlscert c --tlskey k", "launch --hostname-match (", "env x", "config x",
		"launch --accept-password-file " + empty, "launch --protocol-min 3 --protocol-max 2",
		"lab up x", "lab up --hosts 0", "lab up --hosts 251", "lab up --topology ring", "lab up --underlay-mtu 10", "lab up --name A",
		"lab up -- --mtu 10", "lab up -- --bogus", "lab down x", "lab down --name ''", "lab list x", "lab exec", "lab exec h1", "lab exec 1 -- true",
		"lab run h1", "lab run h1 a/b", "lab run h1 c x", "lab run h1 c --", "lab cut h1", "lab cut h1 h1", "lab cut h1 h2/c", "lab heal h1 h2 h3",
		"lab kill", "lab kill x", "lab launch", "lab launch x", "lab launch h1 --mtu 10", "lab launch h1 -- --name x", "lab demo x", "lab bench --rounds 0", "lab bench --paths x", "lab bench --paths nebula", "lab bench --paths=", "lab bench --time 1ns", "lab bench --only nothing-of-it",
	}
	for _, line := range lines {
		var args []string
		for _, a := range strings.Fields(line) {
			args = append(args, strings.Trim(a, "'"))
		}
		code, stdout, stderr := weft(args...)
		if code != ExitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "weft") {
			t.Errorf("weft %s: exit code %d, stdout %q, stderr %q; want exit code 2 and one line on stderr", line, code, stdout, stderr)
		}
	}
}

func TestMessagesOfWrongUse(t *testing.T) {
	var b strings.Builder
	for _, line := range []string{
		"bogus", "statsu", "attach", "attach web --netns /x", "attach 10.32.0.0/24 --netns /x", "launch --mtu 10", "launch --resume h1",
		"launch --ipalloc-range 10.0.0.1/8", "launch --http-addr 127.0.0.1:6784", "status bogus", "lab exec web -- true", "report -f {{",
		"dns-add 10.0.0.1", "launch --dns-listen-address 10.0.0.300:53",
	} {
		_, _, stderr := weft(strings.Fields(line)...)
		b.WriteString("$ weft " + line + "\n" + stderr)
	}
	golden(t, "wrong-use.txt", b.String())
}

// A peer that nobody knows is not removed, and the command says so.
func TestRemovalOfAnUnknownPeer(t *testing.T) {
	b := &fakeBackend{report: someReport()}
	code, stdout, stderr := weft("rmpeer", "unknown", "--socket", serve(t, b))
	if code != ExitFailed || stdout != "" || !strings.Contains(stderr, "unknown: no such peer owns addresses") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestHelp(t *testing.T) {
	var b strings.Builder
	for _, line := range []string{"", "help attach", "lab --help", "lab up -h"} {
		code, stdout, stderr := weft(strings.Fields(line)...)
		if code != ExitOK || stderr != "" {
			t.Errorf("weft %s: exit code %d, stderr %q", line, code, stderr)
		}
		b.WriteString("$ weft " + line + "\n" + stdout + "\n")
	}
	golden(t, "help.txt", b.String())
}

func TestNotRunning(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "weft.sock")
	for _, line := range []string{"status", "report", "ps", "connect h1", "forget h1", "rmpeer x", "prime", "attach --netns /x", "detach --netns /x", "expose", "hide",
		"dns-add x", "dns-remove x", "dns-lookup x", "dns-args"} {
		code, stdout, stderr := weft(append(strings.Fields(line), "--socket", socket)...)
		want := "weft is not running on this host (no socket at " + socket + "); start it with: weft launch\n"
		if code != ExitFailed || stdout != "" || stderr != want {
			t.Errorf("weft %s: exit code %d, stdout %q, stderr %q", line, code, stdout, stderr)
		}
	}
	if code, stdout, _ := weft("stop", "--socket", socket); code != ExitOK || stdout != "weft was not running\n" {
		t.Errorf("weft stop: exit code %d, %q", code, stdout)
	}
	if code, stdout, stderr := weft("version", "--socket", socket); code != ExitOK || strings.Count(stdout, "\n") != 1 || stderr != "" {
		t.Errorf("weft version: exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestViews(t *testing.T) {
	socket := serve(t, &fakeBackend{report: someReport()})
	var b strings.Builder
	for _, line := range []string{
		"status", "status targets", "status connections", "status peers", "status dns", "status ipam",
		"status bindings", "status bindings h2", "status bindings 02:00:00:00:00:01", "status bindings 02:11:22:33:44:88", "status bindings ::ffff:10.32.0.1", "ps", "ps /run/netns/web", "ps db", "ps 0123", "ps fedcba987654", "ps shop/web-0",
		"report -f {{.Router.Name}}", "report -f {{println .Router.Name}}", "report -f {{json .Router.Targets}}", "report",
	} {
		args := strings.Fields(line)
		if i := slices.Index(args, "-f"); i >= 0 {
			args = append(args[:i+1], strings.Join(args[i+1:], " "))
		}
		code, stdout, stderr := weft(append(args, "--socket", socket)...)
		if code != ExitOK || stderr != "" {
			t.Errorf("weft %s: exit code %d, stderr %q", line, code, stderr)
		}
		b.WriteString("$ weft " + line + "\n" + stdout)
	}
	golden(t, "views.txt", b.String())
}

func TestRequests(t *testing.T) {
	parse := func(s string) api.Address {
		a, err := api.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		line   string
		want   any
		stdout string
	}{
		{"attach --netns /run/netns/web", api.AttachRequest{Netns: "/run/netns/web"}, "10.32.0.1 10.32.0.2\n"},
		{"attach net:default 10.1.0.5/24 --pid 42", api.AttachRequest{Netns: "/proc/42/ns/net", Addresses: []api.Address{parse("net:default"), parse("10.1.0.5/24")}}, "10.32.0.1 10.32.0.2\n"},
		{"attach --netns /x net:fd00::/64", api.AttachRequest{Netns: "/x", Addresses: []api.Address{parse("net:fd00::/64")}}, "10.32.0.1 10.32.0.2\n"},
		{"attach web", api.AttachRequest{Container: "web"}, "10.32.0.1 10.32.0.2\n"},
		{"attach net:default 10.1.0.5/24 0123abcd", api.AttachRequest{Container: "0123abcd", Addresses: []api.Address{parse("net:default"), parse("10.1.0.5/24")}}, "10.32.0.1 10.32.0.2\n"},
		{"attach --allow-spoof web", api.AttachRequest{Container: "web", AllowSpoof: true}, "10.32.0.1 10.32.0.2\n"},
		{"attach --without-dns --rewrite-hosts --no-multicast-route --add-host a:10.0.0.1 --add-host b:fd00::1 web", api.AttachRequest{
			Container: "web", WithoutDNS: true, RewriteHosts: true, NoMulticastRoute: true, AddHosts: []string{"a:10.0.0.1", "b:fd00::1"}}, "10.32.0.1 10.32.0.2\n"},
		{"detach 10.1.0.5/24 web", api.AttachRequest{Container: "web", Addresses: []api.Address{parse("10.1.0.5/24")}}, "10.32.0.1\n"},
		{"detach ip:10.1.0.5/24 --netns /x", api.AttachRequest{Netns: "/x", Addresses: []api.Address{parse("10.1.0.5/24")}}, "10.32.0.1\n"},
		{"expose --without-masquerade net:10.1.0.0/24", api.ExposeRequest{Addresses: []api.Address{parse("net:10.1.0.0/24")}, WithoutMasquerade: true}, "10.32.0.1\n"},
		{"expose", api.ExposeRequest{}, "10.32.0.1\n"},
		{"hide", api.ExposeRequest{}, ""},
		{"attach --netns /x --hostname web", api.AttachRequest{Netns: "/x", Hostname: "web"}, "10.32.0.1 10.32.0.2\n"},
		{"expose -h gw.weft.internal", api.ExposeRequest{Hostname: "gw.weft.internal"}, "10.32.0.1\n"},
		{"dns-add netns:1", api.NameRequest{Container: "netns:1"}, ""},
		{"dns-add 10.0.0.1 fd00::1 /run/netns/web -h web", api.NameRequest{Container: "/run/netns/web", Hostname: "web", Addresses: addrs("10.0.0.1", "fd00::1")}, ""},
		{"dns-add 192.0.2.1 -h old.weft.internal", api.NameRequest{Hostname: "old.weft.internal", Addresses: addrs("192.0.2.1")}, ""},
		{"dns-remove -h old", api.NameRequest{Hostname: "old"}, ""},
		{"dns-remove ::ffff:10.0.0.1 netns:1", api.NameRequest{Container: "netns:1", Addresses: addrs("10.0.0.1")}, ""},
		{"dns-lookup web.weft.internal", api.LookupRequest{Name: "web.weft.internal"}, "10.32.0.1\nfd00::1\n"},
		{"connect h2 h3:7000", api.PeersRequest{Peers: []string{"h2", "h3:7000"}}, ""},
		{"connect --replace", api.PeersRequest{Replace: true}, ""},
		{"forget h2", api.PeersRequest{Peers: []string{"h2"}}, ""},
		{"rmpeer h2", api.PeersRequest{Peers: []string{"h2"}, Operator: true}, "262144 IPs taken over from h2\n"},
		{"adopt 0123", api.AdoptRequest{Ring: "0123"}, "The adoption of ring 0123 is decided.\n"},
		{"adopt --here 0123", api.AdoptRequest{Ring: "0123", Here: true}, ""},
		{"ban h2 h3", api.BanRequest{Peers: []string{"h2", "h3"}}, ""},
		{"unban h2", api.BanRequest{Peers: []string{"h2"}, Unban: true}, ""},
		{"prime", "prime", ""},
		{"stop", "stop", ""},
		{"reset", "reset", ""},
	} {
		b := &fakeBackend{report: someReport()}
		code, stdout, stderr := weft(append(strings.Fields(c.line), "--socket", serve(t, b))...)
		if code != ExitOK || stdout != c.stdout || stderr != "" {
			t.Errorf("weft %s: exit code %d, stdout %q, stderr %q", c.line, code, stdout, stderr)
		}
		if len(b.calls) != 1 || !equal(b.calls[0], c.want) {
			t.Errorf("weft %s: asked %+v, want %+v", c.line, b.calls, c.want)
		}
	}
}

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// equal compares requests; no addresses and an empty list of addresses are equal.
func equal(a, b any) bool {
	switch x := a.(type) {
	case api.AttachRequest:
		y, ok := b.(api.AttachRequest)
		return ok && x.Netns == y.Netns && x.Container == y.Container && x.Hostname == y.Hostname && slices.Equal(x.Addresses, y.Addresses) &&
			x.NoMulticastRoute == y.NoMulticastRoute && x.AllowSpoof == y.AllowSpoof && x.WithoutDNS == y.WithoutDNS && x.RewriteHosts == y.RewriteHosts && slices.Equal(x.AddHosts, y.AddHosts)
	case api.ExposeRequest:
		y, ok := b.(api.ExposeRequest)
		return ok && x.WithoutMasquerade == y.WithoutMasquerade && x.Hostname == y.Hostname && slices.Equal(x.Addresses, y.Addresses)
	case api.NameRequest:
		y, ok := b.(api.NameRequest)
		return ok && x.Container == y.Container && x.Hostname == y.Hostname && slices.Equal(x.Addresses, y.Addresses)
	case api.PeersRequest:
		y, ok := b.(api.PeersRequest)
		return ok && x.Replace == y.Replace && x.Force == y.Force && slices.Equal(x.Peers, y.Peers)
	case api.BanRequest:
		y, ok := b.(api.BanRequest)
		return ok && x.Unban == y.Unban && slices.Equal(x.Peers, y.Peers)
	default:
		return a == b
	}
}

func TestDNSArgs(t *testing.T) {
	report := someReport()
	socket := serve(t, &fakeBackend{report: report})
	for line, want := range map[string]string{
		"":                                      "--dns=172.17.0.1 --dns-search=weft.internal\n",
		"-d --name web nginx":                   "--dns=172.17.0.1 --dns-search=weft.internal --hostname=web.weft.internal\n",
		"-it --rm --dns-search x --name=web b":  "--dns=172.17.0.1 --hostname=web.weft.internal\n",
		"--name web -h db.weft.internal -e A=B": "--dns=172.17.0.1 --dns-search=weft.internal\n",
		"nginx --name web":                      "--dns=172.17.0.1 --dns-search=weft.internal\n",
		"--bogus --name":                        "--dns=172.17.0.1 --dns-search=weft.internal\n",
	} {
		code, stdout, stderr := weft(append([]string{"--socket", socket, "dns-args"}, strings.Fields(line)...)...)
		if code != ExitOK || stdout != want || stderr != "" {
			t.Errorf("weft dns-args %s: exit code %d, %q, %q", line, code, stdout, stderr)
		}
	}
	for address, want := range map[string]string{"": "no address to listen on", "10.0.0.1:5353": "can only use port 53"} {
		report.DNS.Address = address
		if code, stdout, stderr := weft("dns-args", "--socket", socket); code != ExitFailed || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("with the server at %q: exit code %d, %q, %q", address, code, stdout, stderr)
		}
	}
	report.DNS = nil
	if code, stdout, stderr := weft("dns-args", "--socket", socket); code != ExitOK || stdout+stderr != "" {
		t.Errorf("without DNS: exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestErrorsOfTheRouterDecideTheExitCode(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   int
		stderr string
	}{
		{errors.New("no space:\n  all of it is h2's"), ExitFailed, "weft: no space: all of it is h2's\n"},
		{&api.Error{Class: api.Usage, Text: "outside the range"}, ExitUsage, "weft: outside the range\n"},
		{&api.Error{Class: api.Unavailable, Text: "not yet"}, ExitFailed, "weft: not yet\n"},
	} {
		socket := serve(t, &fakeBackend{report: someReport(), err: c.err})
		code, _, stderr := weft("attach", "--netns", "/x", "--socket", socket)
		if code != c.code || stderr != c.stderr {
			t.Errorf("%v: exit code %d, stderr %q", c.err, code, stderr)
		}
	}
}

func TestVersionNamesARouterOfAnotherVersion(t *testing.T) {
	socket := serve(t, &fakeBackend{})
	if code, stdout, _ := weft("version", "--socket", socket); code != ExitOK || !strings.HasSuffix(stdout, "\nrouter 9.9\n") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
}

func TestDoctorTellsWhatTheRouterReports(t *testing.T) {
	var b strings.Builder
	mute := &api.DNS{Listening: []api.DNSListener{{Fault: "there is no interface docker0"}, {Fault: "interface weft has no address"}}}
	for _, f := range append(routerFindings(someReport()), dnsFindings(mute)...) {
		b.WriteString(string(f.verdict) + " " + f.subject + ": " + f.text + "\n")
	}
	golden(t, "doctor.txt", b.String())
}
