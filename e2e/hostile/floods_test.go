package hostile

import (
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// floodTime is how long each flood lasts: long enough for a session to time out.
const floodTime = 5 * time.Second

// floodLabs is how many labs share the floods. Each floods its hosts with one after the
// other, while they still have what the ones before brought.
const floodLabs = 2

// Whatever a member or a stranger floods five honest hosts with, traffic, attaches and
// status go on, no router uses much memory, no session between honest hosts ends, and nobody
// takes addresses. Only weft as it ships can be measured: the race detector costs time and
// memory.
func TestFloodsDoNoHarm(t *testing.T) {
	nstest.RequireRoot(t)
	exe := harness.Shipped(t)
	for i := range floodLabs {
		t.Run("lab", func(t *testing.T) {
			t.Parallel()
			l := harness.New(t, testbed.Config{Hosts: 6, Password: password})
			l.Exe = exe
			s, err := lab.NewSiege(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			for k, f := range hostile.Floods {
				if k%floodLabs == i {
					t.Run(f.Name, func(t *testing.T) { flood(t, s, f) })
				}
			}
		})
	}
}

func flood(t *testing.T, s *lab.Siege, f *hostile.Flood) {
	d, err := s.Run(t.Context(), f.Name, floodTime)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d messages; %d of %d pings lost; attach %v, status %v; %d MB; %.2f CPUs; %.1f %% of the addresses given",
		d.Sent, d.Lost, d.Pings, d.Attach, d.Status, d.Memory>>20, d.CPU, 100*d.Given)
	for _, limit := range d.Broken(f.MaxGiven) {
		t.Error(limit)
	}
}
