package model_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func load(t *testing.T, text string) *model.Cluster {
	t.Helper()
	s, err := policytest.Manifest(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return model.Load(s)
}

const shop = `
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
kind: Namespace
metadata: {name: tools, labels: {team: b}}
---
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: here, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.32.0.5}]}
---
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: here, containers: [{name: c}]}
status: {podIPs: [{ip: 10.32.0.6}]}
---
kind: Pod
metadata: {name: probe, namespace: tools, labels: {app: probe}}
spec: {nodeName: there, containers: [{name: c}]}
status: {podIPs: [{ip: 10.32.0.7}]}
---
`

// TestJudge checks one sentence of the NetworkPolicy documentation with each case.
func TestJudge(t *testing.T) {
	policy := func(spec string) string {
		return "kind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: " + spec
	}
	const web, db, probe, out = "10.32.0.5", "10.32.0.6", "10.32.0.7", "192.0.2.1"
	for _, c := range []struct {
		sentence, spec, src, dst string
		port                     uint16
		allowed                  bool
	}{
		{"an empty podSelector selects all pods in the namespace", `{podSelector: {}}`, web, db, 80, false},
		{"an empty podSelector selects no pods of other namespaces", `{podSelector: {}}`, web, probe, 80, true},
		{"without policyTypes the policy isolates ingress", `{podSelector: {}}`, out, web, 80, false},
		{"without policyTypes and egress rules it does not isolate egress", `{podSelector: {}}`, web, out, 80, true},
		{"without policyTypes but with egress rules it isolates egress", `{podSelector: {}, egress: [{ports: [{port: 1}]}]}`, web, out, 80, false},
		{"policyTypes Egress does not isolate ingress", `{podSelector: {}, policyTypes: [Egress]}`, out, web, 80, true},
		{"an empty from matches all peers", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, out, web, 80, true},
		{"an empty ports matches all ports", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, db, web, 1234, true},
		{"podSelector alone matches in the policy's namespace", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, probe, web, 80, false},
		{"namespaceSelector alone matches all pods of the namespaces", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}`, probe, web, 80, true},
		{"podSelector and namespaceSelector must both match", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: x}}}]}]}`, probe, web, 80, false},
		{"ipBlock matches addresses", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`, out, web, 80, true},
		{"except excludes addresses", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/31]}}]}]}`, out, web, 80, false},
		{"endPort makes a range", `{podSelector: {}, ingress: [{ports: [{port: 70, endPort: 80}]}]}`, out, web, 80, true},
		{"a range ends at endPort", `{podSelector: {}, ingress: [{ports: [{port: 70, endPort: 79}]}]}`, out, web, 80, false},
		{"a named port matches the port of the receiving pod", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, out, web, 8080, true},
		{"a named port does not match a pod without that port", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, out, db, 8080, false},
		{"a pod cannot block itself", `{podSelector: {}, policyTypes: [Ingress, Egress]}`, web, web, 80, true},
	} {
		cluster := load(t, shop+policy(c.spec))
		f := model.Flow{Src: addr(c.src), Dst: addr(c.dst), Protocol: model.TCP, Port: c.port}
		if got := cluster.Judge(f, model.Egress).Allowed() && cluster.Judge(f, model.Ingress).Allowed(); got != c.allowed {
			t.Errorf("%s: allowed %v, want %v", c.sentence, got, c.allowed)
		}
	}
}

// TestPodsWithoutAddresses checks which pods policies ignore.
func TestPodsWithoutAddresses(t *testing.T) {
	c := load(t, `
kind: Pod
metadata: {name: host, namespace: x}
spec: {hostNetwork: true, containers: [{name: c}]}
status: {podIP: 192.0.2.1}
---
kind: Pod
metadata: {name: done, namespace: x}
spec: {containers: [{name: c}]}
status: {phase: Failed, podIP: 192.0.2.2}
---
kind: Pod
metadata: {name: old, namespace: x, deletionTimestamp: "2026-01-01T00:00:00Z"}
spec: {containers: [{name: c}]}
status: {podIP: 192.0.2.3}
---
kind: Pod
metadata: {name: new, namespace: x}
spec: {initContainers: [{name: s, restartPolicy: Always, ports: [{name: side, containerPort: 1}]}, {name: i, ports: [{name: init, containerPort: 2}]}], containers: [{name: c}]}
status: {podIP: 192.0.2.3}`)
	for _, a := range []string{"192.0.2.1", "192.0.2.2"} {
		if p := c.Owner(addr(a)); p != nil {
			t.Errorf("%s belongs to %s", a, p.Key)
		}
	}
	p := c.Owner(addr("192.0.2.3"))
	if p == nil || p.Name != "new" {
		t.Fatalf("the owner of a reused address is %v", p)
	}
	if !slices.Equal(p.Ports, []model.NamedPort{{Name: "side", Protocol: model.TCP, Port: 1}}) {
		t.Errorf("ports %v", p.Ports)
	}
	c.SetPod(p.Key, nil)
	if p := c.Owner(addr("192.0.2.3")); p == nil || p.Name != "old" {
		t.Errorf("the owner is %v, want the pod that is being deleted", p)
	}
}

