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

// Config says how an engine enforces.
type Config struct {
	Node string // the name of the node that it runs on, as pods have it
	// Bridge is what pods hang on. "" is weft's.
	Bridge string
	// Sysctls is the folder of the sysctls. "" is /proc/sys, which a container
	// often may not write to.
	Sysctls string
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// withDefaults fills in what is not set.
func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Bridge == "" {
		c.Bridge = netdev.BridgeName
	}
	if c.Sysctls == "" {
		c.Sysctls = "/proc/sys"
	}
	return c
}

// How often the engine looks after things.
const (
	checkEvery = 3 * time.Second // whether others changed the kernel's rules
	checkShare = 20              // times what a look took is until the next,
	checkPause = 5 * time.Second // but no longer than this
	retryAfter = 2 * time.Second // when a transaction failed
)

// Engine enforces policies on one node. Make it with New and tell it of the
// cluster from as many goroutines as you like; Run does the work.
type Engine struct {
	// constant
	cfg     Config
	log     *slog.Logger
	kernel  kernel
	metrics *metrics
	cutter  *cutter
	wake    chan struct{} // of one place: pending is not empty
	started atomic.Bool
	queries chan func(*rules.Compiler)
	denied  chan denial
	ended   chan struct{} // closed when Run has returned

	mu         sync.Mutex
	pending    pending // guarded by mu
	enforceErr error   // guarded by mu: why the rules are not enforced, nil if they are

	// Run's goroutine only
	compiler   *rules.Compiler
	expected   map[model.Key]*expectation
	portsStale bool // a pod may have got its port of the bridge
	reporter   *reporter
	synced     bool // the compiler knows the whole cluster
	installed  bool // the kernel has had the compiler's rules
	hooks      hooks
	outOfSync  bool // a transaction failed: the kernel's rules are not known
	logOmitted bool // the kernel cannot log, so rules that log are left out
	// The generation of the kernel's rules that has ours for certain: each
	// transaction, whosever it is, makes the next.
	generation uint32
	nextCheck  time.Time
}

// pending is what the engine was told and has not taken in. It holds the last
// word on each object, so it is never larger than the cluster.
type pending struct {
	pods       map[model.Key]*model.Pod // nil: gone
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

// New makes an engine for the calling thread's network namespace, and has the
// kernel show bridged packets to the rules. Call Close when Run has returned.
func New(cfg Config) (*Engine, error) {
	if cfg.Node == "" {
		return nil, errors.New("enforce policies: the node's name is not known")
	}
	cfg = cfg.withDefaults()
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("enforce policies: open the thread's network namespace: %w", err)
	}
	e, err := newEngine(cfg, &nft{ns: ns, bridge: cfg.Bridge, sysctls: cfg.Sysctls})
	if err != nil {
		ns.Close()
		return nil, err
	}
	return e, nil
}

// newEngine makes an engine for a kernel, which it closes in Close.
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
		pending:    newPending(),
		enforceErr: errors.New("not all pods, namespaces and policies are known yet"),
		expected:   make(map[model.Key]*expectation),
		compiler:   rules.New(model.NewCluster(cfg.Node)),
		reporter:   newReporter(cfg.Log, m),
	}
	e.cutter = newCutter(e)
	return e, nil
}

// Close gives back what New took. The rules stay.
func (e *Engine) Close() error { return e.kernel.close() }

// SetPod tells of a pod, new or changed. What cannot be read of it is logged.
func (e *Engine) SetPod(p *corev1.Pod) {
	pod, err := model.PodOf(p)
	e.reportFault(err)
	e.enqueue(func(p *pending) { p.pods[pod.Key] = pod })
}

// DeletePod tells that a pod is gone.
func (e *Engine) DeletePod(namespace, name string) {
	e.enqueue(func(p *pending) { p.pods[model.Key{Namespace: namespace, Name: name}] = nil })
}

// SetNamespace tells of a namespace, new or changed.
func (e *Engine) SetNamespace(ns *corev1.Namespace) {
	l := labels.Set(ns.Labels)
	if l == nil {
		l = labels.Set{}
	}
	e.enqueue(func(p *pending) { p.namespaces[ns.Name] = l })
}

// DeleteNamespace tells that a namespace is gone.
func (e *Engine) DeleteNamespace(name string) {
	e.enqueue(func(p *pending) { p.namespaces[name] = nil })
}

// SetPolicy tells of a policy, new or changed. What of it cannot be read matches
// nothing, and is logged and counted.
func (e *Engine) SetPolicy(np *networkingv1.NetworkPolicy) {
	policy, err := model.PolicyOf(np)
	e.reportFault(err)
	e.enqueue(func(p *pending) { p.policies[policy.Key] = policy })
}

// DeletePolicy tells that a policy is gone.
func (e *Engine) DeletePolicy(namespace, name string) {
	e.enqueue(func(p *pending) { p.policies[model.Key{Namespace: namespace, Name: name}] = nil })
}

// SetClusterPolicy tells of a policy of the whole cluster, new or changed. What of it cannot be
// read opens nothing, and is logged and counted.
func (e *Engine) SetClusterPolicy(cnp *v1alpha2.ClusterNetworkPolicy) {
	policy, err := model.ClusterPolicyOf(cnp)
	e.reportFault(err)
	e.enqueue(func(p *pending) { p.cluster[policy.Name] = policy })
}

