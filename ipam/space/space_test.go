package space

import (
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func hosts(t testing.TB, s string) addr.Range {
	t.Helper()
	r, err := addr.Hosts(pfx(s))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLowestFreeAddressComesFirst(t *testing.T) {
	var s Space
	s.SetOwned([]addr.Range{addr.Of(pfx("10.0.0.0/29"))})
	h := hosts(t, "10.0.0.0/29")
	for _, want := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"} {
		if a, ok := s.Allocate(h); !ok || a != ip(want) {
			t.Fatalf("allocated %v, %v; want %s", a, ok, want)
		}
	}
	if a, ok := s.Allocate(h); ok {
		t.Fatalf("allocated %v of a full subnet", a)
	}
	s.Release(ip("10.0.0.3"))
	if a, _ := s.Allocate(h); a != ip("10.0.0.3") {
		t.Fatalf("allocated %v, want the one released", a)
	}
}

func TestEndOfFamily(t *testing.T) {
	var s Space
	s.SetOwned([]addr.Range{addr.Of(pfx("255.255.255.248/29"))})
	for n := range 6 {
		if a, ok := s.Allocate(hosts(t, "255.255.255.248/29")); !ok {
			t.Fatalf("%d: %v", n, a)
		}
	}
	s.Take(ip("255.255.255.255"))
	if a, ok := s.Allocate(addr.Single(ip("255.255.255.255"))); ok {
		t.Fatalf("allocated %v twice", a)
	}
}

func TestDonation(t *testing.T) {
	for _, c := range []struct {
		owned  string
		used   []string
		subnet string
		want   string
	}{
		{"10.0.0.0/24", nil, "10.0.0.0/24", "10.0.0.192/26"}, // half of 254 is 127
		{"10.0.0.0/24", nil, "10.0.0.0/8", "10.0.0.128/25"},
		{"10.0.0.0/30", []string{"10.0.0.1"}, "10.0.0.0/30", "10.0.0.2/32"},
		{"10.0.0.0/30", []string{"10.0.0.1", "10.0.0.2"}, "10.0.0.0/30", "none"},
		{"10.0.0.0/24", nil, "10.0.1.0/24", "none"},
		{"10.0.0.255/32", nil, "10.0.0.0/24", "none"},
		{"fd00::/64", nil, "fd00::/64", "fd00::8000:0:0:0/65"},
		{"::/0", nil, "::/0", "8000::/1"},
	} {
		var s Space
		s.SetOwned([]addr.Range{addr.Of(pfx(c.owned))})
		for _, u := range c.used {
			s.Take(ip(u))
		}
		got, ok := s.Donation(pfx(c.subnet))
		if got.String() != c.want || ok != (c.want != "none") {
			t.Errorf("owning %s, asked for %s: gives %v, want %s", c.owned, c.subnet, got, c.want)
		}
	}
}

// twin is the slow, obvious Space: two bools for each address of 10.0.0.0/25.
type twin struct{ owned, used [128]bool }

func at(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

func TestAgainstSlowTwin(t *testing.T) {
	rng := seed.Rand(t)
	for range 300 {
		var s Space
		var tw twin
		for range 200 {
			i := rng.IntN(128)
			switch rng.IntN(6) {
			case 0: // the ring changes
				var ranges []addr.Range
				tw.owned = [128]bool{}
				for range rng.IntN(5) {
					lo := rng.IntN(128)
					hi := min(lo+rng.IntN(40), 127)
					ranges = append(ranges, addr.Range{First: at(lo), Last: at(hi)})
					for j := lo; j <= hi; j++ {
						tw.owned[j] = true
					}
				}
				s.SetOwned(addr.Normal(ranges))
			case 1:
				if s.Take(at(i)) == tw.used[i] {
					t.Fatalf("take %v", at(i))
				}
				tw.used[i] = true
			case 2:
				if s.Release(at(i)) != tw.used[i] {
					t.Fatalf("release %v", at(i))
				}
				tw.used[i] = false
			case 3:
				if s.Uses(at(i)) != tw.used[i] || s.Owns(at(i)) != tw.owned[i] {
					t.Fatalf("state of %v", at(i))
				}
			case 4:
				want := -1
				for j := 1; j < 127 && want < 0; j++ {
					if tw.owned[j] && !tw.used[j] {
						want = j
					}
				}
				a, ok := s.Allocate(hosts(t, "10.0.0.0/25"))
				if ok != (want >= 0) || ok && a != at(want) {
					t.Fatalf("allocated %v, %v; want %d", a, ok, want)
				}
				if ok {
					tw.used[want] = true
				}
			case 5:
				free := 0
				for j := 1; j < 127; j++ {
					if tw.owned[j] && !tw.used[j] {
						free++
					}
				}
				d, ok := s.Donation(pfx("10.0.0.0/25"))
				if ok != (free > 0) {
					t.Fatalf("donation %v with %d free", d, free)
				}
				if !ok {
					break
				}
				if n := d.Size().Uint64(); int(n) > (free+1)/2 {
					t.Fatalf("donation %v of %d free", d, free)
				}
				for a := d.First; d.Contains(a); a = a.Next() {
					if j := a.As4()[3]; !tw.owned[j] || tw.used[j] {
						t.Fatalf("donation %v: %v is not free", d, a)
					}
				}
			}
		}
	}
}

func BenchmarkAllocate(b *testing.B) {
	var s Space
	s.SetOwned([]addr.Range{addr.Of(pfx("fd00::/16"))})
	h := hosts(b, "fd00::/16")
	for b.Loop() {
		s.Allocate(h)
	}
}
