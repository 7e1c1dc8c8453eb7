package kube

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/mesh/peer"
)

func node(name, uid string, addrs ...corev1.NodeAddress) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}, Status: corev1.NodeStatus{Addresses: addrs}}
}

func internal(a string) corev1.NodeAddress {
	return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a}
}

func name(t testing.TB, s string) peer.Name {
	t.Helper()
	n, err := peer.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDeparted(t *testing.T) {
	members := parseMembers(map[string]string{
		"02-00-00-00-00-01": "a uid-a",
		"02-00-00-00-00-02": "b uid-of-an-earlier-b",
		"02-00-00-00-00-03": "gone uid-c",
		"02-00-00-00-00-04": "self-is-gone uid-d",
		"02-00-00-00-00-05": "no-uid",
		"not-a-peer":        "e uid-e",
	})
	nodes := []*corev1.Node{node("a", "uid-a"), node("b", "uid-b")}
	var got []string
	for _, m := range departed(name(t, "02:00:00:00:00:04"), members, nodes) {
		got = append(got, m.key())
	}
	if want := []string{"02-00-00-00-00-02", "02-00-00-00-00-03"}; !slices.Equal(got, want) {
		t.Errorf("departed are %v, want %v", got, want)
	}
}

func TestTargets(t *testing.T) {
	external := corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "192.0.2.9"}
	nodes := []*corev1.Node{
		node("self", "1", internal("10.0.0.1")),
		node("v6", "2", internal("fd00::2")),
		node("both", "3", external, internal("10.0.0.3"), internal("fd00::3")),
		node("outside", "4", external),
		node("not yet", "5"),
		node("nonsense", "6", internal("0.0.0.0"), internal("host.example")),
	}
	if got, want := Targets("self", nodes), []string{"10.0.0.3", "192.0.2.9", "fd00::2"}; !slices.Equal(got, want) {
		t.Errorf("targets are %v, want %v", got, want)
	}
}

// A line is parsed to a member that is written as the same line, or it is rejected.
func FuzzParseMember(f *testing.F) {
	f.Add("02-00-00-00-00-01", "node uid")
	f.Add("02:00:00:00:00:01", "node uid two")
	f.Add("", " ")
	f.Fuzz(func(t *testing.T, key, value string) {
		if m, ok := parseMember(key, value); ok && (m.key() != key || m.value() != value) {
			t.Errorf("%q: %q is parsed as %q: %q", key, value, m.key(), m.value())
		}
	})
}
