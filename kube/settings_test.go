package kube

import (
	"strings"
	"testing"
)

func settings(t *testing.T, env map[string]string) *Settings {
	t.Helper()
	s, err := ReadSettings(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLaunchArgs(t *testing.T) {
	for _, c := range []struct {
		env   map[string]string
		nodes int
		want  string
	}{
		{nil, 3, "--no-masq-local --ipalloc-init=consensus=3 -- 10.0.0.2 10.0.0.3"},
		{nil, 0, "--no-masq-local --resume"},
		{map[string]string{"IPALLOC_INIT": "observer", "NO_MASQ_LOCAL": "0"}, 3, "--ipalloc-init=observer -- 10.0.0.2 10.0.0.3"},
		{map[string]string{"KUBE_PEERS": "a.example, b.example"}, 3, "--no-masq-local --ipalloc-init=consensus=3 -- a.example b.example"},
		{map[string]string{"IPALLOC_RANGE": "10.40.0.0/16", "IPALLOC_RANGE6": "fd00::/64", "CONN_LIMIT": "50", "METRICS_ADDR": "0.0.0.0:6782", "EXTRA_ARGS": "--log-level debug"}, 3,
			"--ipalloc-range=10.40.0.0/16 --ipalloc-range6=fd00::/64 --conn-limit=50 --status-addr=0.0.0.0:6782 --no-masq-local --ipalloc-init=consensus=3 --log-level debug -- 10.0.0.2 10.0.0.3"},
	} {
		env := map[string]string{"NODE_NAME": "n1"}
		for k, v := range c.env {
			env[k] = v
		}
		got := strings.Join(settings(t, env).LaunchArgs(c.nodes, []string{"10.0.0.2", "10.0.0.3"}), " ")
		if want := "launch --foreground --no-dns --nickname=n1 " + c.want; got != want {
			t.Errorf("%v\n got %s\nwant %s", c.env, got, want)
		}
	}
}

func TestSettingsRefuseWhatIsNeitherOnNorOff(t *testing.T) {
	_, err := ReadSettings(func(k string) (string, bool) { return map[string]string{"HAIRPIN_MODE": "maybe"}[k], true })
	if err == nil || !strings.Contains(err.Error(), "HAIRPIN_MODE") {
		t.Errorf("HAIRPIN_MODE=maybe: %v", err)
	}
}

func TestClusterPoliciesWantPolicies(t *testing.T) {
	if s := settings(t, map[string]string{"NODE_NAME": "n1"}); !s.Policies || s.ClusterPolicies {
		t.Errorf("by default NetworkPolicies are enforced: %v, and those of the cluster: %v", s.Policies, s.ClusterPolicies)
	}
	if s := settings(t, map[string]string{"NODE_NAME": "n1", "CLUSTER_POLICIES": "1"}); !s.ClusterPolicies {
		t.Error("CLUSTER_POLICIES=1 does nothing")
	}
	env := map[string]string{"CLUSTER_POLICIES": "1", "EXPECT_NPC": "0"}
	if _, err := ReadSettings(func(k string) (string, bool) { v, ok := env[k]; return v, ok }); err == nil {
		t.Error("policies of the cluster are enforced without any")
	}
}
