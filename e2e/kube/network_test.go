//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/cluster"
)

// The pod network works with both modes of kube-proxy, over the fast datapath and over sleeve.
func TestPodNetwork(t *testing.T) {
	for mode, fast := range map[string]bool{"iptables": true, "nftables": false} {
		t.Run(mode, func(t *testing.T) {
			k := newClusterWithoutWeft(t, mode)
			setting := "WEFT_NO_FASTDP=true"
			if fast { // the password of the manifest does not keep frames from it
				setting = "WEFT_TRUSTED_SUBNETS=" + netip.PrefixFrom(k.Nodes[0].Addr, 16).Masked().String()
			}
			k.install(setting)
			pods := map[string]string{
				"one":  k.pod("one", "n1", ", ports: [{containerPort: 8080, hostPort: 8090}]"),
				"same": k.pod("same", "n1", ""),
				"two":  k.pod("two", "n2", ""),
			}
			k.testPods(pods)
			k.testOutside(pods)
			k.testServices(pods)
			k.testFastDatapath(fast)
			k.testConditions()
			k.testSpoofGuard()
			k.testPolicies(pods)
			k.testRollingUpdate(pods, fast)
		})
	}
}

func url(host string, port int) string {
	return "http://" + netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port)).String() + "/"
}

func (k *kube) testPods(pods map[string]string) {
	k.t.Helper()
	for _, c := range []struct{ from, to string }{{"one", "same"}, {"one", "two"}, {"two", "one"}} {
		k.waitAnswer(c.from+" reaches "+c.to, k.fromPod(c.from), url(pods[c.to], 8080), c.to, pods[c.from])
	}
	for _, to := range []string{"one", "two"} {
		k.waitAnswer("node n1 reaches "+to, k.fromHost(k.Nodes[0].Host), url(pods[to], 8080), to, "")
	}
}

func (k *kube) testOutside(pods map[string]string) {
	k.t.Helper()
	n1, outside := k.Nodes[0].Addr.String(), k.outside.Addr.String()
	k.waitAnswer("a pod reaches the outside with its node's address", k.fromPod("one"), url(outside, 8080), "outside", n1)
	k.waitAnswer("the outside reaches a pod by a port of its node", k.fromHost(k.outside), url(n1, 8090), "one", outside)
}

const service = `apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {selector: {name: %s}, type: %s, ports: [{port: 80, targetPort: 8080}]%s}
`

func (k *kube) testServices(pods map[string]string) {
	k.t.Helper()
	k.applyText(fmt.Sprintf(service, "one", "one", "ClusterIP", ""))
	k.applyText(fmt.Sprintf(service, "two", "two", "NodePort", ""))
	k.applyText(fmt.Sprintf(service, "local", "two", "NodePort", ", externalTrafficPolicy: Local"))
	field := func(name, path string) string {
		return k.kubectl("get", "service", name, "-o", "jsonpath="+path)
	}
	port := func(name string) int {
		p, err := strconv.Atoi(field(name, "{.spec.ports[0].nodePort}"))
		if err != nil {
			k.t.Fatal(err)
		}
		return p
	}
	one, two := url(field("one", "{.spec.clusterIP}"), 80), url(field("two", "{.spec.clusterIP}"), 80)
	k.waitAnswer("a pod reaches a Service on another node", k.fromPod("one"), two, "two", pods["one"])
	k.waitAnswer("a pod reaches a Service on its node", k.fromPod("same"), one, "one", pods["same"])
	k.waitAnswer("a pod reaches itself through its Service", k.fromPod("one"), one, "one", "")
	k.waitAnswer("a node reaches a Service on another", k.fromHost(k.Nodes[0].Host), two, "two", "")
	n1, n2, outside := k.Nodes[0].Addr.String(), k.Nodes[1].Addr.String(), k.outside.Addr.String()
	k.waitAnswer("the outside reaches a pod of n2 through n1", k.fromHost(k.outside), url(n1, port("two")), "two", "")
	k.waitAnswer("with policy Local the pod sees the client's address", k.fromHost(k.outside), url(n2, port("local")), "two", outside)
}

// The kernel forwards frames between nodes, if it may: the capabilities in the manifest suffice.
func (k *kube) testFastDatapath(fast bool) {
	k.t.Helper()
	k.waitUntil(fmt.Sprintf("the link between the nodes is fastdp: %v", fast), func() error {
		out, err := k.weft("n1", "status", "connections")
		if err == nil && (!strings.Contains(out, "established") || strings.Contains(out, "no fastdp") == fast) {
			err = fmt.Errorf("connections of n1 are\n%s", out)
		}
		return err
	})
}

