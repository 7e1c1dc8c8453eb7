package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/weft-net/weft/kube"
)

// runAwaitNodes runs awaitNodes on a host that was a Node before, for up to five minutes of
// fake time.
func runAwaitNodes(t *testing.T, client *fake.Clientset) (nodes []*corev1.Node, err error) {
	t.Helper()
	node := nodeRecord{dir: t.TempDir()}
	if err := node.record("uid-before"); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		nodes, err = awaitNodes(ctx, &kube.Settings{NodeName: "self"}, client, node, slog.New(slog.DiscardHandler))
	})
	return nodes, err
}

func TestNodeStartsWithoutAPIServer(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	if nodes, err := runAwaitNodes(t, client); err != nil || nodes != nil {
		t.Errorf("started with %v, %v; want no Nodes and no error", nodes, err)
	}
}

// The host of a deleted Node waits, so that other nodes can take over its addresses.
func TestDeletedNodeWaits(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	if nodes, err := runAwaitNodes(t, client); err == nil {
		t.Errorf("started with Nodes %v", nodes)
	}
}
