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

func TestWrongSettingsAreNamed(t *testing.T) {
	for name, value := range map[string]string{
		"HAIRPIN_MODE": "maybe", "IPALLOC_RANGE": "10.32.0.0", "IPALLOC_RANGE6": "fd00::", "IPALLOC_INIT": "quorum", "CONN_LIMIT": "many",
	} {
		_, err := ReadSettings(func(k string) (string, bool) { return map[string]string{name: value}[k], true })
		if err == nil || !strings.HasPrefix(err.Error(), "environment variable "+name+"=") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestClusterPoliciesRequirePolicies(t *testing.T) {
	if s := settings(t, map[string]string{"NODE_NAME": "n1"}); !s.Policies || s.ClusterPolicies {
		t.Errorf("by default: NetworkPolicies %v, ClusterNetworkPolicies %v", s.Policies, s.ClusterPolicies)
	}
	if s := settings(t, map[string]string{"NODE_NAME": "n1", "CLUSTER_POLICIES": "1"}); !s.ClusterPolicies {
		t.Error("CLUSTER_POLICIES=1 has no effect")
	}
	env := map[string]string{"CLUSTER_POLICIES": "1", "EXPECT_NPC": "0"}
	if _, err := ReadSettings(func(k string) (string, bool) { v, ok := env[k]; return v, ok }); err == nil {
		t.Error("CLUSTER_POLICIES=1 is accepted without EXPECT_NPC")
	}
}