// TestUnreadablePolicy checks that unreadable parts are reported, allow nothing, and leave the
// other parts in force.
func TestUnreadablePolicy(t *testing.T) {
	for spec, want := range map[string]string{
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: x}}]}]}`:                                `read policy shop/p: ingress[0] peer 0: ipBlock`,
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [y]}}]}]}`:        `except`,
		`{podSelector: {}, ingress: [{from: [{}]}]}`:                                                  `neither selector nor ipBlock`,
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}]}]}`:       `and a selector`,
		`{podSelector: {}, ingress: [{ports: [{protocol: GRE}]}]}`:                                    `"GRE" is not TCP`,
		`{podSelector: {}, ingress: [{ports: [{endPort: 5}]}]}`:                                       `without a port`,
		`{podSelector: {}, ingress: [{ports: [{port: http, endPort: 5}]}]}`:                           `with the named port`,
		`{podSelector: {}, ingress: [{ports: [{port: 10, endPort: 5}]}]}`:                             `10 to 5`,
		`{podSelector: {}, ingress: [{ports: [{port: 70000}]}]}`:                                      `70000`,
		`{podSelector: {}, ingress: [{ports: [{port: ""}]}]}`:                                         `empty name`,
		`{podSelector: {}, policyTypes: [Ingress, Sideways]}`:                                         `"Sideways"`,
		`{podSelector: {matchExpressions: [{key: a, operator: Like}]}}`:                               `podSelector`,
		`{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{operator: In}]}}]}]}`: `peer 0`,
	} {
		s, err := policytest.Manifest(strings.TrimSpace(shop) + "\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: " + spec)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", spec, err, want)
		}
		f := model.Flow{Src: addr("192.0.2.1"), Dst: addr("10.32.0.5"), Protocol: model.TCP, Port: 80}
		if model.Load(s).Judge(f, model.Ingress).Allowed() {
			t.Errorf("%s: fails open", spec)
		}
	}
}

func TestExplain(t *testing.T) {
	c := load(t, shop+`kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {matchLabels: {app: db}}}, {namespaceSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/31]}}]
    ports: [{port: 80}, {port: http}, {port: 1, endPort: 9, protocol: UDP}, {protocol: SCTP}]
  - {}
---
kind: NetworkPolicy
metadata: {name: q, namespace: shop}
spec: {podSelector: {}}`)
	got := strings.Join(c.Explain(c.Pod(model.Key{Namespace: "shop", Name: "web"})), "\n")
	want := `pod shop/web on node here: 10.32.0.5
ingress: only flows that these policies allow
  shop/p
    from pods with app=db in namespace shop or all pods in all namespaces or 192.0.2.0/24 except 192.0.2.0/31 at tcp 80, tcp http, udp 1-9, sctp
    from anyone at any port
  shop/q
    nothing
egress: everything is allowed, no policy isolates the pod`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// FuzzPolicyOf checks that no strings in a policy cause a panic.
func FuzzPolicyOf(f *testing.F) {
	f.Add("10.0.0.0/8", "10.1.0.0/16", "TCP", "http", int32(1), int32(2), "a")
	f.Add("::/0", "::ffff:1.2.3.4/100", "", "", int32(-1), int32(70000), "Ingress")
	f.Fuzz(func(t *testing.T, cidr, except, protocol, port string, from, to int32, word string) {
		np := policyWith(cidr, except, protocol, port, from, to, word)
		p, err := model.PolicyOf(np)
		if p == nil || len(p.Rules[model.Ingress]) > len(np.Spec.Ingress) {
			t.Fatalf("policy %v, error %v", p, err)
		}
		c := model.NewCluster("here")
		pod := &model.Pod{Key: model.Key{Name: "pod"}, Labels: labels.Set{}, Addrs: []netip.Addr{addr("10.0.0.1")}}
		c.SetPod(pod.Key, pod)
		c.SetPolicy(p.Key, p)
		c.Judge(model.Flow{Src: addr("10.0.0.2"), Dst: addr("10.0.0.1"), Protocol: model.TCP, Port: 1}, model.Ingress)
		c.Explain(pod)
	})
}
