package cmd

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
)

// reportOfOne has one of each thing that a view counts.
func reportOfOne() *api.Report {
	one := netip.MustParsePrefix("10.32.0.1/32")
	return &api.Report{
		Ready: true, Version: "9.9",
		Router: api.Router{
			Name: "02:00:00:00:00:01", NickName: "h1", Encryption: true, PeerConnections: api.PeerConnections{Established: 1},
			Peers: []api.Peer{{Name: "02:00:00:00:00:01", NickName: "h1", OmittedConnections: 1}},
		},
		IPAM: &api.IPAM{Status: "ready", Range: one, RangeNumIPs: 1, DefaultSubnet: one, Quorum: 1,
			Voters: []api.Voter{{Peer: "02:00:00:00:00:01", Reachable: true}},
			Owners: []api.Owner{{Peer: "02:00:00:00:00:02", NumIPs: 1}},
			Votes:  []api.Vote{{Kind: api.VoteBan, Peer: "02:00:00:00:00:09", Needed: 1}},
			Kept: []api.KeptIPs{{Peer: "02:00:00:00:00:03", NumIPs: 1, Until: time.Date(2030, 1, 1, 15, 4, 5, 0, time.Local)},
				{Peer: "02:00:00:00:00:04", NumIPs: 1, Open: true}}},
		DNS:    &api.DNS{Domain: "weft.internal", Address: "172.17.0.1:53"},
		Docker: &api.Docker{Host: "unix:///var/run/docker.sock", Containers: 1},
		Omitted: map[string]int{"Connections": 1, "Relayed": 1, "Bindings.Entries": 1, "Multicast.Groups": 1,
			"DNS.Entries": 1},
	}
}

// wrongForm finds a plural behind the number 1.
var wrongForm = regexp.MustCompile(`(^|[^0-9.:])1 (more |of 1 |established |pending )?(containers run|decide|[a-z]*[^ s]s|IPs)\b`)

// Of one thing weft speaks in the singular.
func TestOneIsSingular(t *testing.T) {
	many := reportOfOne()
	many.Router.PeerConnections, many.Omitted["Peers"] = api.PeerConnections{Established: 2, Pending: 1}, 1
	var b strings.Builder
	for _, r := range []*api.Report{reportOfOne(), many} {
		socket := serve(t, &fakeBackend{report: r})
		for _, view := range append(api.Views(), "") {
			_, stdout, stderr := weft(append([]string{"status", "--socket", socket}, strings.Fields(view)...)...)
			b.WriteString(stdout + stderr)
		}
		for _, f := range routerFindings(r) {
			b.WriteString(f.text + "\n")
		}
	}
	behind := &api.Rotation{Peers: make([]api.RotationPeer, maxShownBehind+1)}
	for i := range behind.Peers {
		behind.Peers[i] = api.RotationPeer{Peer: "02:00:00:00:00:02", Step: api.StepBehind, Needed: true}
	}
	b.WriteString(behindText(behind) + "\n")
	_, stdout, _ := weft("rmpeer", "h2", "--socket", serve(t, &fakeBackend{report: reportOfOne(), inherited: 1}))
	b.WriteString(stdout)
	for line := range strings.Lines(b.String()) {
		if wrongForm.MatchString(strings.ReplaceAll(line, "1 decides", "")) {
			t.Errorf("of one thing: %q", line)
		}
	}
	for _, want := range []string{"1 IP ", "1 established connection)", "1 pending connection)", "1 container runs", "and 1 more binding\n", "1 other\n", "1 IP taken over", "1 peer\n", "1 of 10.32.0.1/32 belongs to"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
}
