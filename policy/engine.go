package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// Config configures an Engine.
type Config struct {
	Node string // name of the node that the engine runs on, as in a pod's spec.nodeName
	// Bridge is the bridge that pods are connected to. "" means weft's.
	Bridge  string
	Log     *slog.Logger          // nil: no log
	Metrics prometheus.Registerer // nil: no metrics
}

// withDefaults returns c with defaults for the fields that are not set.
func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Bridge == "" {
		c.Bridge = netdev.BridgeName
	}
	return c
}

// Intervals of the engine's checks.
const (
	checkEvery = 3 * time.Second // between checks whether another program changed the rules
	// A change that the kernel reports is checked at once, but checkGap after the last check.
	checkGap   = 500 * time.Millisecond
	checkShare = 20              // a check is followed by a pause of this many times its duration,
	checkPause = 5 * time.Second // but at most of this length
	retryAfter = 2 * time.Second // after a transaction that failed
)

// Engine enforces policies on one node. Make it with New. Its methods are safe for concurrent use:
// they record changes of the cluster, and Run applies them.
type Engine struct {
	// constant
	cfg     Config
	log     *slog.Logger
	kernel  kernel
	metrics *metrics
	cutter  *cutter
	wake    chan struct{} // capacity 1; full if pending is not empty
	started atomic.Bool
	queries chan func(*rules.Compiler)
	denied  chan denial
	changed chan struct{} // of capacity 1: rules changed, by whatever program
	ended   chan struct{} // closed when Run returns

	mu         sync.Mutex
	pending    pending // guarded by mu
	enforceErr error   // guarded by mu: why the rules are not enforced; nil if they are

	// used by Run's goroutine only
	compiler   *rules.Compiler
	expected   map[model.Key]*expectation
	portsStale bool // a pod may have a new port of the bridge
	reporter   *reporter
	synced     bool // the compiler has the whole cluster
	installed  bool // the compiler's rules were written to the kernel
	hooks      hooks
	outOfSync  bool     // a transaction failed, so the rules in the kernel are unknown
	logRules   logRules // omitted if the kernel cannot log
	// generation is the last generation of the kernel's ruleset that is known to contain our
	// rules. Each transaction, of any program, increments it.
	generation uint32
	nextCheck  time.Time
}

// pending is the changes that were reported to the engine and that Run has not applied yet. It
// keeps only the last state of each object, so it is never larger than the cluster.
type pending struct {
	pods       map[model.Key]*model.Pod // nil: deleted
	policies   map[model.Key]*model.Policy
	cluster    map[string]*model.ClusterPolicy
	namespaces map[string]labels.Set
	synced     bool
}

func newPending() pending {
	return pending{
		pods:       make(map[model.Key]*model.Pod),
		policies:   make(map[model.Key]*model.Policy),
		cluster:    make(map[string]*model.ClusterPolicy),
		namespaces: make(map[string]labels.Set),
	}
}

// New makes an engine for the calling thread's network namespace, and makes the kernel pass
// bridged packets to the rules. Call Close after Run has returned.
func New(cfg Config) (*Engine, error) {
	if cfg.Node == "" {
		return nil, errors.New("enforce policies: no node name is set")
	}
	cfg = cfg.withDefaults()
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("enforce policies: open the thread's network namespace: %w", err)
	}
	e, err := newEngine(cfg, &nft{ns: ns, bridge: cfg.Bridge})
	if err != nil {
		ns.Close()
		return nil, err
	}
	return e, nil
}

// newEngine makes an engine for k, which Close closes.
func newEngine(cfg Config, k kernel) (*Engine, error) {
	if err := k.showBridged(); err != nil {
		return nil, err
	}
	m := newMetrics()
	if cfg.Metrics != nil {
		if err := m.register(cfg.Metrics); err != nil {
			return nil, err
		}
	}
	e := &Engine{
		cfg:        cfg,
		log:        cfg.Log,
		kernel:     k,
		metrics:    m,
		wake:       make(chan struct{}, 1),
		queries:    make(chan func(*rules.Compiler)),
		denied:     make(chan denial, 256),
		ended:      make(chan struct{}),
		changed:    make(chan struct{}, 1),
		pending:    newPending(),
		enforceErr: errors.New("the API server has not reported all pods, namespaces and policies yet"),
		expected:   make(map[model.Key]*expectation),
		compiler:   rules.New(model.NewCluster(cfg.Node)),
		reporter:   newReporter(cfg.Log, m),
	}
	e.cutter = newCutter(e)
	return e, nil
}

// Close releases the resources of New. The rules stay in the kernel.
func (e *Engine) Close() error { return e.kernel.close() }

// SetPod records a pod that is new or has changed. Parts of it that cannot be read are logged.
func (e *Engine) SetPod(p *corev1.Pod) {
	pod, err := model.PodOf(p)
	e.countUnreadable(err)
	e.enqueue(func(p *pending) { p.pods[pod.Key] = pod })
}

