package kube

import (
	"context"
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
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/poll"
)

// busyServer is an API server with one ConfigMap. Like a real one it serialises writes, and
// returns a conflict to a writer that would have to retry more than five times.
type busyServer struct {
	mu        sync.Mutex
	data      map[string]string
	busyUntil time.Time // when the accepted writes are done
	conflicts int
	requests  map[string]int // number of requests by verb
}

// writeTime is longer than writeSlot, so that some Nodes have to retry.
const writeTime = 12 * time.Millisecond

func (s *busyServer) react(action clienttesting.Action) (handled bool, ret runtime.Object, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[action.GetVerb()]++
	patch, ok := action.(clienttesting.PatchAction)
	if !ok {
		return true, &corev1.ConfigMap{Data: maps.Clone(s.data)}, nil
	}
	now := time.Now()
	if s.busyUntil.Sub(now) > 5*writeTime {
		s.conflicts++
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, configMapName, errors.New("it has been modified"))
	}
	if s.busyUntil.Before(now) {
		s.busyUntil = now
	}
	s.busyUntil = s.busyUntil.Add(writeTime)
	if err := s.change(patch); err != nil {
		return true, nil, err
	}
	return true, &corev1.ConfigMap{}, nil
}

// change applies a patch: it writes a line, or deletes it if its value passes the patch's test.
func (s *busyServer) change(patch clienttesting.PatchAction) error {
	if patch.GetPatchType() == types.MergePatchType {
		var change corev1.ConfigMap
		if err := json.Unmarshal(patch.GetPatch(), &change); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		maps.Copy(s.data, change.Data)
		return nil
	}
	var steps []struct{ Op, Path, Value string }
	if err := json.Unmarshal(patch.GetPatch(), &steps); err != nil || len(steps) != 2 || steps[0].Op != "test" || steps[1].Op != "remove" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s: %v", patch.GetPatch(), err))
	}
	key := strings.TrimPrefix(steps[1].Path, "/data/")
	if s.data[key] != steps[0].Value {
		return apierrors.NewInvalid(schema.GroupKind{}, configMapName, nil)
	}
	delete(s.data, key)
	return nil
}

// get returns a property of the server, read under its lock.
func (s *busyServer) get(f func(*busyServer) int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(s)
}

// routerOfMany is one of many routers that agree which peers are reachable.
type routerOfMany struct {
	*router
	name string
}

func (r *routerOfMany) Ready(context.Context) (api.Ready, error) {
	return api.Ready{Ready: true, Name: r.name}, nil
}

// A thousand Nodes that join at once are all in the ConfigMap after some seconds. The ConfigMap
// stays far below the size limit of the API server, and each Node reads it a few times and not
// once for each other Node.
func TestThousandNodesJoinAtOnce(t *testing.T) {
	const count = 1000
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		server := &busyServer{data: make(map[string]string), requests: make(map[string]int)}
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
			a := NewAgent(AgentConfig{
				Settings: &Settings{NodeName: nodeName(i), Namespace: "kube-system"}, Client: client, Log: slog.New(slog.DiscardHandler),
				Router: &router{name: fmt.Sprintf("02:00:00:00:%02x:%02x", i/256, i%256)},
			})
			a.nodes = corelisters.NewNodeLister(nodes)
			joined.Go(func() {
				for a.enrol(t.Context()) != nil {
					time.Sleep(retryEvery) // as Agent.loop does
				}
			})
		}
		joined.Wait()
		took := time.Since(began)
		size := 0
		for key, value := range server.data {
			size += len(key) + len(value)
		}
		t.Logf("%v, %d conflicts, %d reads, %d writes, %d bytes", took, server.conflicts, server.requests["get"], server.requests["patch"], size)
		if len(server.data) != count || len(parseMembers(server.data)) != count {
			t.Errorf("%d lines, %d of them of members; want %d", len(server.data), len(parseMembers(server.data)), count)
		}
		if server.conflicts == 0 {
			t.Error("there was no conflict, but the test needs some")
		}
		if took > time.Minute {
			t.Errorf("the last Node was recorded after %v", took)
		}
		if size > corev1.MaxSecretSize/4 {
			t.Errorf("the ConfigMap has %d bytes; the API server allows %d", size, corev1.MaxSecretSize)
		}
		if n := server.requests["get"] + server.requests["patch"]; n > 4*count {
			t.Errorf("%d Nodes sent %d requests", count, n)
		}
		if n := server.requests["list"] + server.requests["watch"]; n > 0 {
			t.Errorf("%d requests of Nodes watch every change", n)
		}
	})
}

