//go:build kube

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/cluster"
	"github.com/weft-net/weft/internal/lab/sandbox"
	"github.com/weft-net/weft/internal/leak"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(leak.Run(m))
}

// timeout is how long a test waits for an expected event.
const timeout = 2 * time.Minute

// manifests is the directory of the released manifests.
const manifests = "../../prog/weft-kube"

// kube is a cluster of a test.
type kube struct {
	*cluster.Cluster
	t       *testing.T
	outside *sandbox.Host // a host outside the cluster, with a server
}

// newCluster makes a cluster of two nodes and installs weft.
func newCluster(t *testing.T, proxyMode string) *kube {
	t.Helper()
	k := newClusterWithoutWeft(t, proxyMode)
	k.install()
	return k
}

// newClusterWithoutWeft makes a cluster of two nodes without a network for pods. Ranges are
// additional ranges of pod addresses.
func newClusterWithoutWeft(t *testing.T, proxyMode string, ranges ...string) *kube {
	t.Helper()
	programs, weft := os.Getenv("KUBE_PROGRAMS"), os.Getenv("WEFT_KUBE_IMAGE")
	if programs == "" || weft == "" {
		t.Fatal("KUBE_PROGRAMS and WEFT_KUBE_IMAGE must be set to the paths of the programs; run: make test-kube")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := cluster.New(ctx, cluster.Config{
		Programs: programs, ProxyMode: proxyMode, PodRanges: append([]string{"10.32.0.0/12"}, ranges...), Images: []string{weft},
	})
	if err != nil {
		t.Fatal(err)
	}
	k := &kube{Cluster: c, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			k.keepLogs()
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"n1", "n2"} {
		if _, err := c.AddNode(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if k.outside, err = c.Network.Add("outside"); err != nil {
		t.Fatal(err)
	}
	serve := k.outside.Command(context.Background(), k.PodProgram(), "serve")
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	go serve.Wait() // it ends with its host
	return k
}

// install applies the released manifest with settings of the form NAME=VALUE.
func (k *kube) install(settings ...string) {
	k.t.Helper()
	manifest, err := os.ReadFile(filepath.Join(manifests, "weft.yaml"))
	if err != nil {
		k.t.Fatal(err)
	}
	const env = "\n          env:\n"
	before, after, ok := strings.Cut(string(manifest), env)
	if !ok {
		k.t.Fatal("the manifest has no environment for settings")
	}
	text := before + env
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		text += fmt.Sprintf("            - {name: %s, value: %q}\n", name, value)
	}
	k.applyText(text + after)
	k.rollout()
}

// keepLogs copies the logs to a directory that is not removed with the cluster.
func (k *kube) keepLogs() {
	dir, err := os.MkdirTemp("", "weft-kube-logs-")
	if err != nil {
		k.t.Log(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range k.Nodes {
		out, _ := n.Run(ctx, "sh", "-c", "tail -n 200 /var/log/pods/kube-system_weft*/*/*.log; ip addr; nft list ruleset")
		os.WriteFile(filepath.Join(dir, n.Name+"-weft.log"), []byte(out), 0o644)
	}
	for _, what := range []string{"get pods,nodes,svc,endpointslices,cm,leases -A -o wide", "describe nodes", "describe pods -A", "get events -A"} {
		out, err := k.Kubectl(ctx, nil, strings.Fields(what)...)
		os.WriteFile(filepath.Join(dir, strings.ReplaceAll(strings.Fields(what)[0]+strings.Fields(what)[1], "/", "-")+".txt"), fmt.Appendf(nil, "%s\n%v\n", out, err), 0o644)
	}
	logs, _ := filepath.Glob(filepath.Join(k.Network.Dir(), "*.log"))
	for _, l := range logs {
		if b, err := os.ReadFile(l); err == nil {
			os.WriteFile(filepath.Join(dir, filepath.Base(l)), b, 0o644)
		}
	}
	k.t.Logf("logs are in %s", dir)
}

// kubectl runs kubectl, which must succeed.
func (k *kube) kubectl(args ...string) string {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
	defer cancel()
	out, err := k.Kubectl(ctx, nil, args...)
	if err != nil {
		k.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// apply creates the objects of a file.
func (k *kube) apply(file string) {
	k.t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		k.t.Fatal(err)
	}
	k.kubectl("apply", "-f", path)
}

// applyText creates the objects of a YAML text.
func (k *kube) applyText(yaml string) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
	defer cancel()
	if _, err := k.Kubectl(ctx, strings.NewReader(yaml), "apply", "-f", "-"); err != nil {
		k.t.Fatal(err)
	}
}

// rollout waits until weft and all nodes are ready.
func (k *kube) rollout() {
	k.t.Helper()
	k.kubectl("-n", "kube-system", "rollout", "status", "daemonset/weft", "--timeout=110s")
	k.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")
}

// waitUntil waits for a condition.
func (k *kube) waitUntil(what string, holds func() error) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
	defer cancel()
	if err := k.WaitUntil(ctx, what, holds); err != nil {
		k.t.Fatal(err)
	}
}

// exec runs a command in a pod.
func (k *kube) exec(pod string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), 30*time.Second)
	defer cancel()
	out, err := k.Kubectl(ctx, nil, append([]string{"exec", pod, "--"}, command...)...)
	return strings.TrimSpace(out), err
}

// from is a function that gets a URL from a certain place.
type from func(url string) (string, error)

func (k *kube) fromPod(name string) from {
	return func(url string) (string, error) { return k.exec(name, "pod", "get", url) }
}

func (k *kube) fromHost(m *sandbox.Host) from {
	return func(url string) (string, error) {
		ctx, cancel := context.WithTimeout(k.t.Context(), 30*time.Second)
		defer cancel()
		out, err := m.Run(ctx, k.PodProgram(), "get", url)
		return strings.TrimSpace(out), err
	}
}

// waitAnswer waits until that server answers a URL and sees that client address; an empty client
// is any.
func (k *kube) waitAnswer(what string, ask from, url, server, client string) {
	k.t.Helper()
	k.waitUntil(what, func() error {
		out, err := ask(url)
		if err != nil {
			return err
		}
		by, to, _ := strings.Cut(out, " ")
		if by != server || client != "" && to != client {
			return fmt.Errorf("%s answers %s and sees client %s; want %s and %q", by, url, to, server, client)
		}
		return nil
	})
}

// waitRefused waits until a pod gets no answer from a URL.
func (k *kube) waitRefused(pod, url string) {
	k.t.Helper()
	k.waitUntil(pod+" cannot reach "+url, func() error {
		if out, err := k.fromPod(pod)(url); err == nil {
			return fmt.Errorf("the answer is %q", out)
		}
		return nil
	})
}

// weft runs a command of weft on a node.
func (k *kube) weft(node string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), 30*time.Second)
	defer cancel()
	pod, err := k.Kubectl(ctx, nil, "-n", "kube-system", "get", "pod", "-l", "app.kubernetes.io/name=weft",
		"--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return "", err
	}
	return k.Kubectl(ctx, nil, append([]string{"-n", "kube-system", "exec", pod, "--", "weft"}, args...)...)
}

// pod starts a server pod on a node and returns its address.
func (k *kube) pod(name, node, extra string) string {
	k.t.Helper()
	k.applyText(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {name: %s, app: server}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
    - {name: pod, image: %q, imagePullPolicy: Never, readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}%s}
`, name, name, node, cluster.PodImage, extra))
	k.kubectl("wait", "--for=condition=Ready", "pod/"+name, "--timeout=90s")
	return k.kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")
}
