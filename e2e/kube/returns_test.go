//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/cluster"
)

// web is a pod of n2 with a controller.
const web = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeName: n2
      terminationGracePeriodSeconds: 1
      containers:
        - {name: pod, image: ` + cluster.PodImage + `, imagePullPolicy: Never, readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}}
`

// A Node is deleted and created again while its pods run, with restarts of the kubelet, containerd
// and the router in several orders. The pods keep their sandboxes, their addresses and their
// traffic, also if the addresses were taken over meanwhile. A pod whose address another Node uses
// by then is deleted with an Event that says why, and its controller makes another one.
func TestNodeIsMadeAgain(t *testing.T) {
	k := newClusterWithoutWeft(t, "iptables")
	k.install("WEFT_TRUSTED_SUBNETS=" + netip.PrefixFrom(k.Nodes[0].Addr, 16).Masked().String()) // for the fast datapath
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	if _, err := k.AddNode(ctx, "n3"); err != nil {
		t.Fatal(err)
	}
	k.rollout()
	r := &returning{kube: k, ctx: ctx, node: k.Nodes[1], one: k.pod("one", "n1", ""), two: k.pod("two", "n2", ""), three: k.pod("three", "n3", "")}
	k.applyText(web)
	k.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	r.sandbox = r.containerOf("two")
	r.waitVoters(3)

	r.madeAgain("with a restart of the router and the kubelet", func() {
		r.deleteNode()
		r.killRouter()
		r.must(r.node.RestartKubelet(ctx))
	})
	r.madeAgain("with a restart of containerd before", func() {
		r.must(r.node.StopKubelet(ctx))
		r.must(r.node.RestartContainerd(ctx))
		r.killRouter()
		r.deleteNode()
		r.must(r.node.StartKubelet())
	})
	r.madeAgain("with a restart of containerd after", func() {
		before := r.uid()
		r.deleteNode()
		r.must(r.node.RestartKubelet(ctx))
		r.waitMade(before) // a kubelet that starts without containerd ends
		r.killRouter()
		r.must(r.node.RestartContainerd(ctx))
	})
	r.madeAgain("after others took its addresses over", func() {
		r.goAway()
		r.must(r.node.StartKubelet())
	})
	r.testTaken()
}

// returning is a Node that is deleted and created again.
type returning struct {
	*kube
	ctx             context.Context
	node            *cluster.Node
	one, two, three string // addresses of pods on n1, on the Node and on n3
	sandbox         string // of the pod two
}

func (r *returning) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *returning) uid() string {
	return r.kubectl("get", "node", r.node.Name, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")
}

func (r *returning) deleteNode() { r.kubectl("delete", "node", r.node.Name, "--wait=true") }

func (r *returning) killRouter() {
	_, err := r.node.Run(r.ctx, "kill", "-9", r.routerProcess(r.node))
	r.must(err)
}

// containerOf returns what tells a pod's container and its starts apart.
func (k *kube) containerOf(pod string) string {
	return k.kubectl("get", "pod", pod, "-o", "jsonpath={.metadata.uid} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
}

// waitMade waits until the Node is another one than before.
func (r *returning) waitMade(before string) {
	r.t.Helper()
	r.waitUntil("the Node is another one", func() error {
		if uid := r.uid(); uid == "" || uid == before {
			return fmt.Errorf("its UID is %q", uid)
		}
		return nil
	})
}

// waitVoters waits until so many peers vote.
func (r *returning) waitVoters(n int) {
	r.t.Helper()
	r.waitUntil(fmt.Sprint(n, " peers vote"), func() error {
		report, err := router(r.Nodes[0]).Summary(r.ctx, api.NoLists)
		if err == nil && (report.IPAM == nil || len(report.IPAM.Voters) != n) {
			err = fmt.Errorf("the allocator is %+v", report.IPAM)
		}
		return err
	})
}

// madeAgain has the Node deleted and created again by do, while a connection leads to a pod of it.
// The controllers do not delete its pods meanwhile, however long it takes.
func (r *returning) madeAgain(how string, do func()) {
	r.t.Helper()
	r.t.Log("made again " + how)
	before := r.uid()
	r.must(r.StopControllers(r.ctx))
	r.waitAnswer("pods reach each other", r.fromPod("one"), url(r.two, 8080), "two", r.one)
	r.waitAnswer("pods reach each other", r.fromPod("one"), url(r.three, 8080), "three", r.one)
	connection, other := r.connection("one", r.two, 60), r.connection("one", r.three, 60)
	do()
	r.waitMade(before)
	r.waitUntil("its router is ready", func() error { return routerReady(r.ctx, r.node) })
	// The kernel forwards while the router is away. On a busy machine connections between other nodes
	// are silent for a while, too.
	got, usual := <-connection, <-other
	r.t.Logf("%s: a connection to a pod is silent for %v, one between other nodes for %v", how, got.gap, usual.gap)
	if got.err != nil || got.gap > usual.gap+5*time.Second {
		r.t.Errorf("%s: a connection to a pod is silent for %v, %v", how, got.gap, got.err)
	}
	r.must(r.RestartControllers())
	r.rollout()
	r.waitAnswer("pods reach each other", r.fromPod("one"), url(r.two, 8080), "two", r.one)
	r.waitAnswer("pods reach each other", r.fromPod("two"), url(r.one, 8080), "one", r.two)
	if now := r.containerOf("two"); now != r.sandbox {
		r.t.Errorf("%s: the pod was %s and is %s", how, r.sandbox, now)
	}
	r.waitUntil("the Node owns the addresses of its pods", func() error {
		report, err := router(r.node).Summary(r.ctx, api.NoLists)
		if err == nil && (report.IPAM == nil || len(report.IPAM.Conflicts) > 0) {
			err = fmt.Errorf("the allocator is %+v", report.IPAM)
		}
		return err
	})
	r.waitUntil("a line says that its router is that of the Node", func() error {
		if out := r.members(); strings.Count(out, r.node.Name+" ") != 1 || !strings.Contains(out, r.uid()) {
			return errors.New(out)
		}
		return nil
	})
	r.pod("new", r.node.Name, "")
	r.kubectl("delete", "pod", "new", "--wait=true")
}

type silence struct {
	gap time.Duration
	err error
}

// connection connects a pod to an address for some time, and returns how long it was silent.
func (k *kube) connection(pod, addr string, seconds int) <-chan silence {
	result := make(chan silence, 1)
	go func() {
		ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
		defer cancel()
		out, err := k.Kubectl(ctx, nil, "exec", pod, "--", "pod", "gap", addr+":8081", strconv.Itoa(seconds))
		longest := 0
		if err == nil {
			longest, err = strconv.Atoi(strings.TrimSpace(out))
		}
		result <- silence{time.Duration(longest) * time.Millisecond, err}
	}()
	return result
}

// goAway deletes the Node, whose kubelet and router do not run, and waits until others have taken
// its addresses over and keep them.
func (r *returning) goAway() {
	r.t.Helper()
	r.must(r.node.StopKubelet(r.ctx))
	r.killRouter()
	r.deleteNode()
	r.waitUntil("others keep its addresses", func() error { _, _, err := r.heir(); return err })
}

// heir returns the node that keeps addresses of the Node, and the peer for which it does.
func (r *returning) heir() (*cluster.Node, string, error) {
	for _, n := range r.Nodes {
		if n == r.node {
			continue
		}
		report, err := router(n).Summary(r.ctx, api.NoLists)
		if err != nil {
			return nil, "", err
		}
		if report.IPAM != nil && len(report.IPAM.Kept) > 0 {
			return n, report.IPAM.Kept[0].Peer, nil
		}
	}
	return nil, "", fmt.Errorf("nobody keeps addresses of %s", r.node.Name)
}

// nodeAddress returns the address of the Node in the network for pods.
func (r *returning) nodeAddress() (netip.Prefix, error) {
	report, err := router(r.node).Summary(r.ctx, api.NoLists)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range report.Attachments {
		if a.ID == api.Exposed && len(a.Addresses) == 1 {
			return a.Addresses[0], nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("the Node has no address: %+v", report.Attachments)
}

// testTaken gives the address of the pod web, and that of the Node itself, to others while the
// Node is away. When it is back, it and the pod get others. The pod two keeps its own.
func (r *returning) testTaken() {
	r.t.Helper()
	name := func(field string) string {
		return r.kubectl("get", "pod", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0]"+field+"}")
	}
	taken, uid, pod := netip.PrefixFrom(netip.MustParseAddr(name(".status.podIP")), 12), name(".metadata.uid"), name(".metadata.name")
	own, err := r.nodeAddress()
	r.must(err)
	r.must(r.StopControllers(r.ctx))
	r.goAway()
	heir, peer, err := r.heir()
	r.must(err)
	// An operator says that the host is dead, and its addresses are given to others.
	_, err = router(heir).RemovePeers(r.ctx, api.PeersRequest{Peers: []string{peer}, Operator: true})
	r.must(err)
	_, err = router(heir).Lease(r.ctx, api.LeaseRequest{Owner: "cni:weft:other:eth0", Addresses: []api.Address{
		{Kind: api.Exactly, Prefix: taken}, {Kind: api.Exactly, Prefix: own},
	}})
	r.must(err)
	r.must(r.node.StartKubelet())
	r.must(r.RestartControllers())
	r.waitUntil("an Event says why the pod is deleted", func() error {
		out := r.kubectl("get", "events", "--field-selector=involvedObject.kind=Pod,involvedObject.name="+pod+",reason=WeftAddressTaken", "-o", "jsonpath={.items[*].message}")
		if want := fmt.Sprintf("its address %s was given to another one on Node %s", taken.Addr(), heir.Name); !strings.Contains(out, want) {
			return fmt.Errorf("the Events are %q, want %q", out, want)
		}
		return nil
	})
	r.waitUntil("its controller makes another one, with another address", func() error {
		out, err := r.Kubectl(r.ctx, nil, "get", "pod", "-l", "app=web", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status.podIP} {.status.phase};{end}")
		if err == nil && (strings.Contains(out, uid) || !strings.Contains(out, " Running;") || strings.Contains(out, " "+taken.Addr().String()+" ")) {
			err = errors.New(out)
		}
		return err
	})
	r.waitUntil("the Node has another address", func() error {
		now, err := r.nodeAddress()
		if err == nil && now == own {
			err = fmt.Errorf("it has %s", now)
		}
		return err
	})
	r.rollout()
	r.waitAnswer("other pods of the Node keep their addresses", r.fromPod("one"), url(r.two, 8080), "two", r.one)
	if now := r.containerOf("two"); now != r.sandbox {
		r.t.Errorf("the pod was %s and is %s", r.sandbox, now)
	}
}