// DeleteClusterPolicy tells that a policy of the whole cluster is gone.
func (e *Engine) DeleteClusterPolicy(name string) {
	e.enqueue(func(p *pending) { p.cluster[name] = nil })
}

// Synced tells that the engine has been told of the whole cluster. Until then the
// rules that an engine before it left in the kernel stay as they are.
func (e *Engine) Synced() { e.enqueue(func(p *pending) { p.synced = true }) }

// Enforced tells why the rules in the kernel are not what they should be, nil if they are.
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

// look has Run take in what there is.
func (e *Engine) wakeRun() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Engine) reportFault(err error) {
	if err != nil {
		e.metrics.errors.Inc()
		e.log.Warn("part of an object is not understood", "err", err)
	}
}

// errStarted is returned by all calls of Run but the first.
var errStarted = errors.New("enforce policies: this engine was started before; make a new one")

// Run enforces until ctx ends. It leaves the rules in the kernel. An Engine runs once.
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
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		look := false
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-retry.C:
		case <-check.C:
			e.check(time.Now())
			look = true // an interface may have come after its pod
		case ask := <-e.queries:
			ask(e.compiler)
			continue
		case d := <-e.denied:
			e.reporter.report(d, e.compiler, time.Now())
			continue
		}
		e.applyPending(look)
		err := e.updateKernel()
		if err != nil {
			e.outOfSync = true
			e.metrics.errors.Inc()
			e.log.Error("policies are not enforced as they should be", "err", err)
			retry.Reset(retryAfter)
		}
		if e.synced {
			e.recordResult(err)
		}
	}
}

// takeIn tells the compiler what the engine was told, and looks for the pods'
// ports if some of them may be new.
func (e *Engine) applyPending(look bool) {
	e.mu.Lock()
	p := e.pending
	e.pending = newPending()
	e.mu.Unlock()
	e.synced = e.synced || p.synced // what was told before that is in p or in the compiler
	for name, l := range p.namespaces {
		if l == nil {
			e.compiler.DeleteNamespace(name)
		} else {
			e.compiler.SetNamespace(name, l)
		}
	}
	for key, pod := range p.pods {
		look = look || e.compiler.Cluster().Local(pod)
		e.compiler.SetPod(key, e.effectivePod(key, pod))
	}
	for key, policy := range p.policies {
		e.compiler.SetPolicy(key, policy)
	}
	for name, policy := range p.cluster {
		e.compiler.SetClusterPolicy(name, policy)
	}
	if look || e.portsStale {
		e.portsStale = false
		e.updatePorts()
	}
}

// findPorts finds out by which ports of the bridge pods are reached.
func (e *Engine) updatePorts() {
	ports, err := e.kernel.ports()
	if err != nil {
		e.reportFault(err)
		return
	}
	e.compiler.SetPorts(ports)
}

// follow makes the kernel have the compiler's rules.
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
		// Others may have removed what the change builds on.
		e.log.Warn("write all rules anew, as a change failed", "err", err)
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

// takeOver writes all rules, unless the kernel has them.
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
		if errors.Is(err, unix.ENOENT) && !e.logOmitted {
			// A rule that logs is refused so where nfnetlink_log cannot be loaded.
			e.log.Warn("denied flows will not be told: the kernel has no nfnetlink_log", "err", err)
			e.logOmitted = true
			e.kernel.omitLogRules(true)
			err = e.kernel.replace(e.compiler.Rules(), want)
		}
		if err != nil {
			e.logOmitted = false // the log was not the reason
			e.kernel.omitLogRules(false)
			return err
		}
		generation++
	}
	e.installed, e.hooks, e.outOfSync, e.generation = true, want, false, generation
	return nil
}

// restricts reports whether a change may forbid what was allowed.
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

// check puts back what others removed, if there was a transaction of others.
func (e *Engine) check(now time.Time) {
	if !e.installed || e.outOfSync || now.Before(e.nextCheck) {
		return
	}
	e.reportFault(e.kernel.showBridged())
	generation, err := e.kernel.generation()
	if err == nil && generation == e.generation {
		return
	}
	var diff string
	if err == nil {
		diff, err = e.kernel.differs(e.compiler.Rules(), e.hooks)
	}
	if err == nil && diff != "" {
		e.log.Warn("others changed the rules of policies; they are written anew", "found", diff)
		err = e.kernel.replace(e.compiler.Rules(), e.hooks)
		generation++
	}
	if err != nil {
		e.outOfSync = true
		e.metrics.errors.Inc()
		e.log.Error("look after the rules of policies", "err", err)
		return
	}
	e.generation = generation
	// Where others change nftables all the time, not all the time goes into this.
	e.nextCheck = now.Add(min(checkShare*time.Since(now), checkPause))
}

// ask runs f with what the engine knows, on its goroutine, and returns when it
// has run. It fails if the engine is not running.
func (e *Engine) ask(ctx context.Context, f func(*rules.Compiler)) error {
	done := make(chan struct{})
	select {
	case e.queries <- func(c *rules.Compiler) { f(c); close(done) }:
		<-done
		return nil
	case <-e.ended:
		return errors.New("ask for policies: they are not enforced any more")
	case <-ctx.Done():
		return ctx.Err()
	}
}