// DeletePod records that a pod was deleted.
func (e *Engine) DeletePod(namespace, name string) {
	e.enqueue(func(p *pending) { p.pods[model.Key{Namespace: namespace, Name: name}] = nil })
}

// SetNamespace records a namespace that is new or has changed.
func (e *Engine) SetNamespace(ns *corev1.Namespace) {
	l := labels.Set(ns.Labels)
	if l == nil {
		l = labels.Set{}
	}
	e.enqueue(func(p *pending) { p.namespaces[ns.Name] = l })
}

// DeleteNamespace records that a namespace was deleted.
func (e *Engine) DeleteNamespace(name string) {
	e.enqueue(func(p *pending) { p.namespaces[name] = nil })
}

// SetPolicy records a policy that is new or has changed. Parts of it that cannot be read match
// nothing, and are logged and counted.
func (e *Engine) SetPolicy(np *networkingv1.NetworkPolicy) {
	policy, err := model.PolicyOf(np)
	e.countUnreadable(err)
	e.enqueue(func(p *pending) { p.policies[policy.Key] = policy })
}

// DeletePolicy records that a policy was deleted.
func (e *Engine) DeletePolicy(namespace, name string) {
	e.enqueue(func(p *pending) { p.policies[model.Key{Namespace: namespace, Name: name}] = nil })
}

// SetClusterPolicy records a cluster policy that is new or has changed. Parts of it that cannot be
// read allow nothing, and are logged and counted.
func (e *Engine) SetClusterPolicy(cnp *v1alpha2.ClusterNetworkPolicy) {
	policy, err := model.ClusterPolicyOf(cnp)
	e.countUnreadable(err)
	e.enqueue(func(p *pending) { p.cluster[policy.Name] = policy })
}

// DeleteClusterPolicy records that a cluster policy was deleted.
func (e *Engine) DeleteClusterPolicy(name string) {
	e.enqueue(func(p *pending) { p.cluster[name] = nil })
}

// Synced reports to the engine that it has received the whole cluster. Until then the rules of a
// previous engine stay in the kernel unchanged.
func (e *Engine) Synced() { e.enqueue(func(p *pending) { p.synced = true }) }

// Enforced returns the reason why the rules in the kernel are not up to date, or nil if they are.
func (e *Engine) Enforced() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.enforceErr
}

func (e *Engine) enqueue(f func(*pending)) {
	e.mu.Lock()
	f(&e.pending)
	e.mu.Unlock()
	e.wakeRun()
}

// wakeRun makes Run apply pending changes. It does not block.
func (e *Engine) wakeRun() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// countUnreadable counts and logs the parts of an object that could not be read, if err is not nil.
func (e *Engine) countUnreadable(err error) {
	if err != nil {
		e.metrics.errors.Inc()
		e.log.Warn("ignored part of an object", "err", err)
	}
}

// errStarted is the result of every call of Run after the first.
var errStarted = errors.New("enforce policies: the engine was started before; an engine runs once")

// Run enforces policies until ctx ends. It leaves the rules in the kernel. An Engine runs once.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return errStarted
	}
	defer close(e.ended)
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	helpers.Go(func() { e.cutter.run(ctx) })
	helpers.Go(func() { e.listen(ctx) })
	helpers.Go(func() { e.watch(ctx) })
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	recheck := time.NewTimer(checkEvery)
	defer recheck.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-retry.C:
		case <-e.changed:
			recheck.Reset(max(0, time.Until(e.nextCheck)))
			continue
		case <-recheck.C:
			e.check(time.Now())
		case <-check.C:
			e.keepBridged()
			e.check(time.Now())
			e.portsStale = true // an interface may have appeared after its pod
		case ask := <-e.queries:
			ask(e.compiler)
			continue
		case d := <-e.denied:
			e.reporter.report(d, e.compiler, time.Now())
			continue
		}
		e.applyPending()
		err := e.updateKernel()
		if err != nil {
			e.outOfSync = true
			e.metrics.errors.Inc()
			e.log.Error("the rules of policies are not up to date", "err", err)
			retry.Reset(retryAfter)
		}
		if e.synced {
			e.recordResult(err)
		}
	}
}

// applyPending applies the pending changes to the compiler. It updates the ports of pods if some
// of them may be new.
func (e *Engine) applyPending() {
	e.mu.Lock()
	p := e.pending
	e.pending = newPending()
	e.mu.Unlock()
	e.synced = e.synced || p.synced // everything reported before that is in p or in the compiler
	for name, l := range p.namespaces {
		if l == nil {
			e.compiler.DeleteNamespace(name)
		} else {
			e.compiler.SetNamespace(name, l)
		}
	}
	for key, pod := range p.pods {
		e.portsStale = e.portsStale || e.compiler.Cluster().Local(pod)
		e.compiler.SetPod(key, e.effectivePod(key, pod))
	}
	for key, policy := range p.policies {
		e.compiler.SetPolicy(key, policy)
	}
	for name, policy := range p.cluster {
		e.compiler.SetClusterPolicy(name, policy)
	}
	if e.portsStale {
		e.portsStale = false
		e.updatePorts()
	}
}

