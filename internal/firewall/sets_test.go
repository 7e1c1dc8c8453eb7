package firewall_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/firewall"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// A blocklist of many addresses costs a look next to nothing, and what it has is still found.
func TestLargeSet(t *testing.T) {
	nstest.RequireRoot(t)
	ns := nstest.New(t, "fw")
	var list strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&list, "20.0.%d.%d, ", i>>8, i&255)
	}
	load(t, ns, "table ip t { set bl { type ipv4_addr; elements = { "+list.String()+"20.1.0.0 }; }; "+
		"chain f { type filter hook forward priority 0; policy accept; ip saddr @bl drop; ip daddr @bl drop; }; }")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if found := ends(t, ns, leaving); len(found) > 0 {
		t.Errorf("a packet that is not in the list ends in %v", found)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("a look at a list of 20,000 addresses allocates %d KB, want at most 1,024", got>>10)
	}
	load(t, ns, "add element ip t bl { "+leaving.Dst.String()+" }")
	if found := ends(t, ns, leaving); len(found) != 1 {
		t.Errorf("a packet that is in the list ends in %v, want one end", found)
	}
}

// What is not sure of a set is not said.
func TestSetsThatAreNotKnown(t *testing.T) {
	nstest.RequireRoot(t)
	for _, c := range []struct{ name, set, match, want string }{
		{"addresses", `type ipv4_addr; elements = { 20.0.0.0 }`, "ip daddr", "drop"},
		{"intervals", `type ipv4_addr; flags interval; elements = { 20.0.0.0/8 }`, "ip daddr", ""},
		{"pairs", `type ipv4_addr . ipv4_addr; elements = { 20.0.0.0 . 20.0.0.1 }`, "ip saddr . ip daddr", ""},
		{"a wildcard", `type ipv4_addr; elements = { 20.0.0.0, * }`, "ip daddr", ""},
	} {
		ns := nstest.New(t, "fw")
		load(t, ns, "table ip t { set s { "+c.set+"; }; chain f { type filter hook forward priority 0; policy accept; "+c.match+" != @s drop; }; }")
		var got []string
		for _, e := range ends(t, ns, leaving) {
			got = append(got, e.Word)
		}
		if g := strings.Join(got, ", "); g != c.want {
			t.Errorf("%s: ends with %q, want %q", c.name, g, c.want)
		}
	}
}

// All packets of a look see the same rules, and the kernel is asked for them once.
func TestKernelIsASnapshot(t *testing.T) {
	nstest.RequireRoot(t)
	ns := nstest.New(t, "fw")
	load(t, ns, `table ip t { chain f { type filter hook forward priority 0; policy accept; drop; }; }`)
	err := netdev.Do(ns, func() error {
		k, err := firewall.NewKernel()
		if err != nil {
			return err
		}
		for _, p := range []firewall.Packet{bridged4, leaving} {
			found, err := firewall.Ends(k, p, netdev.TableName)
			if err != nil || len(found) != 1 {
				t.Errorf("packet %v ends in %v, %v, want one end", p, found, err)
			}
			load(t, ns, `flush ruleset`)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
