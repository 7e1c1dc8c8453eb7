package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// expectation is a pod of this node whose addresses the CNI plugin has announced. The plugin knows
// them some time before the API server reports them, and before the pod runs. The announcement is
// valid until the plugin withdraws it: the API server reports old addresses of a pod for a while
// after it gets new ones. Used by Run's goroutine only.
type expectation struct {
	uid   string // "" matches any
	addrs []netip.Addr
	pod   *model.Pod    // the pod as the API server reports it; nil if it does not
	last  *model.Pod    // the pod that the compiler last got for it; nil if it is another pod or has ended
	done  chan struct{} // closed when the kernel has the rules for the pod
}

// expectTimeout is how long ExpectPod waits for a pod that the API server does not report. A
// kubelet without an API server runs such pods from files.
const expectTimeout = 5 * time.Second

// ExpectPod applies policies to a pod of this node at addresses that it is about to get, and
// returns when the kernel has the rules. The plugin calls it again once the pod has its interface;
// from then on rules also match the pod's port of the bridge. It fails if policies are not
// enforced, or not yet for this pod, because the pod would then run without them. A static pod
// that the API server does not know starts without policies.
func (e *Engine) ExpectPod(ctx context.Context, r api.PolicyPodRequest) error {
	key, err := keyOf(r)
	if err != nil {
		return err
	}
	x := &expectation{uid: r.UID, addrs: r.Addresses, done: make(chan struct{})}
	if err := e.ask(ctx, func(c *rules.Compiler) { e.addExpectation(c, key, x) }); err != nil {
		return err
	}
	e.wakeRun()
	select {
	case <-x.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.ended:
		return &api.Error{Class: api.Unavailable, Text: fmt.Sprintf("enforce the policies of pod %s: the engine has ended", key)}
	case <-time.After(expectTimeout):
	}
	err = e.Enforced()
	if err == nil && ofAPIServer(r.UID) {
		err = errors.New("the API server does not report the pod yet")
	}
	if err != nil {
		return &api.Error{Class: api.Unavailable, Text: fmt.Sprintf("enforce the policies of pod %s: %v", key, err)}
	}
	e.log.Warn("the API server does not report a pod that starts: no policy applies to it until then", "pod", key, "addresses", r.Addresses)
	return nil
}

// ForgetPod reports that a pod has lost addresses. It changes nothing if the pod has got other
// addresses in the meantime.
func (e *Engine) ForgetPod(ctx context.Context, r api.PolicyPodRequest) error {
	key, err := keyOf(r)
	if err != nil {
		return err
	}
	err = e.ask(ctx, func(c *rules.Compiler) {
		if x := e.expected[key]; x != nil && overlap(x.addrs, r.Addresses) {
			e.removeExpectation(c, key)
		}
	})
	e.wakeRun()
	return err
}

// ofAPIServer reports whether an API server made a UID. An API server makes UUIDs; the kubelet
// makes hashes of files, which have no dashes.
func ofAPIServer(uid string) bool { return strings.Contains(uid, "-") }

func keyOf(r api.PolicyPodRequest) (model.Key, error) {
	namespace, name, ok := strings.Cut(r.Pod, "/")
	if !ok || namespace == "" || name == "" {
		return model.Key{}, usagef("parse pod %q: want NAMESPACE/NAME", r.Pod)
	}
	if slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" || a.Is4In6() }) {
		return model.Key{}, usagef("parse pod %s: addresses %v: want IPv4 or IPv6 addresses without a zone", r.Pod, r.Addresses)
	}
	return model.Key{Namespace: namespace, Name: name}, nil
}

// addExpectation records an expectation, and removes those of other pods at the same addresses.
func (e *Engine) addExpectation(c *rules.Compiler, key model.Key, x *expectation) {
	for other, old := range e.expected {
		if other != key && overlap(old.addrs, x.addrs) {
			e.removeExpectation(c, other)
		}
	}
	x.pod = c.Cluster().Pod(key)
	if old := e.expected[key]; old != nil {
		x.pod = old.pod // the reported pod, not the effective one
	}
	e.expected[key] = x
	e.portsStale = true
	c.SetPod(key, e.effectivePod(key, x.pod))
}

// removeExpectation makes policies apply to a pod as the API server reports it.
func (e *Engine) removeExpectation(c *rules.Compiler, key model.Key) {
	c.SetPod(key, e.expected[key].pod)
	delete(e.expected, key)
}

// effectivePod returns the pod that the compiler gets when the API server reports shown; nil if
// there is none. A pod that was deleted by force keeps running: it stays, unchanged, until the
// plugin releases its addresses.
func (e *Engine) effectivePod(key model.Key, shown *model.Pod) *model.Pod {
	x := e.expected[key]
	if x == nil {
		return shown
	}
	x.pod = shown
	if shown == nil && x.last != nil {
		pod := *x.last
		pod.Ending = true
		return &pod
	}
	x.last = nil
	if !x.applies(e.cfg.Node) {
		return shown
	}
	pod := *shown
	pod.Addrs, pod.FromPlugin = x.addrs, true
	x.last = &pod
	return &pod
}

// applies reports whether the API server reports the expected pod and policies apply to it.
func (x *expectation) applies(node string) bool {
	return x.pod != nil && !x.pod.Excluded && x.pod.Node == node && (x.uid == "" || x.uid == x.pod.UID)
}

// recordResult records whether the kernel has the compiler's rules. If it does, calls of ExpectPod
// that wait for them return.
func (e *Engine) recordResult(enforceErr error) {
	e.mu.Lock()
	e.enforceErr = enforceErr
	e.mu.Unlock()
	if enforceErr != nil {
		return
	}
	for _, x := range e.expected {
		if x.applies(e.cfg.Node) {
			x.closeDone()
		}
	}
}

// closeDone closes done. It may be called several times.
func (x *expectation) closeDone() {
	select {
	case <-x.done:
	default:
		close(x.done)
	}
}

func overlap(a, b []netip.Addr) bool {
	return slices.ContainsFunc(a, func(addr netip.Addr) bool { return slices.Contains(b, addr) })
}
