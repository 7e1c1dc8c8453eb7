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

// expectation is a pod of this node whose addresses are known by the CNI plugin, which is
// some time before the API server shows them, and before the pod runs. What the plugin says
// holds until it takes it back: a pod that was given other addresses is shown with those it
// had before for a while. Run's goroutine only.
type expectation struct {
	uid   string // "": any
	addrs []netip.Addr
	pod   *model.Pod    // as the API server shows it; nil if it does not
	last  *model.Pod    // what was last made of that, nil if it is another pod or has ended
	done  chan struct{} // closed when the kernel has what is to be done with the pod
}

// expectTimeout is how long a pod is waited for that the API server does not show. There
// are such: those that a kubelet runs from files while it has no API server.
const expectTimeout = 5 * time.Second

// ExpectPod has a pod of this node be judged by addresses that it is about to get, and returns
// when it is; called again once the pod has its interface, also by the port of the bridge. It
// fails if policies are not enforced, or not yet for this pod, as it would be open without. One
// that is run from a file and nobody knows has none.
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
		err = errors.New("the API server does not show the pod yet")
	}
	if err != nil {
		return &api.Error{Class: api.Unavailable, Text: fmt.Sprintf("enforce the policies of pod %s: %v", key, err)}
	}
	e.log.Warn("a pod starts that the API server does not show: it is under no policy until it does", "pod", key, "addresses", r.Addresses)
	return nil
}

// ForgetPod tells that a pod has lost addresses. Of a pod that has got others meanwhile it
// changes nothing.
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

// ofAPIServer reports whether an API server made a UID. It makes UUIDs, and the kubelet sums
// of files, which have no dashes.
func ofAPIServer(uid string) bool { return strings.Contains(uid, "-") }

func keyOf(r api.PolicyPodRequest) (model.Key, error) {
	namespace, name, ok := strings.Cut(r.Pod, "/")
	if !ok || namespace == "" || name == "" {
		return model.Key{}, usagef("pod %q: want NAMESPACE/NAME", r.Pod)
	}
	if slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" || a.Is4In6() }) {
		return model.Key{}, usagef("pod %s: addresses %v: want such of IPv4 or IPv6", r.Pod, r.Addresses)
	}
	return model.Key{Namespace: namespace, Name: name}, nil
}

// expect takes an expectation in. Whoever was expected at these addresses has them no more.
func (e *Engine) addExpectation(c *rules.Compiler, key model.Key, x *expectation) {
	for other, old := range e.expected {
		if other != key && overlap(old.addrs, x.addrs) {
			e.removeExpectation(c, other)
		}
	}
	x.pod = c.Cluster().Pod(key)
	if old := e.expected[key]; old != nil {
		x.pod = old.pod // and not what was made of it
	}
	e.expected[key] = x
	e.portsStale = true
	c.SetPod(key, e.effectivePod(key, x.pod))
}

// unexpect has a pod be judged as the API server shows it.
func (e *Engine) removeExpectation(c *rules.Compiler, key model.Key) {
	c.SetPod(key, e.expected[key].pod)
	delete(e.expected, key)
}

// judgedAs returns how a pod is judged that the API server shows so, nil if it does not. One
// that was deleted by force runs on, and as it was, until the plugin takes its addresses back.
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

// holds reports whether the pod that was meant is shown, and is one that policies see.
func (x *expectation) applies(node string) bool {
	return x.pod != nil && !x.pod.Excluded && x.pod.Node == node && (x.uid == "" || x.uid == x.pod.UID)
}

// settle notes whether the kernel has the compiler's rules, and tells those who wait for it.
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

// tellDone closes done, once.
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