// updatePorts finds the bridge port behind each pod's address.
func (e *Engine) updatePorts() {
	ports, err := e.kernel.ports()
	if err != nil {
		e.metrics.errors.Inc()
		e.log.Warn("could not find the bridge ports of pods", "err", err)
		return
	}
	e.compiler.SetPorts(ports)
}

// updateKernel writes the compiler's rules to the kernel.
func (e *Engine) updateKernel() error {
	if !e.synced {
		return nil
	}
	change := e.compiler.Change()
	want := hooksFor(e.compiler)
	if !e.installed || e.outOfSync {
		if err := e.resync(want); err != nil {
			return err
		}
		e.cutter.request()
		return nil
	}
	if change.Empty() {
		return nil
	}
	if err := e.kernel.apply(change, e.hooks, want); err != nil {
		// Another program may have removed something that the change builds on.
		e.log.Warn("could not change the rules; rewriting all of them", "err", err)
		if err := e.resync(want); err != nil {
			return err
		}
	} else {
		e.generation++
		e.hooks = want
	}
	if restricts(change) {
		e.cutter.request()
	}
	return nil
}

// resync writes all rules, unless the kernel already has them.
func (e *Engine) resync(want hooks) error {
	generation, err := e.kernel.generation()
	if err != nil {
		return err
	}
	diff, err := e.kernel.differs(e.compiler.Rules(), want)
	if err != nil {
		return err
	}
	if diff != "" {
		err := e.kernel.replace(e.compiler.Rules(), want)
		if errors.Is(err, unix.ENOENT) && e.logRules == written {
			// The kernel rejects log rules with ENOENT if nfnetlink_log cannot be loaded.
			e.log.Warn("denied flows will not be logged: the kernel lacks nfnetlink_log", "err", err)
			e.logRules = omitted
			e.kernel.setLogRules(e.logRules)
			err = e.kernel.replace(e.compiler.Rules(), want)
		}
		if err != nil {
			e.logRules = written // the log rules were not the reason
			e.kernel.setLogRules(e.logRules)
			return err
		}
		generation++
	}
	e.installed, e.hooks, e.outOfSync, e.generation = true, want, false, generation
	return nil
}

// restricts reports whether a change may deny flows that were allowed.
func restricts(c rules.Change) bool {
	if len(c.Chains) > 0 {
		return true
	}
	for _, edit := range c.Edits {
		if len(edit.Drop) > 0 || edit.Set.Kind == rules.AddrChains {
			return true
		}
	}
	return false
}

// check restores rules that another program changed. It compares them only if there was a
// transaction since the last check.
func (e *Engine) check(now time.Time) {
	if !e.installed || e.outOfSync || now.Before(e.nextCheck) {
		return
	}
	generation, err := e.kernel.generation()
	if err == nil && generation == e.generation {
		return
	}
	var diff string
	if err == nil {
		diff, err = e.kernel.differs(e.compiler.Rules(), e.hooks)
	}
	if err == nil && diff != "" {
		e.log.Warn("another program changed the rules of policies; restoring them", "difference", diff)
		err = e.kernel.replace(e.compiler.Rules(), e.hooks)
		generation++
	}
	if err != nil {
		e.outOfSync = true
		e.metrics.errors.Inc()
		e.log.Error("could not check the rules of policies", "err", err)
		return
	}
	e.generation = generation
	// If other programs change nftables all the time, checks must not take all the CPU.
	e.nextCheck = now.Add(min(max(checkShare*time.Since(now), checkGap), checkPause))
}

// keepBridged makes the kernel pass bridged packets to the rules, if another program changed
// that.
func (e *Engine) keepBridged() {
	if err := e.kernel.showBridged(); err != nil {
		e.metrics.errors.Inc()
		e.log.Warn("policies do not filter bridged packets", "err", err)
	}
}

// watch reports changes of rules by any program, until ctx ends.
func (e *Engine) watch(ctx context.Context) {
	err := e.kernel.watch(ctx, func() {
		select {
		case e.changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		e.log.Warn("changes of the rules by other programs are noticed late", "err", err)
	}
}

// ask runs f on Run's goroutine and waits until it returns. It fails if the engine has ended, and
// waits until Run starts or ctx ends.
func (e *Engine) ask(ctx context.Context, f func(*rules.Compiler)) error {
	done := make(chan struct{})
	select {
	case e.queries <- func(c *rules.Compiler) { f(c); close(done) }:
		<-done
		return nil
	case <-e.ended:
		return errors.New("query the policy engine: it has ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}
