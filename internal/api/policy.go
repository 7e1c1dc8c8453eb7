package api

import (
	"context"
	"net/http"
)

// DefaultPolicySocket is where the process that enforces policies listens. It is
// not the router's: on Kubernetes that is another one.
//
//	POST /policy/show   PolicyShowRequest -> PolicyReply
//	POST /policy/trace  PolicyTraceRequest -> PolicyReply
const DefaultPolicySocket = "/run/weft/policy.sock"

// PolicyBackend answers questions about policies. Its methods are called
// concurrently; ctx ends when the client hangs up.
type PolicyBackend interface {
	ShowPolicy(ctx context.Context, r PolicyShowRequest) (PolicyReply, error)
	TracePolicy(ctx context.Context, r PolicyTraceRequest) (PolicyReply, error)
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
