package rules_test

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
	"github.com/weft-net/weft/policy/rules"
)

const pods = 9

// ports assigns a port to each local pod. All addresses of a pod share it.
func ports(c *model.Cluster) map[netip.Addr]uint32 {
	all := make(map[netip.Addr]uint32)
	for i := range pods {
		for _, a := range policytest.Addrs(i) {
			if c.Local(c.Owner(a)) {
				all[a] = uint32(100 + i)
			}
		}
	}
	return all
}

// verdict evaluates rules as the kernel does, and reports whether a flow passes.
func verdict(r *rules.Rules, f model.Flow, d model.Direction, port uint32) bool {
	if f.Src == f.Dst {
		return true
	}
	set, ports, by, known := rules.EgressMap, rules.EgressPortsMap, f.Src, !f.Sender.IsValid()
	if d == model.Ingress {
		set, ports, by, known = rules.IngressMap, rules.IngressPortsMap, f.Dst, !f.Receiver.IsValid()
	}
	if !known {
		chain, ok := r.Sets[ports].Elements[rules.Element{Ifindex: port}]
		return !ok || !denied(r, chain, f)
	}
	family := rules.IPv4
	if by.Is6() {
		family = rules.IPv6
	}
	chain, ok := r.Sets[family.Name(set)].Elements[rules.Element{Addr: by}]
	return !ok || !denied(r, chain, f)
}

// denied reports whether the chain of a map's element drops a flow. If the chain returns, the flow
// passes.
func denied(r *rules.Rules, chain string, f model.Flow) bool { return run(r, chain, f) == rules.Drop }

// run evaluates a chain and returns Accept, Drop or Return. It panics on rules that the kernel
// would reject: references to a chain or a set that does not exist.
func run(r *rules.Rules, chain string, f model.Flow) rules.Action {
	for _, rule := range r.Chains[chain].Rules {
		if !matches(r, rule, f) || rule.Action == rules.Log {
			continue
		}
		if rule.Action != rules.Jump {
			return rule.Action
		}
		if end := run(r, rule.Chain, f); end != rules.Return {
			return end
		}
	}
	return rules.Return
}

func matches(r *rules.Rules, rule rules.Rule, f model.Flow) bool {
	has := func(set string, e rules.Element) bool {
		s := r.Sets[set]
		_, ok := s.Elements[e]
		return ok || slices.ContainsFunc(s.Ranges, func(in rules.Range) bool {
			return in.From.Compare(e.Addr) <= 0 && e.Addr.Compare(in.To) <= 0
		})
	}
	far := f.Src
	if rule.Far == model.Egress {
		far = f.Dst
	}
	family := rules.IPv4
	if f.Src.Is6() {
		family = rules.IPv6
	}
	return (rule.Family == rules.Both || rule.Family == family) &&
		(rule.Peers == "" || has(rule.Peers, rules.Element{Addr: far})) &&
		(rule.Protocol == 0 || rule.Protocol == f.Protocol) &&
		(rule.From == 0 && rule.To == 0 || rule.From <= f.Port && f.Port <= rule.To) &&
		(rule.Ports == "" || has(rule.Ports, rules.Element{Protocol: f.Protocol, Port: f.Port})) &&
		(rule.Named == "" || has(rule.Named, rules.Element{Addr: f.Dst, Port: f.Port}))
}

// TestRulesAgreeWithModel applies random changes to clusters. The rules must give the same
// verdicts on random flows as the model, and must equal the rules that Compile makes for the same
// cluster.
func TestRulesAgreeWithModel(t *testing.T) {
	first := seed.New(t)
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		compareRound(t, first, uint64(round))
	}
}

func FuzzRules(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed, round uint64) { compareRound(t, seed, round) })
}

