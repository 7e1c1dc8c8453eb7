//go:build kube

package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// With a second address range pods have an address of each family. Pods and Services are reachable
// by both, and policies apply to both.
func TestDualStack(t *testing.T) {
	const range6 = "fd32:7765:6674::/48"
	k := newClusterWithoutWeft(t, "nftables", range6)
	k.install("IPALLOC_RANGE6=" + range6)
	one, two := k.dualPod("one", "n1"), k.dualPod("two", "n2")
	k.dualPod("same", "n2")
	for family, to := range two {
		k.waitAnswer("a pod reaches another by "+family, k.fromPod("one"), url(to, 8080), "two", one[family])
		k.waitAnswer("a pod reaches one of its node by "+family, k.fromPod("same"), url(to, 8080), "two", "")
		k.waitAnswer("a node reaches a pod by "+family, k.fromHost(k.Nodes[0].Host), url(to, 8080), "two", "")
	}

	k.applyText(fmt.Sprintf(service, "both", "two", "ClusterIP", ", ipFamilyPolicy: RequireDualStack"))
	services := k.families("service", "both", "{.spec.clusterIPs[*]}")
	for family, to := range services {
		k.waitAnswer("a pod reaches a Service by "+family, k.fromPod("one"), url(to, 80), "two", one[family])
		k.waitAnswer("a pod reaches a Service on its node by "+family, k.fromPod("same"), url(to, 80), "two", "")
	}

	k.applyText(isolate)
	for family, to := range two {
		for _, to := range []string{url(to, 8080), url(services[family], 80)} {
			k.waitRefused("one", to)
			k.waitAnswer("same is allowed to reach "+to, k.fromPod("same"), to, "two", "")
		}
	}
}

// dualPod starts a server pod on a node and returns its addresses by family.
func (k *kube) dualPod(name, node string) map[string]string {
	k.t.Helper()
	k.pod(name, node, "")
	return k.families("pod", name, "{.status.podIPs[*].ip}")
}

// families returns the addresses of an object at a JSON path, by family. There must be one of each
// family.
func (k *kube) families(kind, name, path string) map[string]string {
	k.t.Helper()
	words := strings.Fields(k.kubectl("get", kind, name, "-o", "jsonpath="+path))
	all := make(map[string]string)
	for _, w := range words {
		a, err := netip.ParseAddr(w)
		if err != nil {
			k.t.Fatal(err)
		}
		family := "IPv4"
		if a.Is6() {
			family = "IPv6"
		}
		all[family] = w
	}
	if len(all) != 2 || len(words) != 2 {
		k.t.Fatalf("%s %s has addresses %v, want one of each family", kind, name, words)
	}
	return all
}
