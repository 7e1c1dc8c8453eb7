package announce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32, byte(n >> 8), byte(n)}) }

// run calls Due whenever Next says so, until a time, and returns what was announced, when.
func run(s *Schedule, until time.Time) (sent map[string][]time.Duration) {
	sent = make(map[string][]time.Duration)
	for next := s.Next(); !next.IsZero() && !next.After(until); next = s.Next() {
		for port, as := range s.Due(next) {
			for _, a := range as {
				what := fmt.Sprintf("%s at %s", a, port)
				sent[what] = append(sent[what], next.Sub(start))
			}
		}
	}
	return sent
}

func TestSchedule(t *testing.T) {
	var s Schedule
	if !s.Next().IsZero() || len(s.Due(start)) > 0 {
		t.Error("nothing is held, and something is due")
	}
	s.Hold(start, map[netip.Addr]string{addr(1): "p1"})
	s.Hold(start.Add(500*time.Millisecond), map[netip.Addr]string{addr(1): "p1", addr(2): "p2"})
	got := run(&s, start.Add(time.Hour))
	if want := after[:]; !slices.Equal(got["10.32.0.1 at p1"], want) || len(got["10.32.0.2 at p2"]) != len(want) || len(got) != 2 {
		t.Errorf("announced %v", got)
	}
	if got["10.32.0.2 at p2"][0] != 1500*time.Millisecond {
		t.Errorf("the second one was announced first after %v", got["10.32.0.2 at p2"][0])
	}
	if !s.Next().IsZero() {
		t.Error("it never ends")
	}
}

// An address that leaves is not announced any more, and begins again at another port.
func TestAddressMoves(t *testing.T) {
	var s Schedule
	s.Hold(start, map[netip.Addr]string{addr(1): "p1", addr(2): "p2"})
	run(&s, start.Add(4*time.Second))
	s.Hold(start.Add(4*time.Second), map[netip.Addr]string{addr(2): "p3"})
	got := run(&s, start.Add(time.Hour))
	if len(got) != 1 || len(got["10.32.0.2 at p3"]) != len(after) || got["10.32.0.2 at p3"][0] != 5*time.Second {
		t.Errorf("announced %v", got)
	}
}

// A host that starts with many containers does not send all announcements at once, and a
// driver that is late sends none twice.
func TestMany(t *testing.T) {
	var s Schedule
	ports := make(map[netip.Addr]string)
	for n := range 1000 {
		ports[addr(n)] = fmt.Sprint("p", n)
	}
	s.Hold(start, ports)
	count := 0
	last := start
	for next := s.Next(); !next.IsZero(); next = s.Next() {
		if next.Before(last) {
			t.Fatalf("%v comes after %v", next, last)
		}
		due := s.Due(next)
		if len(due) == 0 || len(due) > maxDue {
			t.Fatalf("%d are due at once", len(due))
		}
		count, last = count+len(due), next
	}
	if count != 1000*len(after) || last.Sub(start) > after[len(after)-1]+2*time.Second {
		t.Errorf("%d announcements, the last after %v", count, last.Sub(start))
	}
	s.Hold(last, map[netip.Addr]string{addr(1): "other"})
	late := last.Add(time.Minute)
	if due := s.Due(late); !maps.EqualFunc(due, map[string][]netip.Addr{"other": {addr(1)}}, slices.Equal[[]netip.Addr]) || !s.Next().IsZero() {
		t.Errorf("a minute late: %v, next %v", due, s.Next())
	}
}
