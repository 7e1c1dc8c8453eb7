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
	// conformanceOfSCTP matches the tests that use SCTP.
	conformanceOfSCTP = "SCTP|Gress$|PortRange|InlineCIDR|EgressNamedPort"
)

// withoutSCTP is the shell of the tests' image if the kernel has no SCTP. It replaces the SCTP
// server by a program that waits, because otherwise the pods that all tests share would not
// become ready.
const withoutSCTP = `#!/bin/sh
[ "$2" = "/agnhost porter" ] && exec /agnhost pause
exec /bin/sh "$@"
`

// Runs upstream's released conformance tests of ClusterNetworkPolicies. Each is a subtest.
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
		t.Logf("the kernel has no SCTP: tests that match %s are skipped", conformanceOfSCTP)
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
				nstest.Lacks(t, "a feature that upstream test "+string(e[2])+" needs")
			}
		})
	}
	if err != nil || len(ended) == 0 {
		t.Errorf("conformance tests: %v\n%s", err, out)
	}
}
