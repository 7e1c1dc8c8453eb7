//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// reclaimTimeout is the documented time in which other nodes take over the addresses of a deleted
// Node.
const reclaimTimeout = time.Minute

func TestNodesComeAndGo(t *testing.T) {
	k := newCluster(t, "iptables")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	one := k.pod("one", "n1", "")

	// After a power cut pods on the node have a network again.
	if err := k.Nodes[1].PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := k.Nodes[1].Restart(ctx); err != nil {
		t.Fatal(err)
	}
	k.rollout()
	two := k.pod("two", "n2", "")
	k.waitAnswer("pods reach each other after a power cut", k.fromPod("one"), url(two, 8080), "two", one)

	third, err := k.AddNode(ctx, "n3")
	if err != nil {
		t.Fatal(err)
	}
	k.rollout()
	three := k.pod("three", "n3", "")
	k.waitAnswer("pods reach a node that joined", k.fromPod("one"), url(three, 8080), "three", one)
	before := k.owners("n1")
	k.testDeletedMembers()

	// A node is removed for good.
	if err := third.PowerOff(); err != nil {
		t.Fatal(err)
	}
	k.kubectl("delete", "node", "n3", "--wait=true")
	reclaim, stop := context.WithTimeout(t.Context(), reclaimTimeout)
	defer stop()
	if err := k.WaitUntil(reclaim, "other nodes own the addresses of n3", func() error {
		out, err := k.weft("n1", "status", "ipam")
		if err == nil && (strings.Contains(owning(out), "n3") || strings.Contains(out, "unreachable")) {
			err = fmt.Errorf("owners are\n%s", out)
		}
		return err
	}); err != nil {
		t.Fatalf("%v; before they were\n%s", err, before)
	}
	// Pods of the node may live for all that the others know.
	if out := k.owners("n1") + k.owners("n2"); !strings.Contains(out, "kept for") {
		t.Errorf("nobody leaves the addresses of n3 unused:\n%s", out)
	}
	k.waitUntil("the line of n3 is removed from the ConfigMap", func() error {
		if out := k.members(); strings.Contains(out, "n3") {
			return errors.New(out)
		}
		return nil
	})

	// It returns with its old disk as a new Node. No pod lives there, so it starts from scratch.
	if err := third.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := third.RestartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	k.rollout()
	three = k.pod("again", "n3", "")
	k.waitAnswer("pods reach a node that returned", k.fromPod("one"), url(three, 8080), "again", one)
	if out := k.owners("n1"); strings.Contains(out, "unreachable") || strings.Count(owning(out), "n3") != 1 {
		t.Errorf("owners are\n%s", out)
	}

	k.testUninstall()
}

// members returns the ConfigMap that says which peer runs on which Node.
func (k *kube) members() string {
	k.t.Helper()
	return k.kubectl("-n", "kube-system", "get", "configmap", "weft-peers", "-o", "jsonpath={.data}")
}

// If the ConfigMap is deleted, weft logs what to do. The lines are written again once the manifest
// is applied again.
func (k *kube) testDeletedMembers() {
	k.t.Helper()
	k.kubectl("-n", "kube-system", "delete", "configmap", "weft-peers")
	k.waitUntil("weft logs what to do", func() error {
		out := k.kubectl("-n", "kube-system", "logs", "daemonset/weft", "--tail=100")
		if !strings.Contains(out, "apply weft's manifest again") {
			return errors.New(out)
		}
		return nil
	})
	k.install()
	k.waitUntil("all lines are written again", func() error {
		out := k.members()
		for _, n := range k.Nodes {
			if !strings.Contains(out, n.Name) {
				return fmt.Errorf("%s has no line in %s", n.Name, out)
			}
		}
		return nil
	})
}

// owners returns the owners of addresses as weft status ipam shows them.
func (k *kube) owners(node string) (out string) {
	k.t.Helper()
	k.waitUntil("weft shows the owners", func() (err error) { out, err = k.weft(node, "status", "ipam"); return err })
	return out
}

// owning returns the lines of owners in what owners returned.
func owning(status string) (lines string) {
	for line := range strings.Lines(status) {
		if strings.Contains(line, "of total") {
			lines += line
		}
	}
	return lines
}

// Uninstalling leaves nothing of weft on a node.
func (k *kube) testUninstall() {
	k.t.Helper()
	weft, uninstall := filepath.Join(manifests, "weft.yaml"), filepath.Join(manifests, "uninstall.yaml")
	k.delete(weft)
	k.apply(uninstall)
	k.kubectl("-n", "kube-system", "rollout", "status", "daemonset/weft-uninstall", "--timeout=110s")
	for _, n := range k.Nodes {
		for _, path := range []string{
			"/etc/cni/net.d/10-weft.conflist", "/opt/cni/bin/weft-cni", "/opt/cni/bin/weft-ipam", "/opt/cni/bin/weft-portmap", "/opt/cni/bin/weft-bandwidth",
			"/var/lib/weft", "/run/weft", "/sys/fs/bpf/weft",
		} {
			if _, err := os.Lstat(n.Path(path)); !os.IsNotExist(err) {
				k.t.Errorf("%s of %s is left: %v", path, n.Name, err)
			}
		}
		ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
		defer cancel()
		out, err := n.Run(ctx, "sh", "-c", "ip -o link | grep -E ': (weft|vethwe)'; nft list tables | grep weft; true")
		if err != nil || strings.TrimSpace(out) != "" {
			k.t.Errorf("left on %s: %s, %v", n.Name, out, err)
		}
	}
	k.delete(uninstall)
}

func (k *kube) delete(file string) {
	k.t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		k.t.Fatal(err)
	}
	k.kubectl("delete", "-f", path, "--timeout=100s")
}
