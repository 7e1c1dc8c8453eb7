package kube

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/internal/api"
)

// addPod makes a running pod with an address.
func (s *scene) addPod(name, nodeName, addr string) *corev1.Pod {
	s.t.Helper()
	pod, err := s.client.CoreV1().Pods("default").Create(s.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: nodeName},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: addr}}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return pod
}

func (s *scene) hasPod(name string) bool {
	_, err := s.client.CoreV1().Pods("default").Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		s.t.Fatal(err)
	}
	return err == nil
}

// A pod whose address another Node uses by now is deleted, with an Event that says why. All other
// pods stay: those whose address is only asked for, those of other Nodes, those that have ended,
// and those in the network of their Node.
func TestPodsWithAddressesOfOthersAreDeleted(t *testing.T) {
	s := newScene(t, nil)
	s.addPod("taken", "self", "10.32.0.9")
	s.addPod("asked", "self", "10.32.0.8")
	s.addPod("free", "self", "10.32.0.7")
	s.addPod("elsewhere", "other", "10.32.0.9")
	done, host := s.addPod("done", "self", "10.32.0.9"), s.addPod("host", "self", "10.32.0.9")
	done.Status.Phase, host.Spec.HostNetwork = corev1.PodSucceeded, true
	for _, p := range []*corev1.Pod{done, host} {
		if _, err := s.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	s.router.taken = []api.Conflict{
		{Address: netip.MustParseAddr("10.32.0.8"), Owner: "cni:weft:b:eth0", Peer: "02:00:00:00:00:02"},
		{Address: netip.MustParseAddr("10.32.0.9"), Owner: "cni:weft:a:eth0", Peer: "02:00:00:00:00:02", NickName: "n2", InUse: true},
	}
	s.run()
	s.until("the pod is deleted", func() bool { return !s.hasPod("taken") })
	s.until("an Event says why", func() bool {
		l, err := s.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.Items {
			o := e.InvolvedObject
			if e.Reason == reasonTaken && o.Kind == "Pod" && o.Name == "taken" && o.UID == "uid-taken" &&
				strings.Contains(e.Message, "address 10.32.0.9 was given to another one on Node n2") {
				return true
			}
		}
		return false
	})
	for _, name := range []string{"asked", "free", "elsewhere", "done", "host"} {
		if !s.hasPod(name) {
			t.Errorf("pod %s was deleted", name)
		}
	}
}

// A Node whose own address another one uses by now gets another address.
func TestNodeGetsAnotherAddress(t *testing.T) {
	s := newScene(t, nil)
	p := netip.MustParsePrefix(nodeAddress)
	s.router.exposed = []api.Address{{Kind: api.Exactly, Prefix: p}} // of the last run
	s.router.taken = []api.Conflict{{Address: p.Addr(), Owner: api.Exposed, InUse: true}}
	s.run()
	s.until("it has another address", func() bool {
		return s.router.get(func(r *router) bool {
			return len(r.hidden) == 1 && r.hidden[0].Prefix == p && len(r.exposed) == 1 && r.exposed[0].Kind == api.FromSubnet
		})
	})
}
