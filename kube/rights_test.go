package kube

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/api"
)

// rights are the rules of the manifest, and which of them were used.
type rights struct {
	mu     sync.Mutex
	unused map[string]bool // verb, resource and name
	denied []string
}

// released returns the rights that the released manifest gives.
func released(t *testing.T) *rights {
	t.Helper()
	b, err := os.ReadFile("../prog/weft-kube/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := &rights{unused: make(map[string]bool)}
	for doc := range strings.SplitSeq(string(b), "\n---\n") {
		var role rbacv1.ClusterRole // a Role has the same rules
		if yaml.Unmarshal([]byte(doc), &role) != nil || role.Kind != "ClusterRole" && role.Kind != "Role" {
			continue
		}
		for _, rule := range role.Rules {
			names := rule.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, verb := range rule.Verbs {
				for _, resource := range rule.Resources {
					for _, name := range names {
						r.unused[right(verb, resource, name)] = true
					}
				}
			}
		}
	}
	return r
}

func right(verb, resource, name string) string {
	return strings.TrimSpace(verb + " " + resource + " " + name)
}

// check is a reactor that refuses what the rules do not allow.
func (r *rights) check(action clienttesting.Action) (handled bool, ret runtime.Object, err error) {
	resource := action.GetResource().Resource
	if sub := action.GetSubresource(); sub != "" {
		resource += "/" + sub
	}
	name := ""
	switch a := action.(type) {
	case clienttesting.PatchAction:
		name = a.GetName()
	case clienttesting.UpdateAction:
		name = a.GetObject().(metav1.Object).GetName()
	case clienttesting.GetAction:
		name = a.GetName()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, used := range []string{right(action.GetVerb(), resource, name), right(action.GetVerb(), resource, "")} {
		if _, ok := r.unused[used]; ok {
			r.unused[used] = false
			return false, nil, nil
		}
	}
	r.denied = append(r.denied, right(action.GetVerb(), resource, name))
	return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, name, nil)
}

// left returns the rights that were not used.
func (r *rights) left() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for right, unused := range r.unused {
		// The agent watches ClusterNetworkPolicies through another client.
		if unused && !strings.Contains(right, "clusternetworkpolicies") {
			list = append(list, right)
		}
	}
	slices.Sort(list)
	return list
}

// idlePolicies are Policies that are enforced at once.
type idlePolicies struct{ recorder }

func (*idlePolicies) SetPod(*corev1.Pod) {}

func (*idlePolicies) DeletePod(_, _ string) {}

func (*idlePolicies) Enforced() error { return nil }

func (*idlePolicies) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// An agent needs the rights that the released manifest gives it, each of them, and no other.
func TestManifestGivesTheRightsThatAreUsed(t *testing.T) {
	r := released(t)
	s := newScene(t, map[string]string{"02-00-00-00-00-03": "gone uid-gone"}, node("other", "uid-other", internal("10.0.0.2")))
	generated := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "weft-generated"}}
	if _, err := s.client.CoreV1().Secrets("kube-system").Create(t.Context(), generated, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.addPod("taken", "self", "10.32.0.9")
	s.client.PrependReactor("*", "*", r.check)
	s.client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		handled, _, err := r.check(action)
		return handled, nil, err
	})
	if _, err := GeneratedPassword(t.Context(), s.client, passwordSettings, rand.Reader, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	s.agent.cfg.Policies = &idlePolicies{}
	// A warning that comes twice is a patch of its Event.
	n := newNotices(s.client, "self")
	defer n.close()
	for range 2 {
		n.say([]runtime.Object{&corev1.ObjectReference{Kind: "Node", Name: "self"}}, corev1.EventTypeWarning, reasonWarning, "again")
	}
	s.router.taken = []api.Conflict{{Address: netip.MustParseAddr("10.32.0.9"), InUse: true}}
	s.run()
	s.until("all rights are used", func() bool { return len(r.left()) == 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.denied) > 0 {
		t.Errorf("the manifest lacks rights: %q", r.denied)
	}
}
