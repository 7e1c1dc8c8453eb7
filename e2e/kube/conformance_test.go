//go:build kube && netpol

package kube

import (
	"context"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/image"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

const (
	conformanceImage    = "registry.k8s.io/e2e-test-images/agnhost:2.45"
	conformanceTimeout  = time.Hour
	conformanceFeatures = "ClusterNetworkPolicy,ClusterNetworkPolicyNamedPorts"
	// conformanceOfSCTP are the tests that ask also, or only, for SCTP.
	conformanceOfSCTP = "SCTP|Gress$|PortRange|InlineCIDR|EgressNamedPort"
)

// withoutSCTP is the shell of the tests' image where the kernel has no SCTP: what would serve it
// waits instead, since the pods that all tests share would not be ready otherwise.
const withoutSCTP = `#!/bin/sh
[ "$2" = "/agnhost porter" ] && exec /agnhost pause
exec /bin/sh "$@"
`

// Upstream's conformance tests of ClusterNetworkPolicies as they are released; each is
// a test of its own in the result.
func TestConformance(t *testing.T) {
	k := newClusterWithoutWeft(t, "iptables")
	k.defineClusterPolicies("experimental")
	k.install("CLUSTER_POLICIES=1")
	busybox, err := image.Read("/bin/busybox", "/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	shell := image.File{Path: "/bin/bash", Link: "busybox"}
	args := []string{"-test.v", "-test.run=TestConformance$", "-test.timeout=" + conformanceTimeout.String(), "-supported-features=" + conformanceFeatures}
	if !hasSCTP(t) {
		shell = image.File{Path: "/bin/bash", Body: []byte(withoutSCTP), Mode: 0o755}
		args = append(args, "-test.skip=TestConformance/.*("+conformanceOfSCTP+")")
		t.Logf("the kernel of this machine has no SCTP: tests that match %s are left out", conformanceOfSCTP)
	}
	k.addAgnhost(conformanceImage, busybox, image.File{Path: "/bin/sh", Link: "busybox"}, shell)

	ctx, cancel := context.WithTimeout(t.Context(), conformanceTimeout)
	defer cancel()
	out, err := k.Command(ctx, filepath.Join(k.Programs, "conformance.test"), args...).CombinedOutput()
	ended := regexp.MustCompile(`(?m)^    --- (PASS|FAIL|SKIP): TestConformance/(\w+)`).FindAllSubmatch(out, -1)
	for _, e := range ended {
		t.Run(string(e[2]), func(t *testing.T) {
			switch string(e[1]) {
			case "FAIL":
				t.Fail()
			case "SKIP":
				nstest.Lacks(t, "what upstream test "+string(e[2])+" asks for")
			}
		})
	}
	if err != nil || len(ended) == 0 {
		t.Errorf("conformance tests: %v\n%s", err, out)
	}
}
