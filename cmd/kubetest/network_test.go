//go:build kube

package kubetest

import "testing"

func TestPodNetwork(t *testing.T) {
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			k := newKube(t, mode)
			k.testPods()
		})
	}
}

func (k *kube) testPods() {
	k.t.Helper()
	one := k.pod("one", "n1", "")
	same := k.pod("same", "n1", "")
	two := k.pod("two", "n2", "")
	for _, c := range []struct{ from, client, to, server string }{
		{"one", one, same, "same"}, {"one", one, two, "two"}, {"two", two, one, "one"},
	} {
		k.answers(c.from, "http://"+c.to+":8080/", func(server, client string) bool { return server == c.server && client == c.client })
	}
}
