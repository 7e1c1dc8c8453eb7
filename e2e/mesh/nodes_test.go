package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/kube"
)

// kubeNodes is a fake API server with the agents of a lab's hosts.
type kubeNodes struct {
	t      *testing.T
	lab    *testbed.Lab
	client *fake.Clientset
	stops  map[int]func() // of the agents that run, by host
}

func newKubeNodes(t *testing.T, lab *testbed.Lab) *kubeNodes {
	k := &kubeNodes{t, lab, fake.NewClientset(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "weft-peers"}},
	), make(map[int]func())}
	t.Cleanup(func() {
		for _, stop := range k.stops {
			stop()
		}
	})
	return k
}

func nodeName(host int) string { return "h" + strconv.Itoa(host) }

// join makes a host a Node that did not exist before.
func (k *kubeNodes) join(host int, uid string) {
	k.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(host), UID: types.UID(uid)}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: testbed.Addr4(host).String()}}
	if _, err := k.client.CoreV1().Nodes().Create(k.t.Context(), n, metav1.CreateOptions{}); err != nil {
		k.t.Fatal(err)
	}
	k.start(host)
}

func (k *kubeNodes) start(host int) {
	a := kube.NewAgent(kube.AgentConfig{
		Settings: &kube.Settings{NodeName: nodeName(host), Namespace: "kube-system"}, Client: k.client,
		Router: api.NewClient(k.lab.Socket(host)), Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(k.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	k.stops[host] = func() {
		cancel()
		if err := <-ended; err != nil {
			k.t.Error(err)
		}
	}
}

func (k *kubeNodes) stop(host int) {
	k.stops[host]()
	delete(k.stops, host)
}

// leave kills a host and deletes its Node.
func (k *kubeNodes) leave(host int) {
	k.t.Helper()
	k.stop(host)
	if err := k.lab.Kill(host); err != nil {
		k.t.Fatal(err)
	}
	if err := k.client.CoreV1().Nodes().Delete(k.t.Context(), nodeName(host), metav1.DeleteOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

// ownedBy waits until all running routers agree that they alone own the ring.
func (k *kubeNodes) ownedBy(what string, hosts ...int) {
	k.t.Helper()
	harness.Eventually(k.t, what, func() bool {
		for _, host := range hosts {
			r := harness.Report(k.t, k.lab, host)
			sum := 0.0
			for _, o := range r.IPAM.Owners {
				if sum += o.NumIPs; !o.Reachable {
					return false
				}
			}
			if len(r.IPAM.Owners) > len(hosts) || math.Abs(sum-r.IPAM.RangeNumIPs) > 0.5 {
				return false
			}
		}
		return true
	})
}

// Scaling down and up repeatedly, each time with another agent that restarts at the
// critical moment, loses no address. WEFT_ROUNDS=100 runs for longer.
func TestNodesThatComeAndGoLoseNoAddress(t *testing.T) {
	t.Parallel()
	rounds := 5
	if v := os.Getenv("WEFT_ROUNDS"); v != "" {
		var err error
		if rounds, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	k := newKubeNodes(t, lab)
	for host := 1; host <= 3; host++ {
		k.join(host, fmt.Sprintf("%d-0", host))
	}
	for round := 1; round <= rounds; round++ {
		// It owns addresses, and one of them is in use.
		ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
		if _, err := api.NewClient(lab.Socket(3)).Lease(ctx, api.LeaseRequest{Owner: fmt.Sprintf("cni:weft:pod-%d:eth0", round)}); err != nil {
			t.Fatal(err)
		}
		cancel()
		harness.Eventually(t, "the agent of h3 has written its line", func() bool { return k.line(3) })
		k.leave(3)
		away := 1 + round%2
		// One agent alone is not believed before five minutes, so the other one must come back.
		k.stop(away)
		k.start(away)
		k.ownedBy(fmt.Sprintf("round %d: the addresses of h3 are others'", round), 1, 2)
		if err := os.RemoveAll(lab.StateDir(3)); err != nil {
			t.Fatal(err)
		}
		harness.Launch(t, lab, 3, testbed.Addr4(1).String())
		k.join(3, fmt.Sprintf("3-%d", round))
	}
	k.ownedBy("all addresses are somebody's who is there", 1, 2, 3)
}

// line reports whether the ConfigMap has the line of the router that runs on a host.
func (k *kubeNodes) line(host int) bool {
	k.t.Helper()
	m, err := k.client.CoreV1().ConfigMaps("kube-system").Get(k.t.Context(), "weft-peers", metav1.GetOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	n, err := k.client.CoreV1().Nodes().Get(k.t.Context(), nodeName(host), metav1.GetOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	want := nodeName(host) + " " + string(n.UID)
	return slices.Contains(slices.Collect(maps.Values(m.Data)), want)
}
