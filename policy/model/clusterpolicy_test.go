package model_test

import (
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
)

const (
	webAddr, dbAddr, probeAddr, outside = "10.32.0.5", "10.32.0.6", "10.32.0.7", "192.0.2.1"

	toShop   = `subject: {namespaces: {matchLabels: {team: a}}}`
	anybody  = `from: [{namespaces: {}}]`
	isolated = "kind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}}\n"
	opened   = "kind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{}]}\n"
)

// clusterPolicy returns the YAML of a cluster policy.
func clusterPolicy(name, spec string) string {
	return "kind: ClusterNetworkPolicy\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
}

func admin(spec string) string {
	return clusterPolicy("guard", "tier: Admin, priority: 10, "+toShop+", "+spec)
}

func baseline(spec string) string {
	return clusterPolicy("base", "tier: Baseline, priority: 10, "+toShop+", "+spec)
}

// TestJudgeClusterPolicies checks one sentence of the ClusterNetworkPolicy documentation with each
// case.
func TestJudgeClusterPolicies(t *testing.T) {
	for _, c := range []struct {
		sentence string
		policies []string
		src, dst string
		port     uint16
		allowed  bool
	}{
		{"Deny drops the selected traffic", []string{admin(`ingress: [{action: Deny, ` + anybody + `}]`)}, probeAddr, webAddr, 80, false},
		{"Deny does not affect other traffic", []string{admin(`ingress: [{action: Deny, ` + anybody + `}]`)}, outside, webAddr, 80, true},
		{"a policy affects its subject only", []string{admin(`ingress: [{action: Deny, ` + anybody + `}]`)}, webAddr, probeAddr, 80, true},
		{"Accept takes precedence over NetworkPolicies", []string{admin(`ingress: [{action: Accept, ` + anybody + `}]`), isolated}, probeAddr, webAddr, 80, true},
		{"Deny takes precedence over NetworkPolicies", []string{admin(`ingress: [{action: Deny, ` + anybody + `}]`), opened}, probeAddr, webAddr, 80, false},
		{"Pass leaves it to NetworkPolicies", []string{admin(`ingress: [{action: Pass, ` + anybody + `}, {action: Accept, ` + anybody + `}]`), isolated}, probeAddr, webAddr, 80, false},
		{"the rule at the top comes first", []string{admin(`ingress: [{action: Accept, ` + anybody + `}, {action: Deny, ` + anybody + `}]`)}, probeAddr, webAddr, 80, true},
		{"a lower priority value comes first", []string{
			admin(`ingress: [{action: Deny, ` + anybody + `}]`),
			clusterPolicy("a", `tier: Admin, priority: 9, `+toShop+`, ingress: [{action: Accept, `+anybody+`}]`),
		}, probeAddr, webAddr, 80, true},
		{"priority takes precedence over the name", []string{
			admin(`ingress: [{action: Deny, ` + anybody + `}]`),
			clusterPolicy("z", `tier: Admin, priority: 9, `+toShop+`, ingress: [{action: Accept, `+anybody+`}]`),
		}, probeAddr, webAddr, 80, true},
		{"Pass skips the tier's other policies", []string{
			admin(`ingress: [{action: Deny, ` + anybody + `}]`),
			clusterPolicy("a", `tier: Admin, priority: 9, `+toShop+`, ingress: [{action: Pass, `+anybody+`}]`),
		}, probeAddr, webAddr, 80, true},
		{"Baseline applies to pods that no NetworkPolicy selects", []string{baseline(`ingress: [{action: Deny, ` + anybody + `}]`)}, probeAddr, webAddr, 80, false},
		{"a NetworkPolicy makes the final decision", []string{baseline(`ingress: [{action: Deny, ` + anybody + `}]`), opened}, probeAddr, webAddr, 80, true},
		{"Baseline allows nothing that a NetworkPolicy denies", []string{baseline(`ingress: [{action: Accept, ` + anybody + `}]`), isolated}, probeAddr, webAddr, 80, false},
		{"Pass in the last tier allows", []string{baseline(`ingress: [{action: Pass, ` + anybody + `}, {action: Deny, ` + anybody + `}]`)}, probeAddr, webAddr, 80, true},
		{"policies without ingress rules do not affect ingress", []string{admin(`egress: [{action: Deny, to: [{namespaces: {}}]}]`)}, probeAddr, webAddr, 80, true},
		{"egress rules apply to flows of the subject", []string{admin(`egress: [{action: Deny, to: [{namespaces: {}}]}]`)}, webAddr, probeAddr, 80, false},
		{"networks match addresses outside the cluster", []string{admin(`egress: [{action: Deny, to: [{networks: [198.51.100.0/24, 192.0.2.0/24]}]}]`)}, webAddr, outside, 80, false},
		{"networks match pods too", []string{admin(`egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]`)}, webAddr, probeAddr, 80, false},
		{"a pods peer must match both selectors", []string{admin(`ingress: [{action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: x}}}}]}]`)}, probeAddr, webAddr, 80, true},
		{"a subject with a podSelector includes matching pods", []string{clusterPolicy("guard", `tier: Admin, priority: 1, subject: {pods: {podSelector: {matchLabels: {app: db}}}}, ingress: [{action: Deny, `+anybody+`}]`)}, probeAddr, dbAddr, 80, false},
		{"a subject with a podSelector excludes other pods", []string{clusterPolicy("guard", `tier: Admin, priority: 1, subject: {pods: {podSelector: {matchLabels: {app: db}}}}, ingress: [{action: Deny, `+anybody+`}]`)}, probeAddr, webAddr, 80, true},
		{"a port number matches", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{tcp: {destinationPort: {number: 80}}}]}]`)}, probeAddr, webAddr, 80, false},
		{"a port number matches no other port", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{tcp: {destinationPort: {number: 80}}}]}]`)}, probeAddr, webAddr, 81, true},
		{"a range of ports matches", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{tcp: {destinationPort: {range: {start: 70, end: 80}}}}]}]`)}, probeAddr, webAddr, 80, false},
		{"a protocol without a port matches all of its ports", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{tcp: {}}]}]`)}, probeAddr, webAddr, 80, false},
		{"a protocol matches no other protocol", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{udp: {}}, {sctp: {}}]}]`)}, probeAddr, webAddr, 80, true},
		{"a named port matches the port of the receiving pod", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{destinationNamedPort: http}]}]`)}, probeAddr, webAddr, 8080, false},
		{"a named port does not match a pod without that port", []string{admin(`ingress: [{action: Deny, ` + anybody + `, protocols: [{destinationNamedPort: http}]}]`)}, probeAddr, dbAddr, 8080, true},
	} {
		m := load(t, shop+strings.Join(c.policies, "---\n"))
		f := model.Flow{Src: addr(c.src), Dst: addr(c.dst), Protocol: model.TCP, Port: c.port}
		if got := m.Judge(f, model.Egress).Allowed() && m.Judge(f, model.Ingress).Allowed(); got != c.allowed {
			t.Errorf("%s: allowed %v, want %v", c.sentence, got, c.allowed)
		}
	}
}

