package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/weft-net/weft/kube"
)

// started is how awaitNodes ended.
type started struct {
	nodes  []*corev1.Node
	err    error
	took   time.Duration
	erased bool
	uid    string // recorded
}

// runAwaitNodes runs awaitNodes on a host that was a Node before, for up to five minutes of
// fake time. Pods live on the host if lives is set.
func runAwaitNodes(t *testing.T, client *fake.Clientset, lives bool) (s started) {
	t.Helper()
	node := nodeRecord{dir: t.TempDir()}
	if err := node.record("uid-before"); err != nil {
		t.Fatal(err)
	}
	left := leftover{
		lives: func() (bool, error) { return lives, nil },
		erase: func() error { s.erased = true; return os.Remove(node.file()) },
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		began := time.Now()
		s.nodes, s.err = awaitNodes(ctx, &kube.Settings{NodeName: "self"}, client, node, left, slog.New(slog.DiscardHandler))
		s.took = time.Since(began)
	})
	var err error
	if s.uid, err = node.last(); err != nil {
		t.Fatal(err)
	}
	return s
}

func nodeWithUID(name, uid string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}}
}

// A host that was a Node before starts soon without an API server, whether that refuses
// connections or does not answer at all.
func TestNodeStartsWithoutAPIServer(t *testing.T) {
	for _, silent := range []bool{false, true} {
		client := fake.NewClientset()
		client.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
			if silent {
				time.Sleep(apiTimeout) // the fake has no context
			}
			return true, nil, errors.New("connection refused")
		})
		if s := runAwaitNodes(t, client, false); s.err != nil || s.nodes != nil || s.took > apiTimeout || s.erased || s.uid != "uid-before" {
			t.Errorf("silent %v: %+v; want a start without Nodes in %v", silent, s, apiTimeout)
		}
	}
}

// The host of a deleted Node on which no pod lives waits, so that other nodes can take over its
// addresses. Living pods need their router.
func TestHostOfADeletedNode(t *testing.T) {
	client := fake.NewClientset(nodeWithUID("other", "uid-other"))
	if s := runAwaitNodes(t, client, false); s.err == nil || s.erased {
		t.Errorf("without pods: %+v", s)
	}
	if s := runAwaitNodes(t, client, true); s.err != nil || s.erased || len(s.nodes) != 1 || s.uid != "uid-before" || s.took > apiTimeout {
		t.Errorf("with pods: %+v", s)
	}
}

// The state of a host is erased only for another Node, and only if no pod lives.
func TestStateIsErasedOnlyIfNoPodLives(t *testing.T) {
	for _, c := range []struct {
		uid           string
		lives, erases bool
	}{
		{"uid-before", false, false},
		{"uid-before", true, false},
		{"uid-now", false, true},
		{"uid-now", true, false},
	} {
		s := runAwaitNodes(t, fake.NewClientset(nodeWithUID("self", c.uid)), c.lives)
		if s.err != nil || s.erased != c.erases || s.uid != c.uid || len(s.nodes) != 1 {
			t.Errorf("%+v: %+v", c, s)
		}
	}
}

// If nobody can say whether pods live, nothing is erased.
func TestStateIsNotErasedInDoubt(t *testing.T) {
	node := nodeRecord{dir: t.TempDir()}
	if err := node.record("uid-before"); err != nil {
		t.Fatal(err)
	}
	left := leftover{
		lives: func() (bool, error) { return false, errors.New("netlink is gone") },
		erase: func() error { t.Error("the state is erased"); return nil },
	}
	for _, client := range []*fake.Clientset{fake.NewClientset(nodeWithUID("self", "uid-now")), fake.NewClientset()} {
		if _, err := awaitNodes(t.Context(), &kube.Settings{NodeName: "self"}, client, node, left, slog.New(slog.DiscardHandler)); err == nil {
			t.Error("it starts")
		}
	}
	if uid, err := node.last(); err != nil || uid != "uid-before" {
		t.Errorf("recorded %q, %v", uid, err)
	}
}