// The addresses of a deleted Node are taken over within 30 seconds after its router ended. This
// must hold for any number of Nodes and even if the agents of the first Nodes are dead; each
// living agent sends only a few requests to the API server.
func TestNodeIsDeletedInLargeCluster(t *testing.T) {
	for _, count := range []int{maxTurns + 3, 1000} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset()
				server := &busyServer{data: make(map[string]string), requests: make(map[string]int)}
				client.PrependReactor("*", "configmaps", server.react)
				nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
				routers := &router{}
				var agents []*Agent
				for i := range count {
					n := node(fmt.Sprintf("node-%04d", i), fmt.Sprintf("uid-%d", i))
					if err := nodes.Add(n); err != nil {
						t.Fatal(err)
					}
					a := NewAgent(AgentConfig{
						Settings: &Settings{NodeName: n.Name, Namespace: "kube-system"}, Client: client, Log: slog.New(slog.DiscardHandler),
						Router: &routerOfMany{routers, fmt.Sprintf("02:00:00:00:%02x:%02x", i/256, i%256)},
					})
					a.nodes = corelisters.NewNodeLister(nodes)
					self, err := a.self(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					server.data[self.key()] = self.value()
					agents = append(agents, a)
				}
				last, err := agents[count-1].self(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				routers.alive = []string{last.peer.String()}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				alive := agents[maxTurns : count-1]
				for _, a := range alive {
					go a.reclaimLoop(ctx)
				}
				if err := nodes.Delete(node(last.node.name, last.node.uid)); err != nil {
					t.Fatal(err)
				}
				for _, a := range alive {
					wake(a.nodeGone)
				}
				time.Sleep(20 * time.Second)
				if n := server.get(func(s *busyServer) int { return len(s.data) }); n != count {
					t.Fatalf("%d lines while the router of the deleted Node is reachable, want %d", n, count)
				}
				routers.get(func(r *router) bool { r.alive = nil; return true })
				ended := time.Now()
				if err := poll.Until(time.Minute, 100*time.Millisecond, poll.True(func() bool {
					return server.get(func(s *busyServer) int { return len(s.data) }) != count
				})); err != nil {
					t.Errorf("the addresses are not taken over: %v", err)
				}
				reads := server.get(func(s *busyServer) int { return s.requests["get"] })
				t.Logf("taken over after %v, %d reads", time.Since(ended), reads)
				if time.Since(ended) > 30*time.Second {
					t.Errorf("taken over after %v", time.Since(ended))
				}
				if reads > 5*len(alive) {
					t.Errorf("%d agents read the lines %d times", len(alive), reads)
				}
			})
		})
	}
}

// After a Node is deleted, the first agents act one second apart and no two of the others act at
// the same time. All act within the time that is promised for the takeover of a dead Node's
// addresses.
func TestTurnDelays(t *testing.T) {
	seen := make(map[time.Duration]int)
	for rank := range 1000 {
		wait := turnDelay(rank)
		if other, ok := seen[wait]; ok {
			t.Errorf("agents %d and %d act at the same time", other, rank)
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

// earlierNodes returns Nodes that rank before the scene's Node and whose agents do nothing.
func earlierNodes(count int) (list []*corev1.Node) {
	for i := range count {
		list = append(list, node(fmt.Sprintf("before-%d", i), fmt.Sprintf("uid-%d", i)))
	}
	return list
}

// A line that is written after its Node was deleted is noticed in time, even if the agents of the
// first Nodes are dead.
func TestLateLineIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil, earlierNodes(2*maxTurns)...)
		s.run()
		time.Sleep(time.Minute)
		if err := s.agent.patchMembers(t.Context(), map[string]any{"data": map[string]any{"02-00-00-00-00-02": "late uid-late"}}); err != nil {
			t.Fatal(err)
		}
		s.until("the peer is taken over", func() bool { return s.lines()["02-00-00-00-00-02"] == "" })
	})
}

// A Node that is deleted while the agent cannot act for minutes is not forgotten.
func TestNodeIsDeletedDuringOutage(t *testing.T) {
	for name, set := range map[string]func(s *scene, down *atomic.Bool, to bool){
		"API server": func(_ *scene, down *atomic.Bool, to bool) { down.Store(to) },
		"router": func(s *scene, _ *atomic.Bool, to bool) {
			s.router.get(func(r *router) bool { r.down = to; return true })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, map[string]string{"02-00-00-00-00-02": "other uid-other"}, append(earlierNodes(2*maxTurns), node("other", "uid-other"))...)
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
					t.Errorf("pods have a network, but the Node is not ready: %s", s.agent.health.reason())
				}
				set(s, &down, false)
				s.until("the peer is taken over", func() bool { return len(s.lines()) == 1 })
			})
		})
	}
}

// For any number of Nodes, each agent checks often enough to act in place of the first ones, and
// all together cause little load on the API server.
func TestCheckIntervals(t *testing.T) {
	for _, count := range []int{1, 3, 10, 100, 1000, 5000} {
		checks := 0.0 // per second, without the first agents
		for rank := range count {
			wait := checkInterval(rank, count)
			if rank < maxTurns && wait != checkEvery {
				t.Errorf("agent %d of %d checks after %v", rank, count, wait)
			}
			if rank >= maxTurns {
				checks += 1 / wait.Seconds()
			}
			if wait < checkEvery/2 || wait > max(2*checkEvery, time.Duration(count)*time.Second) {
				t.Errorf("agent %d of %d checks after %v", rank, count, wait)
			}
		}
		if checks > 10 {
			t.Errorf("%d agents check %.1f times a second", count, checks)
		}
	}
}

// If somebody deletes the ConfigMap, the agent reports how to restore it. Once it is restored, the
// agent writes its line, whatever its rank.
func TestConfigMapIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil, earlierNodes(2*maxTurns)...)
		maps := s.client.CoreV1().ConfigMaps("kube-system")
		s.run()
		ready := func() bool { return s.agent.health.reason() == "" }
		s.until("its line is written", func() bool { return len(s.lines()) == 1 })
		s.until("it is ready", ready)
		if err := maps.Delete(t.Context(), configMapName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		s.until("it reports how to restore the ConfigMap", func() bool {
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

// A line that somebody removed is restored: without it the peer of a dead Node would not be known.
func TestRemovedLineIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil, earlierNodes(2*maxTurns)...)
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
