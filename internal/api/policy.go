package api

import (
	"context"
	"net/http"
	"net/netip"
)

// DefaultPolicySocket is where the policy engine listens. On Kubernetes the engine
// and the router run in one process, but each has a socket of its own.
//
//	POST /policy/show   PolicyShowRequest -> PolicyReply
//	POST /policy/trace  PolicyTraceRequest -> PolicyReply
//	POST /policy/expect PolicyPodRequest
//	POST /policy/forget PolicyPodRequest
const DefaultPolicySocket = "/run/weft/policy.sock"

// Policies answers questions about policies, and learns of pods before the API
// server shows their addresses.
type Policies interface {
	ShowPolicy(ctx context.Context, r PolicyShowRequest) (PolicyReply, error)
	TracePolicy(ctx context.Context, r PolicyTraceRequest) (PolicyReply, error)
	ExpectPod(ctx context.Context, r PolicyPodRequest) error
	ForgetPod(ctx context.Context, r PolicyPodRequest) error
}

// PolicyShowRequest names a pod, NAMESPACE/NAME or NAME in namespace default.
type PolicyShowRequest struct {
	Pod string `json:"pod"`
}

// PolicyTraceRequest names a flow. Source and Destination are pods as in
// PolicyShowRequest, or addresses; Port is [PROTOCOL/]NUMBER or a name that the
// destination's containers give one, or icmp.
type PolicyTraceRequest struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        string `json:"port"`
}

// PolicyPodRequest names a pod of this node that is about to get these addresses, or has
// lost them.
type PolicyPodRequest struct {
	Pod       string       `json:"pod"`           // NAMESPACE/NAME
	UID       string       `json:"uid,omitempty"` // as the kubelet has it; empty: not known
	Addresses []netip.Addr `json:"addresses"`
}

// PolicyReply answers in lines for people.
type PolicyReply struct {
	Lines []string `json:"lines"`
	// Allowed is set for a trace only, and reports whether the flow may pass.
	Allowed bool `json:"allowed,omitempty"`
}

// PolicyRoutes serves the questions about policies.
func PolicyRoutes(b Policies) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("POST /policy/show", post(b.ShowPolicy))
		mux.Handle("POST /policy/trace", post(b.TracePolicy))
		mux.Handle("POST /policy/expect", command(b.ExpectPod))
		mux.Handle("POST /policy/forget", command(b.ForgetPod))
	}
}

// ShowPolicy asks what is allowed to and by a pod.
func (c *Client) ShowPolicy(ctx context.Context, r PolicyShowRequest) (PolicyReply, error) {
	return send[PolicyReply](ctx, c, "/policy/show", r)
}

// TracePolicy asks whether a flow is allowed, and by which policy.
func (c *Client) TracePolicy(ctx context.Context, r PolicyTraceRequest) (PolicyReply, error) {
	return send[PolicyReply](ctx, c, "/policy/trace", r)
}

// ExpectPod announces a pod with the addresses that it is about to get, and returns
// when the policies hold for it.
func (c *Client) ExpectPod(ctx context.Context, r PolicyPodRequest) error {
	_, err := send[Empty](ctx, c, "/policy/expect", r)
	return err
}

// ForgetPod reports that a pod has lost addresses.
func (c *Client) ForgetPod(ctx context.Context, r PolicyPodRequest) error {
	_, err := send[Empty](ctx, c, "/policy/forget", r)
	return err
}
