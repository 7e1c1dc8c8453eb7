package policy

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"

	"github.com/weft-net/weft/policy/enginetest"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

func TestParsePacket(t *testing.T) {
	for _, p := range []enginetest.Probe{
		{Flow: model.Flow{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: model.TCP, Port: 80}, Sport: 1234},
		{Flow: model.Flow{Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), Protocol: model.SCTP, Port: 80}, Sport: 1234},
		{Flow: model.Flow{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: 1}},
	} {
		packet := p.Frame(make([]byte, 6), make([]byte, 6))[14:]
		f, sport, ok := parsePacket(packet)
		if !ok || f != p.Flow || sport != p.Sport {
			t.Errorf("parsed %+v from %d, want %+v from %d", f, sport, p.Flow, p.Sport)
		}
	}
}

// TestParseExtensions reads the ports behind a hop-by-hop header and in a first fragment, and
// finds none in a later fragment (RFC 8200, section 4).
func TestParseExtensions(t *testing.T) {
	packet := func(offset byte) []byte {
		b := append([]byte{0x60, 0, 0, 0, 0, 20, 0, 64}, make([]byte, 32)...)
		b = append(b, 44, 0, 0, 0, 0, 0, 0, 0)
		return append(append(b, 17, 0, 0, offset, 0, 0, 0, 1), 0x04, 0xd2, 0, 53)
	}
	if f, sport, ok := parsePacket(packet(1)); !ok || f.Protocol != model.UDP || f.Port != 53 || sport != 1234 {
		t.Errorf("first fragment: %+v from %d", f, sport)
	}
	if f, _, ok := parsePacket(packet(9)); !ok || f.Protocol != model.UDP || f.Port != 0 {
		t.Errorf("later fragment: %+v", f)
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add([]byte{0, 0, 0, 86, 8, 0, 10, 0, 'a', 'b', 'c', 0})
	f.Add(append([]byte{0, 0, 0, 86, 32, 0, 9, 0}, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4, 0, 8, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, ok := parseLog(netlink.Message{Header: netlink.Header{Type: msgPacket}, Data: b})
		if ok && (!d.flow.Src.IsValid() || d.flow.Src.Is4() != d.flow.Dst.Is4()) {
			t.Fatalf("parsed %+v", d)
		}
	})
}

// TestReporter checks that a repeated flow is logged once in a while, and that of very many flows
// all are counted but not all are logged.
func TestReporter(t *testing.T) {
	var out bytes.Buffer
	m := newMetrics()
	r := newReporter(slog.New(slog.NewTextHandler(&out, nil)), m)
	c := rules.New(model.NewCluster("here"))
	now := time.Unix(1e9, 0)
	d := denial{flow: model.Flow{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: model.TCP, Port: 80}, sport: 1}
	for range 3 {
		r.report(d, c, now)
	}
	logged := func() int { return strings.Count(out.String(), "flow denied by policy") }
	if logged() != 1 {
		t.Errorf("logged %d times", logged())
	}
	r.report(d, c, now.Add(3*repeatAfter))
	r.report(d, c, now.Add(6*repeatAfter))
	if logged() != 3 {
		t.Errorf("logged %d times after a long time", logged())
	}
	now = now.Add(10 * repeatAfter)
	for i := range 3 * linesBurst {
		d.sport = uint16(1000 + i)
		r.report(d, c, now)
	}
	if logged() != 3+linesBurst {
		t.Errorf("logged %d times", logged())
	}
	d.sport = 1
	r.report(d, c, now.Add(time.Second))
	if !strings.Contains(out.String(), "unreported=100") {
		t.Error("the number of suppressed lines is not logged")
	}
}
