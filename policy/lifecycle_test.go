package policy

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/api"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reportIsolated reports a pod of the engine's node and a policy that isolates it.
func reportIsolated(e *Engine) {
	e.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	e.SetPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "a-b"},
		Spec:       corev1.PodSpec{NodeName: "n1"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.32.0.1"}}},
	})
	e.SetPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	})
}

// startFake runs an engine over a fake kernel. stop ends it, waits, and returns Run's error.
func startFake(t *testing.T, k *fakeKernel) (e *Engine, stop func() error) {
	t.Helper()
	e, err := newEngine(Config{Node: "n1"}.withDefaults(), k)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	return e, func() error {
		cancel()
		return errors.Join(<-ended, e.Close())
	}
}

// wantEnforced waits until the fake kernel has the engine's rules.
func wantEnforced(t *testing.T, e *Engine, k *fakeKernel) {
	t.Helper()
	synctest.Wait()
	if err := e.Enforced(); err != nil {
		t.Errorf("not enforced: %v", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state != hooked || len(k.chains) == 0 {
		t.Errorf("the kernel has %d chains, hooks %v", len(k.chains), k.state)
	}
}

func TestNoTransactionBeforeSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		e, stop := startFake(t, k)
		reportIsolated(e)
		time.Sleep(time.Minute)
		if k.writes != 0 || e.Enforced() == nil {
			t.Errorf("%d transactions, enforced: %v", k.writes, e.Enforced())
		}
		e.Synced()
		wantEnforced(t, e, k)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestStopBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		e, err := newEngine(Config{Node: "n1"}.withDefaults(), k)
		if err != nil {
			t.Fatal(err)
		}
		reportIsolated(e)
		e.Synced()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
		if k.writes > 1 {
			t.Errorf("%d transactions", k.writes)
		}
		if err := e.Close(); err != nil || !k.closed {
			t.Errorf("close: %v, the kernel is closed: %v", err, k.closed)
		}
	})
}

// An engine that ended neither blocks nor answers.
func TestStoppedEngineRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, stop := startFake(t, newFakeKernel())
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		reportIsolated(e) // as watchers may that have not ended yet
		if _, err := e.ShowPolicy(t.Context(), api.PolicyShowRequest{Pod: "shop/db"}); err == nil {
			t.Error("ask succeeded")
		}
	})
}

func TestEngineRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		e, stop := startFake(t, k)
		synctest.Wait()
		if err := e.Run(t.Context()); !errors.Is(err, errStarted) {
			t.Errorf("a second Run: %v, want %v", err, errStarted)
		}
		reportIsolated(e)
		e.Synced()
		wantEnforced(t, e, k) // by the first call of Run
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// The rules stay when the engine ends, and the next engine finds them up to date.
func TestNextEngineKeepsRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		for range 2 {
			e, stop := startFake(t, k)
			reportIsolated(e)
			e.Synced()
			wantEnforced(t, e, k)
			if err := stop(); err != nil {
				t.Error(err)
			}
			k.closed = false
		}
		if k.writes != 1 {
			t.Errorf("%d transactions, want one: the second engine must change nothing", k.writes)
		}
	})
}

// A transaction that fails is reported, and retried until it succeeds.
func TestFailedTransactionIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		broken := errors.New("no memory")
		k.fail = []error{broken, broken}
		e, stop := startFake(t, k)
		reportIsolated(e)
		e.Synced()
		synctest.Wait()
		if err := e.Enforced(); !errors.Is(err, broken) {
			t.Errorf("Enforced returned %v, want %v", err, broken)
		}
		time.Sleep(2*retryAfter + time.Second)
		wantEnforced(t, e, k)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Without nfnetlink_log policies are enforced, but denials are not logged.
func TestKernelWithoutLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.noLog = true
		e, stop := startFake(t, k)
		reportIsolated(e)
		e.Synced()
		wantEnforced(t, e, k)
		if k.logRules == written {
			t.Error("the log rules were not omitted")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Rules that another program removed are restored within a second. A kernel without changes
// gets no transaction.
func TestFlushedRulesAreRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		e, stop := startFake(t, k)
		reportIsolated(e)
		e.Synced()
		wantEnforced(t, e, k)
		time.Sleep(time.Hour)
		if k.writes != 1 {
			t.Errorf("%d transactions in an hour without a change", k.writes)
		}
		for range 3 {
			k.flush()
			time.Sleep(time.Second)
			wantEnforced(t, e, k)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
