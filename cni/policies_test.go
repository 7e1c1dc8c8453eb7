package cni

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-net/weft/internal/api"
)

func TestPodOf(t *testing.T) {
	addrs := []netip.Prefix{netip.MustParsePrefix("10.32.0.5/12"), netip.MustParsePrefix("fd00::5/64")}
	web := api.PolicyPodRequest{
		Pod: "shop/web", UID: "u", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.5"), netip.MustParseAddr("fd00::5")},
	}
	for _, c := range []struct {
		says, args, iface string
		is                bool
	}{
		{"arguments of containerd", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u", "eth0", true},
		{"in another order", "K8S_POD_UID=u;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop", "eth0", true},
		{"a second interface", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u", "net1", false},
		{"no Kubernetes", "IgnoreUnknown=1", "eth0", false},
		{"nothing", "", "eth0", false},
		{"no namespace", "K8S_POD_NAME=web", "eth0", false},
		{"malformed pairs", ";;=;K8S_POD_NAME", "eth0", false},
	} {
		pod, ok := podOf(&skel.CmdArgs{Args: c.args, IfName: c.iface}, addrs)
		if ok != c.is || ok && !reflect.DeepEqual(pod, web) {
			t.Errorf("%s: %+v, %v", c.says, pod, ok)
		}
	}
}
