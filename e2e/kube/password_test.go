//go:build kube

package kube

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// With a password in the Secret all traffic between nodes is encrypted. When the Secret
// changes, all nodes change the password while traffic flows, without a restart.
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
	for _, p := range []string{"the second of them", "the third of them\nand one that is accepted too"} {
		k.password(p)
		first, _, _ := strings.Cut(p, "\n")
		for _, n := range k.Nodes {
			k.waitUntil(n.Name+" uses the new password", func() error {
				out, err := k.weft(n.Name, "rotate", "--show")
				if err == nil && out != first+"\n" {
					err = fmt.Errorf("the password is %q", out)
				}
				if status, e := k.weft(n.Name, "rotate", "--status"); err == nil && e == nil && strings.Contains(status, "is being changed") {
					err = errors.New(status)
				}
				return err
			})
		}
		check(fmt.Sprintf("with %q", p))
	}
	if out, err := k.weft("n1", "rotate", "--yes"); err == nil || !strings.Contains(out+err.Error(), "change the Secret") {
		t.Errorf("weft rotate in a pod: %q, %v", out, err)
	}
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
