package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/mesh/peer"
)

// enrolShare is how much time there is for each Node to write its line when all write at once: the
// API server does one write of an object after the other, and all that wait try again each time.
const writeSlot = 10 * time.Millisecond

// enrol has this Node's line in the ConfigMap. It is written at a random moment of the time that
// all Nodes together need.
func (a *Agent) enrol(ctx context.Context) error {
	self, err := a.self(ctx)
	if err != nil {
		return err
	}
	if a.cfg.RecordUID != nil {
		if err := a.cfg.RecordUID(self.node.uid); err != nil {
			return err
		}
	}
	if have := a.enrolled.Load(); have != nil && *have == self {
		return nil
	}
	lines, err := a.lines(ctx)
	if err != nil {
		return err
	}
	if lines[self.key()] != self.value() {
		if err := a.awaitWriteSlot(ctx); err != nil {
			return err
		}
		if err := a.patchMembers(ctx, map[string]any{"data": map[string]string{self.key(): self.value()}}); err != nil {
			return err
		}
	}
	a.enrolled.Store(&self)
	return nil
}

// awaitShare waits for the moment at which this Node may write.
func (a *Agent) awaitWriteSlot(ctx context.Context) error {
	nodes, err := a.allNodes()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rand.N(writeSlot * time.Duration(len(nodes)))):
		return nil
	}
}

// self is this Node's line.
func (a *Agent) self(ctx context.Context) (member, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := a.nodes.Get(a.cfg.Settings.NodeName)
	if err != nil {
		return member{}, err
	}
	r, err := a.cfg.Router.Ready(ctx)
	if err != nil {
		return member{}, err
	}
	p, err := peer.ParseName(r.Name)
	return member{p, idOf(n)}, err
}

// lines reads the ConfigMap, none if it is not there. Any version that the API server has at hand
// will do, which costs it least when all Nodes ask.
func (a *Agent) lines(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, err := a.cfg.Client.CoreV1().ConfigMaps(a.cfg.Settings.Namespace).Get(ctx, configMapName, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

func (a *Agent) patchMembers(ctx context.Context, change any) error {
	patch, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("write a patch: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = a.cfg.Client.CoreV1().ConfigMaps(a.cfg.Settings.Namespace).Patch(ctx, configMapName, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no ConfigMap %s/%s; apply weft's manifest again", a.cfg.Settings.Namespace, configMapName)
	}
	return err
}
