//go:build kube

package kube

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// With the setting, ClusterNetworkPolicies are enforced as soon as their kind is defined: those of
// tier Admin before the policies of namespaces, those of tier Baseline after them.
func TestClusterPolicies(t *testing.T) {
	k := newClusterWithoutWeft(t, "iptables")
	k.install("CLUSTER_POLICIES=1")
	one, two := k.pod("one", "n1", ""), k.pod("two", "n2", "")
	reaches := func(when string) {
		t.Helper()
		k.waitAnswer(when+" one reaches two", k.fromPod("one"), url(two, 8080), "two", one)
	}
	reaches("without the kind")

	k.defineClusterPolicies("standard")
	k.applyText(fmt.Sprintf(clusterPolicy, "guard", "Admin", "Deny"))
	k.waitRefused("one", url(two, 8080))
	k.waitUntil("policy trace gives the reason", func() error {
		out, err := k.weft("n2", "policy", "trace", "one", "two", "8080")
		if !strings.Contains(out, "denied by cluster policy guard, tier Admin") {
			err = errors.Join(err, errors.New(out))
		}
		return err
	})
	k.applyText(fmt.Sprintf(clusterPolicy, "guard", "Admin", "Accept"))
	reaches("with another action")

	k.applyText(isolate)
	reaches("despite a policy of the namespace")
	k.kubectl("delete", "clusternetworkpolicy", "guard")
	k.waitRefused("one", url(two, 8080))

	k.kubectl("delete", "networkpolicy", "isolate")
	k.applyText(fmt.Sprintf(clusterPolicy, "base", "Baseline", "Deny"))
	k.waitRefused("one", url(two, 8080))
	k.kubectl("delete", "clusternetworkpolicy", "base")
	reaches("without any")
}

// clusterPolicy is a policy with one rule for traffic from any pod to server pods.
const clusterPolicy = `apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: %s}
spec:
  tier: %s
  priority: 10
  subject: {pods: {podSelector: {matchLabels: {app: server}}}}
  ingress: [{action: %s, from: [{namespaces: {}}]}]
`

// clusterPolicyModule is the module with the kind, in the version that weft is built with.
const clusterPolicyModule = "sigs.k8s.io/network-policy-api"

// defineClusterPolicies defines the kind, from the channel standard or experimental.
func (k *kube) defineClusterPolicies(channel string) {
	k.t.Helper()
	out, err := exec.CommandContext(k.t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", clusterPolicyModule).Output()
	if err != nil {
		k.t.Fatalf("find module %s: %v", clusterPolicyModule, err)
	}
	k.apply(filepath.Join(strings.TrimSpace(string(out)), "config/crd", channel, "policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	k.kubectl("wait", "--for=condition=Established", "crd/clusternetworkpolicies.policy.networking.k8s.io", "--timeout=60s")
}
