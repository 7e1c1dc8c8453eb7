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
	// turnEvery is how long each of the first maxTurns agents lets those before it try first; the
	// others come after them, turnShare apart, in turnRoom at most. It only saves work: the quorum
	// decides, whoever asks.
	turnEvery       = time.Second
	maxTurns        = 5
	lateTurnEvery   = 10 * time.Millisecond
	lateTurnsWithin = 10 * time.Second
	// lookShare is how much time there is for each Node to look while none goes: a line may be
	// written late, or be lost. The API server sends all lines for each look.
	checkShare = 200 * time.Millisecond
	// removeTimeout bounds one attempt.
	removeTimeout = 10 * time.Second
)

// turn is how long an agent lets those before it try first.
func turnDelay(rank int) time.Duration {
	behind := lateTurnEvery * time.Duration(max(0, rank-maxTurns))
	return turnEvery*time.Duration(min(rank, maxTurns)) + behind%lateTurnsWithin
}

// pause is how long an agent does not look while no Node goes, of as many as there are. The first
// ones look every checkEvery. Where these are dead one of the others looks as soon.
func checkInterval(rank, count int) time.Duration {
	if rank < maxTurns {
		return checkEvery
	}
	share := max(checkEvery, checkShare*time.Duration(count))
	return share/2 + rand.N(share)
}

// place returns this Node's rank and how many Nodes there are, 0 if they are not known.
func (a *Agent) ranking() (own, count int) {
	nodes, err := a.allNodes()
	if err != nil {
		return 0, 0
	}
	return rank(a.cfg.Settings.NodeName, nodes), len(nodes)
}

// reclaimLoop takes over the addresses of peers whose Node is gone. What is written of the members
// is a word of each Node, so it is not watched: each of a thousand Nodes would get all of it
// whenever another one joins.
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

// departed lists the dead members, as this agent sees it now. It notices when its own line is gone.
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

// reclaim tries each dead member once when it is this Node's turn, and reports whether it is to be
// tried again.
func (a *Agent) reclaim(ctx context.Context, errs *errorLog) (again bool) {
	own, _ := a.ranking()
	select {
	case <-ctx.Done():
		return false
	case <-time.After(turnDelay(own)):
	}
	gone, err := a.departed(ctx)
	if err != nil {
		return ctx.Err() == nil
	}
	for _, m := range gone {
		what := "take over the addresses of peer " + m.peer.String() + " of Node " + m.node.name + ", which is gone"
		if err := a.remove(ctx, m); err != nil {
			errs.failed(what, err)
			again = true
			continue
		}
		errs.succeeded(what)
	}
	return again
}

// remove takes over the addresses of one dead member and strikes its line.
func (a *Agent) remove(ctx context.Context, m member) error {
	// The list may be old where a Node has only just come, or come back.
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
		a.cfg.Log.Info("the addresses of a Node that is gone are taken over", "node", m.node.name, "peer", r.Peer, "addresses", r.Addresses)
	}
	return a.deleteLine(ctx, m)
}

// exists asks the API server itself whether a Node is there.
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

// strike deletes a line, unless it is another by now.
func (a *Agent) deleteLine(ctx context.Context, m member) error {
	path := "/data/" + m.key()
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": path, "value": m.value()},
		{"op": "remove", "path": path},
	})
	if err != nil {
		return fmt.Errorf("write a patch: %w", err)
	}
	_, err = a.cfg.Client.CoreV1().ConfigMaps(a.cfg.Settings.Namespace).Patch(ctx, configMapName, types.JSONPatchType, patch, metav1.PatchOptions{})
	if apierrors.IsInvalid(err) || apierrors.IsNotFound(err) {
		return nil // somebody else was quicker
	}
	return err
}
