//go:build kube

package kube

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// With a password in the Secret all traffic between nodes is encrypted. The password can be
// changed step by step, as documented.
func TestPassword(t *testing.T) {
	k := newClusterWithoutWeft(t, "nftables")
	k.password("the first of them")
	k.install()
	one, two := k.pod("one", "n1", ""), k.pod("two", "n2", "")
	check := func(when string) {
		t.Helper()
		k.waitAnswer(when+" a pod reaches another", k.fromPod("one"), url(two, 8080), "two", one)
		for _, n := range k.Nodes {
			k.waitUntil(when+" the link of "+n.Name+" is encrypted", func() error { return k.encrypted(n.Name) })
		}
	}
	check("with a password")
	for _, p := range []string{
		"the first of them\nthe second of them", "the second of them\nthe first of them", "the second of them",
	} {
		k.password(p)
		k.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/weft")
		k.rollout()
		check(fmt.Sprintf("with %q", p))
	}

	// A node with another password is refused.
	k.password("another password")
	k.kubectl("-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/name=weft", "--field-selector", "spec.nodeName=n2")
	k.waitUntil("n1 refuses n2", func() error {
		out, err := k.weft("n1", "status", "connections")
		if err == nil && !strings.Contains(out, "password") {
			err = errors.New(out)
		}
		return err
	})
	k.waitRefused("one", url(two, 8080))
}

// password writes the Secret that the manifest refers to.
func (k *kube) password(text string) {
	k.t.Helper()
	secret := k.kubectl("-n", "kube-system", "create", "secret", "generic", "weft", "--from-literal=password="+text, "--dry-run=client", "-o", "yaml")
	k.applyText(secret)
}

// encrypted returns an error unless all links of a node are encrypted.
func (k *kube) encrypted(node string) error {
	out, err := k.weft(node, "status", "connections")
	if err == nil && (!strings.Contains(out, " encrypted") || strings.Contains(out, "unencrypted")) {
		err = fmt.Errorf("connections of %s are\n%s", node, out)
	}
	return err
}
