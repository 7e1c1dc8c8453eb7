package cni

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-net/weft/internal/api"
)

// podIface is what Kubernetes calls a pod's interface. Others are not of the addresses by
// which the API server, and so policies, know pods.
const podIface = "eth0"

// forgetTimeout bounds what need not be heard.
const forgetTimeout = 5 * time.Second

// policies is who enforces policies on this host, if anybody does: it listens beside the router.
func (c *conf) policies() *api.Client {
	return api.NewClient(filepath.Join(filepath.Dir(c.Socket), filepath.Base(api.DefaultPolicySocket)))
}

// isolate has a pod be under its policies before its interface is there: that it has these
// addresses is known to others only when it runs. Where no policies are enforced, and for
// containers that are no pods, it does nothing.
func (c *conf) expectPod(ctx context.Context, args *skel.CmdArgs, addrs []netip.Prefix) error {
	pod, ok := podOf(args, addrs)
	if !ok {
		return nil
	}
	if err := c.policies().ExpectPod(ctx, pod); err != nil && !errors.Is(err, api.ErrNotRunning) {
		return unavailable("have the pod's policies enforced", err)
	}
	return nil
}

// forget tells that a pod has lost its addresses. That it is not heard does not matter: who
// enforces policies forgets them when another pod gets them.
func (c *conf) forgetPod(ctx context.Context, args *skel.CmdArgs, addrs []netip.Prefix) {
	if pod, ok := podOf(args, addrs); ok && len(addrs) > 0 {
		ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
		defer cancel()
		_ = c.policies().ForgetPod(ctx, pod)
	}
}

// plugged returns the addresses of an interface, none if it is not there any more.
func (c *conf) interfaceAddrs(args *skel.CmdArgs) []netip.Prefix {
	iface, err := c.find(args)
	if err != nil {
		return nil
	}
	return iface.Addrs
}

// podOf reads which pod the runtime says that a container is of.
func podOf(args *skel.CmdArgs, addrs []netip.Prefix) (pod api.PolicyPodRequest, ok bool) {
	var namespace, name string
	for pair := range strings.SplitSeq(args.Args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		case "K8S_POD_UID":
			pod.UID = value
		}
	}
	pod.Pod = namespace + "/" + name
	for _, p := range addrs {
		pod.Addresses = append(pod.Addresses, p.Addr())
	}
	return pod, args.IfName == podIface && namespace != "" && name != ""
}