func (k *kube) testConditions() {
	k.t.Helper()
	for _, n := range k.Nodes {
		got := k.kubectl("get", "node", n.Name, "-o", `jsonpath={.status.conditions[?(@.type=="NetworkUnavailable")].status}`)
		if got != "False" {
			k.t.Errorf("NetworkUnavailable of %s is %q", n.Name, got)
		}
	}
	if got := k.kubectl("get", "nodes", "-o", "jsonpath={.items[*].spec.taints}"); got != "" {
		k.t.Errorf("taints are %s", got)
	}
}

const annotated = `apiVersion: v1
kind: Pod
metadata: {name: vrrp, annotations: {weft.internal/allow-spoof: "true"}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers:
    - {name: pod, image: %q, imagePullPolicy: Never}
`

// The capabilities in the manifest suffice to guard pods, except those that may spoof.
func (k *kube) testSpoofGuard() {
	k.t.Helper()
	k.applyText(fmt.Sprintf(annotated, cluster.PodImage))
	k.kubectl("wait", "--for=condition=Ready", "pod/vrrp", "--timeout=90s")
	k.waitUntil("the pods of n1 are guarded, but for one", func() error {
		out, err := k.weft("n1", "report", "-f", `off={{.SpoofGuard.Off}}{{range .Attachments}} {{.Name}}={{.AllowSpoof}}{{end}}{{range .Kernel.Faults}} {{.Text}}{{end}} `)
		for _, want := range []string{"off= ", " default/one=false ", " default/vrrp=true "} {
			if err == nil && !strings.Contains(out+" ", want) {
				err = fmt.Errorf("%q lacks %q", out, want)
			}
		}
		if err == nil && strings.Contains(out, "spoof guard") {
			err = fmt.Errorf("a guard has a fault: %s", out)
		}
		return err
	})
	k.kubectl("delete", "pod", "vrrp")
}

const isolate = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate}
spec: {podSelector: {matchLabels: {name: two}}, ingress: [{from: [{podSelector: {matchLabels: {name: same}}}]}]}
`

// A policy is enforced for pods and for Services, and no longer after its deletion. The kubelet's
// probes are always allowed.
func (k *kube) testPolicies(pods map[string]string) {
	k.t.Helper()
	k.applyText(isolate)
	service := url(k.kubectl("get", "service", "two", "-o", "jsonpath={.spec.clusterIP}"), 80)
	for _, to := range []string{url(pods["two"], 8080), service} {
		k.waitRefused("one", to)
		k.waitAnswer("same is allowed to reach "+to, k.fromPod("same"), to, "two", pods["same"])
	}
	k.waitUntil("policy trace gives the reason", func() error {
		out, err := k.weft("n2", "policy", "trace", "one", "two", "8080")
		if !strings.Contains(out, "isolate") {
			return errors.Join(fmt.Errorf("answered %q", out), err)
		}
		return nil
	})
	if got := k.kubectl("get", "pod", "two", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); got != "True" {
		k.t.Errorf("Ready of an isolated pod is %q", got)
	}
	k.kubectl("delete", "networkpolicy", "isolate")
	k.waitAnswer("one reaches two again", k.fromPod("one"), url(pods["two"], 8080), "two", pods["one"])
}

// A connection between pods continues while weft is replaced on both nodes, and the fast datapath
// loses no datagram.
func (k *kube) testRollingUpdate(pods map[string]string, fast bool) {
	k.t.Helper()
	const seconds = 60
	start := func(what string) <-chan string {
		result := make(chan string, 1)
		go func() {
			ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
			defer cancel()
			out, err := k.Kubectl(ctx, nil, "exec", "one", "--", "pod", what, pods["two"]+":8081", strconv.Itoa(seconds))
			if err != nil {
				out = err.Error()
			}
			result <- strings.TrimSpace(out)
		}()
		return result
	}
	gap, lost := start("gap"), start("lost")
	k.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/weft")
	k.rollout()
	out := <-gap
	longest, err := strconv.Atoi(out)
	if err != nil {
		k.t.Fatalf("the connection broke during the update: %s", out)
	}
	k.t.Logf("longest time without an echo: %d ms", longest)
	if limit := 5 * time.Second; time.Duration(longest)*time.Millisecond > limit {
		k.t.Errorf("the connection stalled for %d ms during the update, want at most %v", longest, limit)
	}
	var sent, missing int
	out = <-lost
	switch _, err := fmt.Sscan(out, &sent, &missing); {
	case err != nil:
		k.t.Errorf("datagrams during the update: %s", out)
	case missing > 0 && fast:
		k.t.Errorf("of %d datagrams %d were lost during the update", sent, missing)
	default:
		k.t.Logf("of %d datagrams %d were lost during the update", sent, missing)
	}
	k.waitAnswer("a pod reaches another after the update", k.fromPod("one"), url(pods["two"], 8080), "two", pods["one"])
	k.pod("new", "n2", "")
}
