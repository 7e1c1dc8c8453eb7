package netdev

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A kernel that is started with ipv6.disable=1 answers for IPv6 what every kernel answers for a
// family that it lacks.
func TestOwnRoutesOfAFamilyThatTheKernelLacks(t *testing.T) {
	h, err := here()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	const lacking = 12 // DECnet, which Linux removed
	if _, err := h.RuleListFiltered(lacking, &netlink.Rule{Table: ownTable}, netlink.RT_FILTER_TABLE); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Fatalf("the rules of a family that the kernel lacks: %v, want %v", err, unix.EAFNOSUPPORT)
	}
	o := OwnRoutes{VXLAN: 6784, Hops: map[netip.Addr]OwnHop{netip.MustParseAddr("2001:db8::2"): {Hop: Hop{Ifindex: 1}, MTU: 1500}}}
	var d ownDiff
	if err := o.diffFamily(h, lacking, &d); err != nil || !reflect.DeepEqual(d, ownDiff{}) {
		t.Errorf("it changes %+v, %v, want nothing", d, err)
	}
}
