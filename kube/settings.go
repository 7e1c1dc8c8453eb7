package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Settings is what the manifest tells an agent by environment variables. Those
// of them that the router understands by itself, as WEFT_PASSWORD and WEFT_MTU, are
// not here.
type Settings struct {
	NodeName    string // of this Node; NODE_NAME
	Namespace   string // with the ConfigMap; POD_NAMESPACE
	Range       string // IPALLOC_RANGE, empty: the router's default
	Range6      string // IPALLOC_RANGE6, empty: none
	Init        string // IPALLOC_INIT, empty: a majority of the Nodes there are
	ConnLimit   string // CONN_LIMIT, empty: the router's default
	MetricsAddr string // METRICS_ADDR, empty: the router's default
	// Peers, KUBE_PEERS, are the targets instead of the Nodes; nil: the Nodes.
	Peers []string
	// MasqLocal translates the address of clients from outside for pods of this
	// Node too; NO_MASQ_LOCAL=0.
	MasqLocal bool
	Hairpin   bool // HAIRPIN_MODE
	Policies  bool // EXPECT_NPC: NetworkPolicies are enforced
	// ClusterPolicies, CLUSTER_POLICIES: and ClusterNetworkPolicies.
	ClusterPolicies bool
	ExtraArgs       []string // EXTRA_ARGS, of weft launch
}

// ReadSettings reads the settings by lookup, which is os.LookupEnv. A variable that
// is set and empty is as one that is not set.
func ReadSettings(lookup func(string) (string, bool)) (*Settings, error) {
	text := func(name string) string { v, _ := lookup(name); return strings.TrimSpace(v) }
	s := &Settings{
		NodeName: text("NODE_NAME"), Namespace: text("POD_NAMESPACE"),
		Range: text("IPALLOC_RANGE"), Range6: text("IPALLOC_RANGE6"), Init: text("IPALLOC_INIT"),
		ConnLimit: text("CONN_LIMIT"), MetricsAddr: text("METRICS_ADDR"),
		Peers:     strings.FieldsFunc(text("KUBE_PEERS"), func(r rune) bool { return r == ' ' || r == ',' || r == '\t' || r == '\n' }),
		ExtraArgs: strings.Fields(text("EXTRA_ARGS")),
	}
	if len(s.Peers) == 0 {
		s.Peers = nil
	}
	if s.NodeName == "" {
		var err error
		if s.NodeName, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("find the name of this Node: NODE_NAME is not set: %w", err)
		}
	}
	if s.Namespace == "" {
		s.Namespace = "kube-system"
	}
	noMasqLocal := true
	for _, flag := range []struct {
		name string
		to   *bool
		not  bool
	}{{"NO_MASQ_LOCAL", &noMasqLocal, true}, {"HAIRPIN_MODE", &s.Hairpin, true}, {"EXPECT_NPC", &s.Policies, true}, {"CLUSTER_POLICIES", &s.ClusterPolicies, false}} {
		*flag.to = flag.not
		if v := text(flag.name); v != "" {
			var err error
			if *flag.to, err = strconv.ParseBool(v); err != nil {
				return nil, fmt.Errorf("environment variable %s=%q: want 1 or 0, true or false", flag.name, v)
			}
		}
	}
	s.MasqLocal = !noMasqLocal
	if s.ClusterPolicies && !s.Policies {
		return nil, errors.New("environment variables CLUSTER_POLICIES=1 EXPECT_NPC=0: no policies are enforced without EXPECT_NPC")
	}
	return s, nil
}

// LocalHealthAddr is where the probes of the kubelet ask.
const LocalHealthAddr = "127.0.0.1:6781"

// HealthAddr is where probes and metrics of policies are answered: on all
// addresses if METRICS_ADDR is, else on the loopback one.
func (s *Settings) HealthAddr() string {
	if a, err := netip.ParseAddrPort(s.MetricsAddr); err == nil && a.Addr().IsUnspecified() || strings.HasPrefix(s.MetricsAddr, ":") {
		return ":6781"
	}
	return LocalHealthAddr
}

// LaunchArgs returns the command line of weft for the router. Nodes is how many
// there are, this one with them, and targets are the others' addresses. Without
// nodes, when the API server does not answer, the router goes on with those of
// its last run.
func (s *Settings) LaunchArgs(nodes int, targets []string) []string {
	args := []string{"launch", "--foreground", "--no-dns", "--nickname=" + s.NodeName}
	add := func(flag, value string) {
		if value != "" {
			args = append(args, flag+"="+value)
		}
	}
	add("--ipalloc-range", s.Range)
	add("--ipalloc-range6", s.Range6)
	add("--conn-limit", s.ConnLimit)
	add("--status-addr", s.MetricsAddr)
	if !s.MasqLocal {
		args = append(args, "--no-masq-local")
	}
	switch {
	case s.Init != "":
		add("--ipalloc-init", s.Init)
	case nodes > 0:
		add("--ipalloc-init", "consensus="+strconv.Itoa(nodes))
	}
	args = append(args, s.ExtraArgs...)
	if s.Peers != nil {
		targets = s.Peers
	} else if nodes == 0 {
		return append(args, "--resume")
	}
	return append(append(args, "--"), targets...)
}
