package model

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Explain describes the flows that are allowed to and from a pod, one line each.
func (c *Cluster) Explain(pod *Pod) []string {
	addrs := "no address that policies apply to"
	if len(pod.Addrs) > 0 {
		addrs = strings.Trim(fmt.Sprint(pod.Addrs), "[]")
	}
	lines := []string{fmt.Sprintf("pod %s on node %s: %s", pod.Key, pod.Node, addrs)}
	for _, d := range []Direction{Ingress, Egress} {
		if first := c.Deciding(pod, d, Admin); len(first) > 0 {
			lines = append(lines, fmt.Sprintf("%s: cluster policies are evaluated first", d))
			lines = append(lines, clusterRuleTexts(first, d)...)
		}
		applying, base := c.Applying(pod, d), c.Deciding(pod, d, Baseline)
		if len(applying) == 0 && len(base) > 0 {
			lines = append(lines, fmt.Sprintf("%s: no policy isolates the pod; baseline policies of the cluster decide, everything else is allowed", d))
			lines = append(lines, clusterRuleTexts(base, d)...)
			continue
		}
		if len(applying) == 0 {
			lines = append(lines, fmt.Sprintf("%s: everything is allowed, no policy isolates the pod", d))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: only flows that these policies allow", d))
		for _, p := range applying {
			lines = append(lines, "  "+p.Key.String())
			if len(p.Rules[d]) == 0 {
				lines = append(lines, "    nothing")
			}
			for _, r := range p.Rules[d] {
				lines = append(lines, "    "+r.text(d))
			}
		}
	}
	return lines
}

// clusterRuleTexts describes the rules of cluster policies, one line each.
func clusterRuleTexts(policies []*ClusterPolicy, d Direction) (lines []string) {
	for _, p := range policies {
		lines = append(lines, fmt.Sprintf("  %s, priority %d", p.Name, p.Priority))
		for _, r := range p.Rules[d] {
			lines = append(lines, fmt.Sprintf("    %s %s", r.Action, r.text(d)))
		}
	}
	return lines
}

// Text describes the verdict on the flow in a direction.
func (j Judgement) Text(d Direction) string {
	who := d.String()
	if j.Pod != nil {
		who += " of " + j.Pod.Key.String()
	}
	switch {
	case j.Pod == nil:
		return who + ": no policy applies, the address belongs to no pod"
	case j.Decided != nil && j.Denied:
		return fmt.Sprintf("%s: denied by cluster policy %s, tier %s", who, j.Decided.Name, j.Decided.Tier)
	case j.Decided != nil:
		return fmt.Sprintf("%s: allowed by cluster policy %s, tier %s", who, j.Decided.Name, j.Decided.Tier)
	case len(j.Isolated) == 0:
		return who + ": allowed, no policy isolates the pod"
	case j.By != nil:
		return who + ": allowed by " + j.By.Key.String()
	}
	names := make([]string, len(j.Isolated))
	for i, p := range j.Isolated {
		names[i] = p.Key.String()
	}
	return who + ": denied, isolated by " + strings.Join(names, ", ")
}

func (r Rule) text(d Direction) string {
	end := "from"
	if d == Egress {
		end = "to"
	}
	peers, ports := []string{"anyone"}, []string{"any port"}
	if !r.AnyPeer {
		peers = texts(r.Peers, Peer.text)
	}
	if !r.AnyPort {
		ports = texts(r.Ports, Port.text)
	}
	return fmt.Sprintf("%s %s at %s", end, strings.Join(peers, " or "), strings.Join(ports, ", "))
}

func texts[T any](of []T, text func(T) string) []string {
	if len(of) == 0 {
		return []string{"nothing"} // no part could be read
	}
	all := make([]string, len(of))
	for i, v := range of {
		all[i] = text(v)
	}
	return all
}

func (p Peer) text() string {
	if p.Block.IsValid() {
		if len(p.Except) == 0 {
			return p.Block.String()
		}
		return fmt.Sprintf("%s except %s", p.Block, strings.Trim(fmt.Sprint(p.Except), "[]"))
	}
	where := "namespace " + p.Namespace
	if p.Namespaces != nil {
		where = selectorText("namespaces", p.Namespaces)
	}
	return selectorText("pods", p.Pods) + " in " + where
}

func selectorText(what string, s labels.Selector) string {
	requirements, selectable := s.Requirements()
	if !selectable {
		return "no " + what
	}
	if len(requirements) == 0 {
		return "all " + what
	}
	all := make([]string, len(requirements))
	for i, r := range requirements {
		all[i] = r.String()
	}
	slices.Sort(all)
	return what + " with " + strings.Join(all, ",")
}

func (p Port) text() string {
	switch {
	case p.Name != "":
		return fmt.Sprintf("%s %s", p.Protocol, p.Name)
	case p.From == 0:
		return p.Protocol.String()
	case p.From == p.To:
		return fmt.Sprintf("%s %d", p.Protocol, p.From)
	}
	return fmt.Sprintf("%s %d-%d", p.Protocol, p.From, p.To)
}
