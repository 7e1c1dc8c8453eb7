package daemon

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/api"
)

// twoRanges are the addresses of a router with an IPv4 and an IPv6 range.
func twoRanges() (as addresses, v4, v6 *fakeAddresses) {
	v4, v6 = newFakeAddresses(), newFakeAddresses()
	v6.addrRange = netip.MustParsePrefix("fd00::/64")
	return addresses{v4, v6}, v4, v6
}

func TestAddressesChooseTheRange(t *testing.T) {
	as, v4, v6 := twoRanges()
	got, fresh, err := as.giveAll(t.Context(), "a", parse(t, "net:default", "net:fd00::/64", "10.32.7.7/16", "192.168.5.5/24"))
	if err != nil || len(got) != 4 || len(fresh) != 3 {
		t.Fatalf("got %v, fresh %v, %v; want four addresses, of which three are of a range", got, fresh, err)
	}
	if v4.count() != 2 || v6.count() != 1 {
		t.Errorf("%d IPv4 and %d IPv6 addresses are given", v4.count(), v6.count())
	}
	if all := as.Owners()["a"]; len(all) != 3 {
		t.Errorf("the owner has %v in all ranges", all)
	}
	if _, err := as.Allocate(t.Context(), "a", netip.MustParsePrefix("172.16.0.0/24")); api.ClassOf(err) != api.Usage {
		t.Errorf("a subnet outside: %v", err)
	}
	if _, _, err := (addresses{}).give(t.Context(), "a", api.Address{}); api.ClassOf(err) != api.Unavailable {
		t.Errorf("without a range: %v", err)
	}
	if err := as.take("a", got); err != nil || v4.count()+v6.count() != 0 {
		t.Errorf("released all: %v, %d and %d are left", err, v4.count(), v6.count())
	}
	if err := as.take("a", got); err != nil {
		t.Errorf("released twice: %v", err)
	}
}

// Docker's driver sees both ranges.
func TestAddressesOfADriver(t *testing.T) {
	as, _, _ := twoRanges()
	for _, v6 := range []bool{false, true} {
		if p, ok := as.Default(v6); !ok || p.Addr().Is6() != v6 {
			t.Errorf("default subnet of IPv6 %v: %v, %v", v6, p, ok)
		}
	}
	if _, ok := (addresses{}).Default(false); ok {
		t.Error("there is a default subnet without a range")
	}
	for subnet, want := range map[string]bool{"10.32.1.0/24": true, "fd00::/80": true, "10.0.0.0/8": false, "192.168.0.0/24": false} {
		if err := as.Check(netip.MustParsePrefix(subnet)); (err == nil) != want {
			t.Errorf("subnet %s: %v", subnet, err)
		}
	}
}

func TestSettleMakesTheAllocatorsAgree(t *testing.T) {
	as, v4, _ := twoRanges()
	has := []netip.Prefix{netip.MustParsePrefix("10.32.0.9/16"), netip.MustParsePrefix("192.168.5.5/24")}
	if err := as.Claim(t.Context(), "a", netip.MustParsePrefix("10.32.0.5/16")); err != nil {
		t.Fatal(err)
	}
	if err := as.settle(t.Context(), "a", has); err != nil {
		t.Fatal(err)
	}
	if got := v4.Lookup("a"); !slices.Equal(got, has[:1]) {
		t.Errorf("the allocator has %v, want %v", got, has[:1])
	}
}
