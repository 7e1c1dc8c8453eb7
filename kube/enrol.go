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

// writeSlot is the time per Node for writing its line, when all Nodes write at once. The API
// server serialises writes of an object, and every writer that waits retries after each write.
const writeSlot = 10 * time.Millisecond

// enrol writes this Node's line to the ConfigMap, at a random time within the time slots of all
// Nodes.
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

// awaitWriteSlot waits for the time at which this Node may write.
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

// self returns this Node's line.
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

// lines returns the lines of the ConfigMap, or none if it does not exist. It accepts any version
// in the API server's cache, which is cheapest when all Nodes read.
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
		return fmt.Errorf("encode a patch: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = a.cfg.Client.CoreV1().ConfigMaps(a.cfg.Settings.Namespace).Patch(ctx, configMapName, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no ConfigMap %s/%s; apply weft's manifest again", a.cfg.Settings.Namespace, configMapName)
	}
	return err
}
