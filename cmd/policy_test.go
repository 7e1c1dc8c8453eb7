package cmd

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/weft-net/weft/internal/api"
)

// fakePolicies answers like a policy engine.
type fakePolicies struct{}

func (fakePolicies) ExpectPod(context.Context, api.PolicyPodRequest) error { return nil }

func (fakePolicies) ForgetPod(context.Context, api.PolicyPodRequest) error { return nil }

func (fakePolicies) ShowPolicy(_ context.Context, r api.PolicyShowRequest) (api.PolicyReply, error) {
	if r.Pod == "none" {
		return api.PolicyReply{}, errors.New("look up pod default/none: not in the cluster")
	}
	return api.PolicyReply{Lines: []string{"pod " + r.Pod, "ingress"}}, nil
}

func (fakePolicies) TracePolicy(_ context.Context, r api.PolicyTraceRequest) (api.PolicyReply, error) {
	if r.Port == "x" {
		return api.PolicyReply{}, &api.Error{Class: api.Usage, Text: "port \"x\": no number"}
	}
	return api.PolicyReply{Lines: []string{r.Source + " " + r.Destination + " " + r.Port}}, nil
}

func TestPolicy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "policy.sock")
	for _, args := range [][]string{{"policy", "show", "a"}, {"policy", "trace", "a", "b", "1"}} {
		want := "weft: no policies are enforced on this host: no process listens on " + socket + "; weft-kube does on a Kubernetes node\n"
		if code, stdout, stderr := weft(append(args, "--policy-socket", socket)...); code != ExitFailed || stdout != "" || stderr != want {
			t.Errorf("weft %v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	servePolicies(t, socket)
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"show", "shop/web"}, ExitOK, "pod shop/web\ningress\n", ""},
		{[]string{"show", "none"}, ExitFailed, "", "weft: look up pod default/none: not in the cluster\n"},
		{[]string{"show"}, ExitUsage, "", "weft policy show: want one pod\n"},
		{[]string{"trace", "a", "b", "udp/53"}, ExitOK, "a b udp/53\n", ""},
		{[]string{"trace", "a", "b", "x"}, ExitUsage, "", "weft: port \"x\": no number\n"},
		{[]string{"trace", "a", "b"}, ExitUsage, "", "weft policy trace: want a source, a destination and a port\n"},
		{[]string{"bogus"}, ExitUsage, "", "weft policy has no command \"bogus\"; see: weft policy --help\n"},
	} {
		code, stdout, stderr := weft(append([]string{"policy", "--policy-socket", socket}, c.args...)...)
		if code != c.code || stdout != c.stdout || stderr != c.stderr {
			t.Errorf("weft policy %v: exit code %d, stdout %q, stderr %q", c.args, code, stdout, stderr)
		}
	}
}

func servePolicies(t *testing.T, socket string) {
	t.Helper()
	l, err := api.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- api.Serve(ctx, l, api.Handler(api.PolicyRoutes(fakePolicies{})), slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
