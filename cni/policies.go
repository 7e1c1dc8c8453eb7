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

// podIface is the name of a pod's interface on Kubernetes. The API server, and so
// policies, do not know the addresses of a pod's other interfaces.
const podIface = "eth0"

// forgetTimeout bounds a request whose success does not matter.
const forgetTimeout = 5 * time.Second

// policies is the client of this host's policy engine, whose socket is beside the
// router's.
func (c *conf) policies() *api.Client {
	return api.NewClient(filepath.Join(filepath.Dir(c.Socket), filepath.Base(api.DefaultPolicySocket)))
}

// expectPod waits until the policies of a pod are enforced for its addresses. The API
// server learns these addresses only when the pod runs, so the policy engine must get them
// from here. Without a policy engine, and for containers that are not pods, it does
// nothing.
func (c *conf) expectPod(ctx context.Context, args *skel.CmdArgs, addrs []netip.Prefix) error {
	pod, ok := podOf(args, addrs)
	if !ok {
		return nil
	}
	if err := c.policies().ExpectPod(ctx, pod); err != nil && !errors.Is(err, api.ErrNotRunning) {
		return unavailable("enforce the policies of the pod", err)
	}
	return nil
}

// forgetPod reports to the policy engine that a pod has lost its addresses. Errors do not
// matter: the engine forgets the addresses when another pod gets them.
func (c *conf) forgetPod(ctx context.Context, args *skel.CmdArgs, addrs []netip.Prefix) {
	if pod, ok := podOf(args, addrs); ok && len(addrs) > 0 {
		ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
		defer cancel()
		_ = c.policies().ForgetPod(ctx, pod)
	}
}

// interfaceAddrs returns the addresses of an interface, none if it does not exist.
func (c *conf) interfaceAddrs(args *skel.CmdArgs) []netip.Prefix {
	iface, err := c.find(args)
	if err != nil {
		return nil
	}
	return iface.Addrs
}

// podOf returns the pod of a container, from the arguments of the runtime. Ok is false if
// the interface is not that of a pod.
func podOf(args *skel.CmdArgs, addrs []netip.Prefix) (pod api.PolicyPodRequest, ok bool) {
	values := runtimeArgs(args)
	pod.UID = values["K8S_POD_UID"]
	pod.Pod = podName(args)
	for _, p := range addrs {
		pod.Addresses = append(pod.Addresses, p.Addr())
	}
	return pod, args.IfName == podIface && pod.Pod != ""
}

// podName returns NAMESPACE/NAME of the pod, "" if the container is not one.
func podName(args *skel.CmdArgs) string {
	values := runtimeArgs(args)
	namespace, name := values["K8S_POD_NAMESPACE"], values["K8S_POD_NAME"]
	if namespace == "" || name == "" {
		return ""
	}
	return namespace + "/" + name
}

// runtimeArgs returns the arguments of the runtime, KEY=VALUE;KEY=VALUE.
func runtimeArgs(args *skel.CmdArgs) map[string]string {
	values := make(map[string]string)
	for pair := range strings.SplitSeq(args.Args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		values[key] = value
	}
	return values
}