func compareRound(t *testing.T, seed, round uint64) {
	t.Helper()
	r := policytest.Random{Rand: rand.New(rand.NewPCG(seed, round))}
	c := rules.New(model.Load(r.Snapshot(pods, 6)))
	kernel := make(twin)
	for step := range 12 {
		if step > 0 {
			for range 1 + r.IntN(3) {
				r.Step(c, pods, 8)
			}
		}
		ports := ports(c.Cluster())
		c.SetPorts(ports)
		kernel.apply(t, c.Change())
		if got, want := kernel.String(), c.Rules().String(); got != want {
			t.Fatalf("round %d step %d: the changes result in\n%s\nwant\n%s", round, step, got, want)
		}
		again := rules.New(c.Cluster())
		again.SetPorts(ports)
		again.Change()
		if got, want := c.Rules().String(), again.Rules().String(); got != want {
			t.Fatalf("round %d step %d: compiled by changes\n%s\ncompiled at once\n%s", round, step, got, want)
		}
		for range 60 {
			f := r.Flow(pods)
			for _, d := range []model.Direction{model.Ingress, model.Egress} {
				checkFlow(t, c, f, d, ports)
			}
		}
	}
}

func checkFlow(t *testing.T, c *rules.Compiler, f model.Flow, d model.Direction, ports map[netip.Addr]uint32) {
	t.Helper()
	for i := range pods {
		if f.Src == policytest.LinkLocal(i) {
			f.Sender = policytest.AddrOf(c.Cluster(), i)
		}
		if f.Dst == policytest.LinkLocal(i) || policytest.IsGroup(f.Dst) && int(f.Port)%pods == i {
			f.Receiver = policytest.AddrOf(c.Cluster(), i)
		}
	}
	port := ports[f.Receiver]
	if d == model.Egress {
		port = ports[f.Sender]
	}
	j := c.Cluster().Judge(f, d)
	want := j.Allowed() || !c.Cluster().Local(j.Pod)
	if got := verdict(c.Rules(), f, d, port); got != want {
		t.Fatalf("%s of %+v: passed %v by the rules, want %v by the model\n%s", d, f, got, want, c.Rules())
	}
}

// twin applies changes to rules, and rejects changes that a kernel would reject.
type twin map[string]any

func (k twin) apply(t *testing.T, c rules.Change) {
	t.Helper()
	for _, s := range c.NewSets {
		if k[s.Name] != nil {
			t.Fatalf("set %s exists already", s.Name)
		}
		k[s.Name] = &rules.Set{Name: s.Name, Kind: s.Kind, Family: s.Family, Elements: maps.Clone(s.Elements), Ranges: s.Ranges}
	}
	for _, ch := range c.Chains {
		k["chain "+ch.Name] = ch
	}
	for _, e := range c.Edits {
		s := k[e.Set.Name].(*rules.Set)
		for _, d := range e.Drop {
			if _, ok := s.Elements[d.Element]; !ok {
				t.Fatalf("set %s: %v does not exist", s.Name, d)
			}
			delete(s.Elements, d.Element)
		}
		for _, a := range e.Add {
			if _, ok := s.Elements[a.Element]; ok {
				t.Fatalf("set %s: %v exists already", s.Name, a)
			}
			s.Elements[a.Element] = a.Chain
		}
	}
	for _, name := range c.RemovedChains {
		if k["chain "+name] == nil {
			t.Fatalf("chain %s does not exist", name)
		}
		delete(k, "chain "+name)
	}
	for _, s := range c.RemovedSets {
		if k[s.Name] == nil {
			t.Fatalf("set %s does not exist", s.Name)
		}
		delete(k, s.Name)
	}
}

func (k twin) String() string {
	r := rules.Rules{Sets: make(map[string]*rules.Set), Chains: make(map[string]*rules.Chain)}
	for _, v := range k {
		switch v := v.(type) {
		case *rules.Set:
			r.Sets[v.Name] = v
		case *rules.Chain:
			r.Chains[v.Name] = v
		}
	}
	return r.String()
}
