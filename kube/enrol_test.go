package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

// busyServer is an API server with one ConfigMap. It does one write after the other, and tells
// those that would have to try more than five times that there was a conflict, as the real one does.
type busyServer struct {
	mu        sync.Mutex
	data      map[string]string
	free      time.Time // when the writes are done that it has accepted
	conflicts int
	asked     map[string]int // requests, by verb
}

// writeTakes is more than enrolShare: some Nodes have to try again.
const writeTakes = 12 * time.Millisecond

func (s *busyServer) react(action clienttesting.Action) (handled bool, ret runtime.Object, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[action.GetVerb()]++
	patch, ok := action.(clienttesting.PatchAction)
	if !ok {
		return true, &corev1.ConfigMap{Data: maps.Clone(s.data)}, nil
	}
	now := time.Now()
	if s.free.Sub(now) > 5*writeTakes {
		s.conflicts++
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, configMapName, errors.New("it has been modified"))
	}
	if s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(writeTakes)
	var change corev1.ConfigMap
	if err := json.Unmarshal(patch.GetPatch(), &change); err != nil {
		return true, nil, apierrors.NewBadRequest(err.Error())
	}
	maps.Copy(s.data, change.Data)
	return true, &corev1.ConfigMap{}, nil
}

// A thousand Nodes that join at once are all down in the ConfigMap after some seconds, which stays
// far below what the API server stores of one object, and each Node has asked for it some times and
// not once for each other Node.
func TestAThousandNodesJoinAtOnce(t *testing.T) {
	const count = 1000
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		server := &busyServer{data: make(map[string]string), asked: make(map[string]int)}
		client.PrependReactor("*", "configmaps", server.react)
		nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
		nodeName := func(i int) string { return fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/256, i%256) }
		for i := range count {
			if err := nodes.Add(node(nodeName(i), fmt.Sprintf("0f8e6a0c-0000-4000-8000-%012d", i))); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		var joined sync.WaitGroup
		for i := range count {
			a := &Agent{
				Settings: &Settings{NodeName: nodeName(i), Namespace: "kube-system"}, Client: client, Log: slog.New(slog.DiscardHandler),
				Router: &router{name: fmt.Sprintf("02:00:00:00:%02x:%02x", i/256, i%256)}, nodes: corelisters.NewNodeLister(nodes),
			}
			joined.Go(func() {
				for a.enrol(t.Context()) != nil {
					time.Sleep(retryEvery) // as loop does
				}
			})
		}
		joined.Wait()
		took := time.Since(began)
		size := 0
		for key, value := range server.data {
			size += len(key) + len(value)
		}
		t.Logf("%v, %d conflicts, %d reads, %d writes, %d bytes", took, server.conflicts, server.asked["get"], server.asked["patch"], size)
		if len(server.data) != count || len(parseMembers(server.data)) != count {
			t.Errorf("%d lines, %d of them of members; want %d", len(server.data), len(parseMembers(server.data)), count)
		}
		if server.conflicts == 0 {
			t.Error("there was no conflict; this test is to have some")
		}
		if took > time.Minute {
			t.Errorf("the last one got in after %v", took)
		}
		if size > corev1.MaxSecretSize/4 {
			t.Errorf("the ConfigMap has %d bytes; the API server takes %d", size, corev1.MaxSecretSize)
		}
		if n := server.asked["get"] + server.asked["patch"]; n > 4*count {
			t.Errorf("%d Nodes asked %d times", count, n)
		}
		if n := server.asked["list"] + server.asked["watch"]; n > 0 {
			t.Errorf("%d Nodes are told of every change", n)
		}
	})
}

// Who comes when a Node goes: the first ones a second apart, and no two of the others together,
// all of them within the time in which a dead Node's addresses are promised to be back.
func TestTurns(t *testing.T) {
	seen := make(map[time.Duration]int)
	for rank := range 1000 {
		wait := turn(rank)
		if other, ok := seen[wait]; ok {
			t.Errorf("agents %d and %d look at once", other, rank)
		}
		seen[wait] = rank
		if wait > 20*time.Second {
			t.Errorf("agent %d waits %v", rank, wait)
		}
		if rank < maxTurns && wait != time.Duration(rank)*turnEvery {
			t.Errorf("agent %d waits %v", rank, wait)
		}
	}
}

