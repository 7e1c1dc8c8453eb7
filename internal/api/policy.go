package api

import (
	"context"
	"net/http"
	"net/netip"
)

// DefaultPolicySocket is where the process that enforces policies listens. It is
// not the router's: on Kubernetes that is another one.
//
//	POST /policy/show   PolicyShowRequest -> PolicyReply
//	POST /policy/trace  PolicyTraceRequest -> PolicyReply
//	POST /policy/expect PolicyPodRequest
//	POST /policy/forget PolicyPodRequest
const DefaultPolicySocket = "/run/weft/policy.sock"

// PolicyBackend answers questions about policies, and is told of pods before the API
// server shows their addresses. Its methods are called
// concurrently; ctx ends when the client hangs up.
type PolicyBackend interface {
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
	// Allowed, of a trace only, tells whether the flow may pass.
	Allowed bool `json:"allowed,omitempty"`
}

// PolicyHandler serves the questions about policies.
func PolicyHandler(b PolicyBackend) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /policy/show", post(b.ShowPolicy))
	mux.Handle("POST /policy/trace", post(b.TracePolicy))
	mux.Handle("POST /policy/expect", post(func(ctx context.Context, r PolicyPodRequest) (Empty, error) {
		return Empty{}, b.ExpectPod(ctx, r)
	}))
	mux.Handle("POST /policy/forget", post(func(ctx context.Context, r PolicyPodRequest) (Empty, error) {
		return Empty{}, b.ForgetPod(ctx, r)
	}))
	return mux
}

// ShowPolicy asks what is allowed to and by a pod.
func (c *Client) ShowPolicy(ctx context.Context, r PolicyShowRequest) (PolicyReply, error) {
	return send[PolicyReply](ctx, c, "/policy/show", r)
}

// TracePolicy asks what becomes of a flow.
func (c *Client) TracePolicy(ctx context.Context, r PolicyTraceRequest) (PolicyReply, error) {
	return send[PolicyReply](ctx, c, "/policy/trace", r)
}

// ExpectPod has a pod judged by addresses that it is about to get, and returns when it is.
func (c *Client) ExpectPod(ctx context.Context, r PolicyPodRequest) error {
	_, err := send[Empty](ctx, c, "/policy/expect", r)
	return err
}

// ForgetPod tells that a pod has lost addresses.
func (c *Client) ForgetPod(ctx context.Context, r PolicyPodRequest) error {
	_, err := send[Empty](ctx, c, "/policy/forget", r)
	return err
}
