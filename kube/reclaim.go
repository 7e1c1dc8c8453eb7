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

	"github.com/weft-net/weft/internal/api"
)

const (
	// turnEvery is the delay between the first maxTurns agents. The other agents follow
	// lateTurnEvery apart, all within lateTurnsWithin. The delays only save work: whoever asks,
	// the quorum decides.
	turnEvery       = time.Second
	maxTurns        = 5
	lateTurnEvery   = 10 * time.Millisecond
	lateTurnsWithin = 10 * time.Second
	// checkShare is the time per Node between checks while no Node is deleted. A line may be
	// written late, or be lost. For each check the API server sends all lines.
	checkShare = 200 * time.Millisecond
	// removeTimeout is the timeout of one attempt.
	removeTimeout = 10 * time.Second
)

// turnDelay returns how long an agent waits for the agents before it.
func turnDelay(rank int) time.Duration {
	behind := lateTurnEvery * time.Duration(max(0, rank-maxTurns))
	return turnEvery*time.Duration(min(rank, maxTurns)) + behind%lateTurnsWithin
}

// checkInterval returns how long an agent waits between checks if no Node is deleted. count is the
// number of Nodes. The first agents check every checkEvery. If they are dead, one of the others
// checks soon enough.
func checkInterval(rank, count int) time.Duration {
	if rank < maxTurns {
		return checkEvery
	}
	share := max(checkEvery, checkShare*time.Duration(count))
	return share/2 + rand.N(share)
}

// ranking returns this Node's rank and the number of Nodes, 0 if they are not known.
func (a *Agent) ranking() (own, count int) {
	nodes, err := a.allNodes()
	if err != nil {
		return 0, 0
	}
	return rank(a.cfg.Settings.NodeName, nodes), len(nodes)
}

// reclaimLoop takes over the addresses of peers whose Node was deleted. It does not watch the
// ConfigMap: with a thousand Nodes, each of them would receive all lines whenever another Node
// joins.
func (a *Agent) reclaimLoop(ctx context.Context) {
	errs := newErrorLog(a.cfg.Log)
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.nodeGone:
		case <-time.After(checkInterval(a.ranking())):
		}
		for again := retryEvery; a.reclaim(ctx, errs); again = min(2*again, checkEvery) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(again):
			}
		}
	}
}

// departed returns the dead members, as far as this agent knows. It also notices if its own line
// was removed.
func (a *Agent) departed(ctx context.Context) ([]member, error) {
	self, err := a.self(ctx)
	if err != nil {
		return nil, err
	}
	lines, err := a.lines(ctx)
	if err != nil {
		return nil, err
	}
	if lines[self.key()] != self.value() && a.enrolled.Swap(nil) != nil {
		wake(a.wake)
	}
	nodes, err := a.allNodes()
	return departed(self.peer, parseMembers(lines), nodes), err
}

// reclaim waits for this Node's turn and tries each dead member once. It reports whether it must
// be called again.
func (a *Agent) reclaim(ctx context.Context, errs *errorLog) (again bool) {
	own, _ := a.ranking()
	select {
	case <-ctx.Done():
		return false
	case <-time.After(turnDelay(own)):
	}
	dead, err := a.departed(ctx)
	if err != nil {
		return ctx.Err() == nil
	}
	for _, m := range dead {
		what := "take over the addresses of peer " + m.peer.String() + " of Node " + m.node.name + ", which was deleted"
		if err := a.remove(ctx, m); err != nil {
			errs.failed(what, err)
			again = true
			continue
		}
		errs.succeeded(what)
	}
	return again
}

// remove takes over the addresses of one dead member and deletes its line. It does not ask as an
// operator: that a Node was deleted does not show that its containers are gone. So their addresses
// stay unused for a time, see package ipam.
func (a *Agent) remove(ctx context.Context, m member) error {
	// The lister's cache may be outdated if the Node was created a moment ago.
	if alive, err := a.exists(ctx, m.node); err != nil || alive {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	removed, err := a.cfg.Router.RemovePeers(ctx, api.PeersRequest{Peers: []string{m.peer.String()}})
	if err != nil {
		return err
	}
	for _, r := range removed {
		a.cfg.Log.Info("took over the addresses of a deleted Node", "node", m.node.name, "peer", r.Peer, "addresses", r.Addresses)
	}
	return a.deleteLine(ctx, m)
}

// exists asks the API server, not the cache, whether a Node exists.
func (a *Agent) exists(ctx context.Context, id nodeID) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := a.cfg.Client.CoreV1().Nodes().Get(ctx, id.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return idOf(n) == id, nil
}

// deleteLine deletes a line, unless it has changed.
func (a *Agent) deleteLine(ctx context.Context, m member) error {
	path := "/data/" + m.key()
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": path, "value": m.value()},
		{"op": "remove", "path": path},
	})
	if err != nil {
		return fmt.Errorf("encode a patch: %w", err)
	}
	_, err = a.cfg.Client.CoreV1().ConfigMaps(a.cfg.Settings.Namespace).Patch(ctx, configMapName, types.JSONPatchType, patch, metav1.PatchOptions{})
	if apierrors.IsInvalid(err) || apierrors.IsNotFound(err) {
		return nil // another agent was faster
	}
	return err
}