// Unreadable and unsupported parts are reported, and never allow anything.
func TestUnreadableClusterPolicy(t *testing.T) {
	for spec, want := range map[string]string{
		`ingress: [{action: Deny, from: [{}]}]`:                                                                         `ingress[0] peer 0: no supported selector`,
		`ingress: [{action: Deny, from: []}]`:                                                                           `no peers`,
		`ingress: [{action: Deny, from: [{namespaces: {}, pods: {podSelector: {}}}]}]`:                                  `both namespaces and pods`,
		`ingress: [{action: Deny, from: [{namespaces: {matchExpressions: [{key: a, operator: Like}]}}]}]`:               `Like`,
		`ingress: [{action: Reject, from: [{namespaces: {}}]}]`:                                                         `"Reject"`,
		`ingress: [{action: Deny, ` + anybody + `, protocols: [{}]}]`:                                                   `no supported protocol or port`,
		`ingress: [{action: Deny, ` + anybody + `, protocols: [{tcp: {destinationPort: {}}}]}]`:                         `0 to 0`,
		`ingress: [{action: Deny, ` + anybody + `, protocols: [{tcp: {destinationPort: {number: 70000}}}]}]`:            `70000`,
		`egress: [{action: Deny, to: [{nodes: {}}]}]`:                                                                   `nodes`,
		`egress: [{action: Deny, to: [{domainNames: [example.com]}]}]`:                                                  `domainNames`,
		`egress: [{action: Deny, to: [{networks: [x]}]}]`:                                                               `networks`,
		`egress: [{action: Accept, to: [{domainNames: [example.com]}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}]`: `domainNames`,
	} {
		s, err := policytest.Manifest(strings.TrimSpace(shop) + "\n" + admin(spec))
		if err == nil || !strings.Contains(err.Error(), "read policy guard: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", spec, err, want)
		}
		f, d := model.Flow{Src: addr(probeAddr), Dst: addr(webAddr), Protocol: model.TCP, Port: 80}, model.Ingress
		if strings.HasPrefix(spec, "egress") {
			f.Src, f.Dst, d = f.Dst, f.Src, model.Egress
		}
		if model.Load(s).Judge(f, d).Allowed() {
			t.Errorf("%s: fails open", spec)
		}
	}
	for _, spec := range []string{
		`tier: Admin, priority: 1, subject: {}, ingress: [{action: Deny, ` + anybody + `}]`,
		`tier: Middle, priority: 1, ` + toShop + `, ingress: [{action: Deny, ` + anybody + `}]`,
	} {
		if _, err := policytest.Manifest(clusterPolicy("guard", spec)); err == nil {
			t.Errorf("%s: no error", spec)
		}
	}
}

