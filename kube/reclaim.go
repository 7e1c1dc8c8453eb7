package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/internal/api"
)

const (
	// turnEvery is how long an agent lets each of those before it try first, up to
	// maxTurns. It only saves work: the quorum decides, whoever asks.
	turnEvery = time.Second
	maxTurns  = 5
	// removePatience bounds one attempt.
	removePatience = 10 * time.Second
)

// reclaimLoop takes over the addresses of peers whose Node is gone, each time
// that it is told to look.
func (a *Agent) reclaimLoop(ctx context.Context, look <-chan struct{}) {
	wrong := newFaults(a.Log)
	for {
		select {
		case <-ctx.Done():
			return
		case <-look:
		}
		for a.reclaim(ctx, wrong) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(retryEvery):
			}
		}
	}
}

// departed lists the dead members, as this agent sees it now.
func (a *Agent) departed(ctx context.Context) ([]member, error) {
	self, err := a.self(ctx)
	if err != nil {
		return nil, err
	}
	m, err := a.members.Get(configMapName)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	nodes, err := a.allNodes()
	return departed(self.peer, parseMembers(m.Data), nodes), err
}

// reclaim tries each dead member once, and tells whether there is one left.
func (a *Agent) reclaim(ctx context.Context, wrong *faults) (left bool) {
	gone, err := a.departed(ctx)
	if err != nil || len(gone) == 0 {
		return false // the next look comes by itself
	}
	nodes, err := a.allNodes()
	if err != nil {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(turnEvery * time.Duration(min(rank(a.Settings.NodeName, nodes), maxTurns))):
	}
	// Others may have done it meanwhile.
	if gone, err = a.departed(ctx); err != nil {
		return true
	}
	for _, m := range gone {
		what := "take over the addresses of peer " + m.peer.String() + " of Node " + m.node.name + ", which is gone"
		if err := a.remove(ctx, m); err != nil {
			wrong.say(what, err)
			left = true
			continue
		}
		wrong.over(what)
	}
	return left
}

// remove takes over the addresses of one dead member and strikes its line.
func (a *Agent) remove(ctx context.Context, m member) error {
	// The list may be old where a Node has only just come, or come back.
	if alive, err := a.exists(ctx, m.node); err != nil || alive {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	removed, err := a.Router.RemovePeers(ctx, api.PeersRequest{Peers: []string{m.peer.String()}})
	if err != nil {
		return err
	}
	for _, r := range removed {
		a.Log.Info("the addresses of a Node that is gone are taken over", "node", m.node.name, "peer", r.Peer, "addresses", r.Addresses)
	}
	return a.strike(ctx, m)
}

// exists asks the API server itself whether a Node is there.
func (a *Agent) exists(ctx context.Context, id nodeID) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	n, err := a.Client.CoreV1().Nodes().Get(ctx, id.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return idOf(n) == id, nil
}

// strike deletes a line, unless it is another by now.
func (a *Agent) strike(ctx context.Context, m member) error {
	path := "/data/" + m.key()
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": path, "value": m.value()},
		{"op": "remove", "path": path},
	})
	if err != nil {
		return fmt.Errorf("write a patch: %w", err)
	}
	_, err = a.Client.CoreV1().ConfigMaps(a.Settings.Namespace).Patch(ctx, configMapName, types.JSONPatchType, patch, metav1.PatchOptions{})
	if apierrors.IsInvalid(err) || apierrors.IsNotFound(err) {
		return nil // somebody else was quicker
	}
	return err
}

func (a *Agent) patchMembers(ctx context.Context, change any) error {
	patch, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("write a patch: %w", err)
	}
	_, err = a.Client.CoreV1().ConfigMaps(a.Settings.Namespace).Patch(ctx, configMapName, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
