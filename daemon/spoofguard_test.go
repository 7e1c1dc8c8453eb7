package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/kernel"
)

// dropped is what the guard counted: n frames from an address of others.
func dropped(n uint64) (d kernel.GuardDrops) {
	d.Frames[kernel.GuardIPv4], d.Reason, d.Addr = n, kernel.GuardIPv4, netip.MustParseAddr("10.32.0.9")
	return d
}

func newTestSpoofGuard(ports int) (*spoofGuard, *bytes.Buffer) {
	var log bytes.Buffer
	g := &spoofGuard{log: slog.New(slog.NewTextHandler(&log, nil)), ports: make(map[int]netdev.GivenPort), seen: make(map[int]*spoofing)}
	for i := range ports {
		g.ports[i] = netdev.GivenPort{Name: fmt.Sprint("vethwe", i), Index: i, PortUser: netdev.PortUser{
			Owner: fmt.Sprintf("cni:pods:c%d:eth0", i), Name: fmt.Sprint("default/pod", i), Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.32.1.%d/12", i))},
		}}
	}
	return g, &log
}

// A container that floods is named once a minute, and a thousand of them do not fill the log.
func TestSpoofingIsLoggedSeldom(t *testing.T) {
	g, log := newTestSpoofGuard(200)
	now := time.Now()
	drops := make(map[int]kernel.GuardDrops)
	for second := range 120 {
		drops[7] = dropped(uint64(1000 * (second + 1)))
		g.saw(drops, now.Add(time.Duration(second)*time.Second))
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "default/pod7") || !strings.Contains(lines[0], "frames=1000") ||
		!strings.Contains(lines[1], "frames=60000") || !strings.Contains(lines[1], "source address 10.32.0.9") {
		t.Errorf("the log has\n%s", log)
	}
	log.Reset()
	now = now.Add(time.Hour)
	for second := range 60 {
		for i := range 200 {
			drops[i] = dropped(uint64(1e6 + second))
		}
		g.saw(drops, now.Add(time.Duration(second)*time.Second))
	}
	if n := strings.Count(log.String(), "\n"); n != maxSpoofLines {
		t.Errorf("the log has %d lines in a minute, want %d", n, maxSpoofLines)
	}
	// Who stops is not named any more.
	log.Reset()
	g.saw(drops, now.Add(time.Hour))
	g.saw(drops, now.Add(2*time.Hour))
	g.saw(drops, now.Add(100*time.Hour))
	rest := strings.Count(log.String(), "\n")
	for hour := range 20 {
		g.saw(drops, now.Add(time.Duration(101+hour)*time.Hour))
	}
	log.Reset()
	if g.saw(drops, now.Add(1000*time.Hour)); log.Len() > 0 {
		t.Errorf("after %d lines it goes on: %s", rest, log)
	}
}

func TestSpoofingIsReported(t *testing.T) {
	g, _ := newTestSpoofGuard(20)
	now := time.Now()
	g.ports[3] = netdev.GivenPort{Name: "vethwe3", Index: 3, PortUser: netdev.PortUser{AllowSpoof: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.32.1.3/12")}}}
	drops := make(map[int]kernel.GuardDrops)
	for i := 4; i < 12; i++ {
		drops[i] = dropped(uint64(i - 3))
	}
	g.saw(drops, now)
	var r api.Report
	g.report(&r, now)
	if n := len(r.Warnings); n != maxSpoofWarnings+1 || !strings.Contains(r.Warnings[n-1], "3 more") || !strings.Contains(strings.Join(r.Warnings, "\n"), "default/pod4 at port vethwe4") ||
		!strings.Contains(strings.Join(r.Warnings, "\n"), ": 1 frame was dropped, the last 0s ago, for source address ") {
		t.Errorf("warnings %q", r.Warnings)
	}
	if s := r.SpoofGuard.Containers; len(s) != 8 || s[2].Port != "vethwe4" || s[2].Frames["ipv4"] != 1 || s[2].ID != "cni:pods:c4:eth0" || !s[2].Time.Equal(now) {
		t.Errorf("containers %+v", s)
	}
	list := []api.Attachment{
		{ID: api.Exposed, Addresses: []netip.Prefix{netip.MustParsePrefix("10.32.1.4/12")}},
		{ID: "x", Port: "vethwe5"},
		{ID: "of docker", Addresses: []netip.Prefix{netip.MustParsePrefix("10.32.1.6/12")}},
		{ID: "y", Port: "vethwe3"},
	}
	g.mark(list)
	if list[0].Spoofed != 0 || list[1].Spoofed != 2 || list[2].Spoofed != 3 || list[1].AllowSpoof || !list[3].AllowSpoof {
		t.Errorf("attachments %+v", list)
	}
	r = api.Report{}
	if g.report(&r, now.Add(spoofWarns)); len(r.Warnings) > 0 || len(r.SpoofGuard.Containers) != 8 {
		t.Errorf("later: %q, %+v", r.Warnings, r.SpoofGuard)
	}
	// A container that is gone is forgotten.
	delete(drops, 4)
	g.saw(drops, now)
	r = api.Report{}
	if g.report(&r, now); len(r.SpoofGuard.Containers) != 7 {
		t.Errorf("containers %+v", r.SpoofGuard.Containers)
	}
}

// A kernel that refuses the guard connects containers nevertheless, and the status says so.
func TestRefusedSpoofGuardIsReported(t *testing.T) {
	g := &spoofGuard{off: errors.New("open the spoof guard: the kernel refuses"), log: slog.New(slog.DiscardHandler)}
	if err := g.protect(netdev.GivenPort{Name: "vethwe1"}); err != nil {
		t.Error(err)
	}
	if err := g.Guard(t.Context(), api.GuardRequest{Port: "vethwe1"}); err != nil {
		t.Error(err)
	}
	if list := g.objects(&netdev.View{}); list != nil {
		t.Errorf("objects: %+v", list)
	}
	var r api.Report
	g.report(&r, time.Now())
	if !strings.Contains(r.SpoofGuard.Off, "refuses") || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "no spoof guard") {
		t.Errorf("%+v, warnings %q", r.SpoofGuard, r.Warnings)
	}
	g.run(t.Context())
	g.close()
}

func TestDroppedFramesInWords(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	addr := netip.MustParseAddr("fd00::9")
	for reason, want := range map[kernel.GuardReason]string{
		kernel.GuardMAC: "02:00:00:00:00:01 instead of 02:00:00:00:00:02", kernel.GuardIPv6: "source address fd00::9", kernel.GuardARP: "ARP for fd00::9", kernel.GuardND: "discovery for fd00::9",
		kernel.GuardRouter: "redirect", kernel.GuardTagged: "VLAN", kernel.GuardMalformed: "hide",
	} {
		if got := describeDrop(kernel.GuardDrops{Reason: reason, MAC: mac, Addr: addr}, netdev.GivenPort{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", reason, got, want)
		}
	}
	for owner, want := range map[string]string{
		"cni:pods:0123456789abcdef:eth0": "container 0123456789abcdef at port p", "docker:endpoint:1": "a container of Docker's at port p", "netns:7": "the container with network namespace 7 at port p",
	} {
		if got := describeContainer(netdev.GivenPort{Name: "p", PortUser: netdev.PortUser{Owner: owner}}); got != want {
			t.Errorf("%s: %q, want %q", owner, got, want)
		}
	}
}