func TestExplainClusterPolicies(t *testing.T) {
	c := load(t, shop+admin(`ingress: [{action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: probe}}}}]}, {action: Deny, `+anybody+`, protocols: [{tcp: {}}]}]`)+
		"---\n"+isolated+"---\n"+baseline(`egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}]}]`))
	got := strings.Join(c.Explain(c.Pod(model.Key{Namespace: "shop", Name: "web"})), "\n")
	want := `pod shop/web on node here: 10.32.0.5
ingress: cluster policies are evaluated first
  guard, priority 10
    pass from pods with app=probe in all namespaces at any port
    deny from all pods in all namespaces at tcp
ingress: only flows that these policies allow
  shop/p
    nothing
egress: no policy isolates the pod; baseline policies of the cluster decide, everything else is allowed
  base, priority 10
    accept to 10.0.0.0/8 at any port`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for from, want := range map[string]string{
		dbAddr:    "ingress of shop/web: denied by cluster policy guard, tier Admin",
		probeAddr: "ingress of shop/web: denied, isolated by shop/p",
	} {
		f := model.Flow{Src: addr(from), Dst: addr(webAddr), Protocol: model.TCP, Port: 80}
		if got := c.Judge(f, model.Ingress).Text(model.Ingress); got != want {
			t.Errorf("from %s: %q, want %q", from, got, want)
		}
	}
}

// FuzzClusterPolicyOf checks that no strings in a policy cause a panic.
func FuzzClusterPolicyOf(f *testing.F) {
	f.Add("10.0.0.0/8", "http", "Deny", "Admin", int32(1), int32(2), "a")
	f.Add("::ffff:1.2.3.4/100", "", "", "", int32(-1), int32(70000), "")
	f.Fuzz(func(t *testing.T, cidr, port, action, tier string, from, to int32, word string) {
		selector := metav1.LabelSelector{
			MatchLabels:      map[string]string{word: word},
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: word, Operator: metav1.LabelSelectorOperator(word), Values: []string{word}}},
		}
		cnp := &v1alpha2.ClusterNetworkPolicy{}
		cnp.Spec.Tier = v1alpha2.Tier(tier)
		cnp.Spec.Subject.Pods = &v1alpha2.NamespacedPod{PodSelector: selector}
		if word == "" {
			cnp.Spec.Subject.Pods.PodSelector = metav1.LabelSelector{}
		}
		ports := &v1alpha2.Port{Range: &v1alpha2.PortRange{Start: from, End: to}}
		cnp.Spec.Egress = []v1alpha2.ClusterNetworkPolicyEgressRule{{
			Action: v1alpha2.ClusterNetworkPolicyRuleAction(action),
			To:     []v1alpha2.ClusterNetworkPolicyEgressPeer{{Networks: []v1alpha2.CIDR{v1alpha2.CIDR(cidr)}}, {Namespaces: &selector}},
			Protocols: []v1alpha2.ClusterNetworkPolicyProtocol{
				{DestinationNamedPort: port}, {TCP: &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: ports}},
				{UDP: &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: &v1alpha2.Port{Number: from}}},
			},
		}}
		p, err := model.ClusterPolicyOf(cnp)
		if p == nil || len(p.Rules[model.Egress]) != 1 {
			t.Fatalf("policy %v, error %v", p, err)
		}
		c := model.NewCluster("here")
		c.SetNamespace("", labels.Set{})
		pod := &model.Pod{Key: model.Key{Name: "pod"}, Labels: labels.Set{}, Addrs: []netip.Addr{addr("10.0.0.1")}}
		c.SetPod(pod.Key, pod)
		c.SetClusterPolicy(p.Name, p)
		c.Judge(model.Flow{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2"), Protocol: model.TCP, Port: 1}, model.Egress)
		c.Explain(pod)
	})
}
