package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

// Node is a sandbox host that is a Node of the cluster.
type Node struct {
	*sandbox.Host
	cluster *Cluster
}

// AddNode boots a host and adds it to the cluster.
func (c *Cluster) AddNode(ctx context.Context, name string) (*Node, error) {
	h, err := c.Network.Add(name)
	if err != nil {
		return nil, err
	}
	n := &Node{h, c}
	c.Nodes = append(c.Nodes, n)
	if _, err := c.pki.user("kubelet-"+name, c.api, "system:node:"+name, "system:nodes"); err != nil {
		return nil, err
	}
	if _, err := c.pki.user("proxy-"+name, c.api, "system:kube-proxy"); err != nil {
		return nil, err
	}
	return n, n.Start(ctx)
}

// Restart boots the host again after PowerOff, with its former disk.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Boot(); err != nil {
		return err
	}
	return n.Start(ctx)
}

// Programs of a node.
const (
	containerd = "containerd"
	kubelet    = "kubelet"
)

// Start starts containerd, the kubelet and kube-proxy on a booted host, and waits until
// the host is a Node.
func (n *Node) Start(ctx context.Context) error {
	c := n.cluster
	if _, err := n.Run(ctx, "bash", "-ec", nodeSetup, "bash", c.control.Addr.String(), n.addr6().String()); err != nil {
		return err
	}
	for path, text := range map[string]string{
		"/etc/containerd/config.toml":  containerdConfig,
		"/etc/kubernetes/kubelet.yaml": fmt.Sprintf(kubeletConfig, n.Addr, c.pki.file("authority.crt")),
		"/etc/kubernetes/proxy.yaml":   fmt.Sprintf(proxyConfig, c.ProxyMode, strings.Join(c.PodRanges, ","), c.pki.file("proxy-"+n.Name+".kubeconfig"), n.Name),
	} {
		if err := os.WriteFile(n.Path(path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	for _, image := range c.Images {
		if err := n.Import(ctx, image); err != nil {
			return err
		}
	}
	if err := n.StartKubelet(); err != nil {
		return err
	}
	if err := c.startProgram(n.Host, "proxy", c.program("kube-proxy"), "--config=/etc/kubernetes/proxy.yaml"); err != nil {
		return err
	}
	return c.WaitUntil(ctx, n.Name+" is a Node", func() error { _, err := c.Kubectl(ctx, nil, "get", "node", n.Name); return err })
}

// RestartKubelet kills the kubelet and starts it again. A kubelet whose Node was deleted
// ends by itself only after minutes.
func (n *Node) RestartKubelet(ctx context.Context) error {
	if err := n.StopKubelet(ctx); err != nil {
		return err
	}
	return n.StartKubelet()
}

// StopKubelet kills the kubelet. Containers live on.
func (n *Node) StopKubelet(ctx context.Context) error {
	return n.cluster.stopProgram(ctx, n.Host, kubelet)
}

// RestartContainerd kills containerd and starts it again. Containers live on.
func (n *Node) RestartContainerd(ctx context.Context) error {
	if err := n.cluster.stopProgram(ctx, n.Host, containerd); err != nil {
		return err
	}
	return n.startContainerd(ctx)
}

func (n *Node) startContainerd(ctx context.Context) error {
	c := n.cluster
	if err := c.startProgram(n.Host, containerd, containerd); err != nil {
		return err
	}
	return c.WaitUntil(ctx, "containerd answers on "+n.Name, func() error { _, err := n.Run(ctx, "ctr", "version"); return err })
}

// StartKubelet starts the kubelet, which makes the Node if there is none.
func (n *Node) StartKubelet() error {
	c := n.cluster
	return c.startProgram(n.Host, kubelet, c.program("kubelet"), "--config=/etc/kubernetes/kubelet.yaml",
		"--kubeconfig="+c.pki.file("kubelet-"+n.Name+".kubeconfig"), "--hostname-override="+n.Name,
		fmt.Sprintf("--node-ip=%s,%s", n.Addr, n.addr6()), "--root-dir=/var/lib/kubelet")
}

// addr6 returns the node's IPv6 address on the same network.
func (n *Node) addr6() netip.Addr {
	a := netip.MustParseAddr("fd99::").As16()
	v4 := n.Addr.As4()
	copy(a[12:], v4[:])
	return netip.AddrFrom16(a)
}

// Import loads an image archive into the node's containerd, unless it was loaded before.
func (n *Node) Import(ctx context.Context, archive string) error {
	mark := filepath.Join("/var/lib/imported", filepath.Base(archive))
	if _, err := os.Stat(n.Path(mark)); err == nil {
		return nil
	}
	if _, err := n.Run(ctx, "ctr", "-n", "k8s.io", "images", "import", archive); err != nil {
		return err
	}
	_, err := n.Run(ctx, "sh", "-c", "mkdir -p /var/lib/imported; : >"+mark)
	return err
}

// nodeSetup prepares a host for a kubelet. The kubelet writes some sysctls that are not
// namespaced. The script mounts files over them that already have the wanted values, so
// that those of the real host stay. A packet to a Service needs a route before its
// destination is translated, so there must be a default route.
var nodeSetup = strings.TrimSpace(`
for s in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  [ -e /proc/sys/${s%=*} ] || continue
  mkdir -p /run/sysctl/$(dirname ${s%=*})
  echo ${s#*=} >/run/sysctl/${s%=*}
  mount --bind /run/sysctl/${s%=*} /proc/sys/${s%=*}
done
mkdir -p /etc/containerd /etc/kubernetes /etc/cni/net.d /opt/cni/bin
cp -n /usr/lib/cni/loopback /opt/cni/bin/
ip route replace default via $1
ip -6 addr replace $2/64 dev eth0 nodad
ip -6 route replace default dev eth0
`)

// restrict_oom_score_adj is set because root in a sandbox host may not be allowed to lower
// scores.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
enforceNodeAllocatable: [pods]
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.available: 1%%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 5s
resolvConf: /etc/resolv.conf
syncFrequency: 10s
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clusterCIDR: %s
clientConnection: {kubeconfig: %q}
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`
