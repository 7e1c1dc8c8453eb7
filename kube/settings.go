package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/ipam"
)

// Settings is the configuration of an agent from the environment variables of its manifest.
// Variables that the router reads itself, such as WEFT_PASSWORD and WEFT_MTU, are not included.
type Settings struct {
	NodeName    string       // of this Node; NODE_NAME
	Namespace   string       // with the ConfigMap; POD_NAMESPACE
	PodName     string       // of the agent; POD_NAME, "" if it is not known
	PodUID      types.UID    // POD_UID
	Range       netip.Prefix // IPALLOC_RANGE, the zero Prefix: the router's default
	Range6      netip.Prefix // IPALLOC_RANGE6, the zero Prefix: none
	Init        *ipam.Init   // IPALLOC_INIT, nil: a majority of the Nodes there are
	ConnLimit   *int         // CONN_LIMIT, nil: the router's default
	MetricsAddr string       // METRICS_ADDR, empty: the router's default; MetricsOff: none
	// Peers, from KUBE_PEERS, are used as targets instead of the Nodes; nil: the Nodes are the
	// targets.
	Peers []string
	// MasqLocal also translates the source address of clients outside the cluster if the pod is on
	// this Node; NO_MASQ_LOCAL=0.
	MasqLocal bool
	Hairpin   bool // HAIRPIN_MODE
	Policies  bool // EXPECT_NPC: NetworkPolicies are enforced
	// ClusterPolicies, from CLUSTER_POLICIES, also enforces ClusterNetworkPolicies.
	ClusterPolicies bool
	ExtraArgs       []string // further arguments of weft launch; EXTRA_ARGS
	// GeneratedSecret is the Secret with the password of a router that is given none, from
	// GENERATED_SECRET; "" for a router without a password.
	GeneratedSecret string
}

// MetricsOff is the value of METRICS_ADDR for a router without an address for status and metrics.
const MetricsOff = "off"

// ReadSettings reads the settings. lookup is os.LookupEnv or a substitute. A variable that is set
// to "" counts as not set.
func ReadSettings(lookup func(string) (string, bool)) (*Settings, error) {
	text := func(name string) string { v, _ := lookup(name); return strings.TrimSpace(v) }
	s := &Settings{
		NodeName: text("NODE_NAME"), Namespace: text("POD_NAMESPACE"), PodName: text("POD_NAME"), PodUID: types.UID(text("POD_UID")), MetricsAddr: text("METRICS_ADDR"),
		Peers:     strings.FieldsFunc(text("KUBE_PEERS"), func(r rune) bool { return r == ' ' || r == ',' || r == '\t' || r == '\n' }),
		ExtraArgs: strings.Fields(text("EXTRA_ARGS")), GeneratedSecret: text("GENERATED_SECRET"),
	}
	if len(s.Peers) == 0 {
		s.Peers = nil
	}
	if s.NodeName == "" {
		var err error
		if s.NodeName, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("find the name of this Node: NODE_NAME is not set, and no hostname: %w", err)
		}
	}
	if s.Namespace == "" {
		s.Namespace = "kube-system"
	}
	s.Policies, s.Hairpin = true, true
	noMasqLocal := true
	for _, v := range []struct {
		name string
		set  func(string) error
	}{
		{"IPALLOC_RANGE", parseInto(&s.Range, parseRange)},
		{"IPALLOC_RANGE6", parseInto(&s.Range6, parseRange)},
		{"IPALLOC_INIT", parseInto(&s.Init, parseInit)},
		{"CONN_LIMIT", parseInto(&s.ConnLimit, parseNumber)},
		{"NO_MASQ_LOCAL", parseInto(&noMasqLocal, parseSwitch)},
		{"HAIRPIN_MODE", parseInto(&s.Hairpin, parseSwitch)},
		{"EXPECT_NPC", parseInto(&s.Policies, parseSwitch)},
		{"CLUSTER_POLICIES", parseInto(&s.ClusterPolicies, parseSwitch)},
	} {
		value := text(v.name)
		if value == "" {
			continue
		}
		if err := v.set(value); err != nil {
			return nil, fmt.Errorf("environment variable %s=%q: %w", v.name, value, err)
		}
	}
	s.MasqLocal = !noMasqLocal
	if s.ClusterPolicies && !s.Policies {
		return nil, errors.New("environment variables CLUSTER_POLICIES=1 EXPECT_NPC=0: no policies are enforced without EXPECT_NPC")
	}
	return s, nil
}

// parseInto returns a function that reads a text into a setting.
func parseInto[T any](to *T, parse func(string) (T, error)) func(string) error {
	return func(s string) (err error) {
		*to, err = parse(s)
		return err
	}
}

func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, errors.New("want a range like 10.32.0.0/12")
	}
	return p, nil
}

func parseInit(s string) (*ipam.Init, error) {
	init, err := ipam.ParseInit(s)
	return &init, err
}

func parseNumber(s string) (*int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, errors.New("want a number")
	}
	return &n, nil
}

func parseSwitch(s string) (bool, error) {
	on, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("want 1 or 0, true or false")
	}
	return on, nil
}

// LocalHealthAddr is the address for the kubelet's probes.
const LocalHealthAddr = "127.0.0.1:6781"

// HealthAddr returns the address that serves probes and the metrics of policies: all addresses if
// METRICS_ADDR is on all addresses, else loopback.
func (s *Settings) HealthAddr() string {
	if a, err := netip.ParseAddrPort(s.MetricsAddr); err == nil && a.Addr().IsUnspecified() || strings.HasPrefix(s.MetricsAddr, ":") {
		return ":6781"
	}
	return LocalHealthAddr
}
