package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Cloud providers set the condition NetworkUnavailable on a new Node. It keeps pods off the Node
// until the network plugin clears it.
const (
	upReason  = "WeftIsUp"
	upMessage = "weft gives pods of this Node a network"
)

// mark clears the condition NetworkUnavailable of this Node.
func (a *Agent) mark(ctx context.Context) error {
	n, err := a.nodes.Get(a.cfg.Settings.NodeName)
	if err != nil {
		return err
	}
	if isUp(n) {
		return nil
	}
	now := metav1.NewTime(time.Now())
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: upReason, Message: upMessage, LastTransitionTime: now, LastHeartbeatTime: now,
	}}}})
	if err != nil {
		return fmt.Errorf("encode a condition: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = a.cfg.Client.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func isUp(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return c.Status == corev1.ConditionFalse && c.Reason == upReason
		}
	}
	return false
}