// others are Nodes that come before the scene's one, and whose agents do nothing.
func others(count int) (list []*corev1.Node) {
	for i := range count {
		list = append(list, node(fmt.Sprintf("before-%d", i), fmt.Sprintf("uid-%d", i)))
	}
	return list
}

// A line that was written after its Node had gone is seen in time although the agents of the
// first Nodes are dead.
func TestALateLineIsSeenWhoeverIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil, others(2*maxTurns)...)
		s.run()
		time.Sleep(time.Minute)
		if err := s.agent.patchMembers(t.Context(), map[string]any{"data": map[string]any{"02-00-00-00-00-02": "late uid-late"}}); err != nil {
			t.Fatal(err)
		}
		s.until("the peer is taken over", func() bool { return s.lines()["02-00-00-00-00-02"] == "" })
	})
}

// A Node that goes while the agent can not act, for minutes, is not forgotten.
func TestANodeGoesWhileTheAgentCanNotAct(t *testing.T) {
	for name, set := range map[string]func(s *scene, down *atomic.Bool, to bool){
		"API server": func(_ *scene, down *atomic.Bool, to bool) { down.Store(to) },
		"router": func(s *scene, _ *atomic.Bool, to bool) {
			s.router.get(func(r *router) bool { r.away = to; return true })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, map[string]string{"02-00-00-00-00-02": "other uid-other"}, append(others(2*maxTurns), node("other", "uid-other"))...)
				var down atomic.Bool
				s.client.PrependReactor("*", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
					return down.Load(), nil, errors.New("connection refused")
				})
				s.run()
				s.until("its line is written", func() bool { return len(s.lines()) == 2 })
				s.until("it is ready", func() bool { return s.agent.health.reason() == "" })
				set(s, &down, true)
				if err := s.client.CoreV1().Nodes().Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				if name != "router" && s.agent.health.reason() != "" {
					t.Errorf("pods have a network, and it is not ready: %s", s.agent.health.reason())
				}
				set(s, &down, false)
				s.until("the peer is taken over", func() bool { return len(s.lines()) == 1 })
			})
		})
	}
}

// However many Nodes there are, they look often enough for any of them to act for the first ones, and
// together not so often that the API server has much to send.
func TestPauses(t *testing.T) {
	for _, count := range []int{1, 3, 10, 100, 1000, 5000} {
		looks := 0.0 // a second, of all but the first ones
		for rank := range count {
			wait := pause(rank, count)
			if rank < maxTurns && wait != lookEvery {
				t.Errorf("agent %d of %d looks after %v", rank, count, wait)
			}
			if rank >= maxTurns {
				looks += 1 / wait.Seconds()
			}
			if wait < lookEvery/2 || wait > max(2*lookEvery, time.Duration(count)*time.Second) {
				t.Errorf("agent %d of %d looks after %v", rank, count, wait)
			}
		}
		if looks > 10 {
			t.Errorf("%d agents look %.1f times a second", count, looks)
		}
	}
}

// Where somebody deletes the ConfigMap the agent says what is to be done, and writes its line
// when it is done, whichever its place among the Nodes.
func TestTheConfigMapIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil, others(2*maxTurns)...)
		maps := s.client.CoreV1().ConfigMaps("kube-system")
		s.run()
		ready := func() bool { return s.agent.health.reason() == "" }
		s.until("its line is written", func() bool { return len(s.lines()) == 1 })
		s.until("it is ready", ready)
		if err := maps.Delete(t.Context(), configMapName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		s.until("it says what is to be done", func() bool {
			return strings.Contains(s.agent.health.reason(), "there is no ConfigMap kube-system/weft-peers; apply weft's manifest again")
		})
		again := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: configMapName}}
		if _, err := maps.Create(t.Context(), again, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		s.until("its line is written", func() bool { return len(s.lines()) == 1 })
		s.until("it is ready again", ready)
	})
}

// A line that somebody removed is there again, as it is by it that a dead Node's peer is known.
func TestALineThatWasRemovedComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil, others(2*maxTurns)...)
		s.run()
		key := strings.ReplaceAll(selfPeer, ":", "-")
		s.until("its line is written", func() bool { return s.lines()[key] != "" })
		if err := s.agent.patchMembers(t.Context(), map[string]any{"data": map[string]any{key: nil}}); err != nil {
			t.Fatal(err)
		}
		if s.lines()[key] != "" {
			t.Fatal("the line was not removed")
		}
		s.until("it is written again", func() bool { return s.lines()[key] != "" })
	})
}
