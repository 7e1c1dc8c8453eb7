package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// secretServer is an API server with one Secret. Like a real one it refuses to update another
// version than the present one.
type secretServer struct {
	mu      sync.Mutex
	secret  *corev1.Secret // nil: there is none
	version int
	writes  int
	fail    error // of every request
}

func (s *secretServer) client() *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("*", "secrets", s.react)
	return client
}

func (s *secretServer) react(action clienttesting.Action) (handled bool, ret runtime.Object, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := schema.GroupResource{Resource: "secrets"}
	switch a := action.(type) {
	case clienttesting.UpdateAction:
		to := a.GetObject().(*corev1.Secret)
		if s.fail != nil {
			return true, nil, s.fail
		}
		if s.secret == nil {
			return true, nil, apierrors.NewNotFound(what, "weft-generated")
		}
		if to.ResourceVersion != strconv.Itoa(s.version) {
			return true, nil, apierrors.NewConflict(what, "weft-generated", errors.New("it has been modified"))
		}
		s.secret, s.version, s.writes = to.DeepCopy(), s.version+1, s.writes+1
		return true, s.secret.DeepCopy(), nil
	case clienttesting.GetAction:
		if s.fail != nil {
			return true, nil, s.fail
		}
		if s.secret == nil {
			return true, nil, apierrors.NewNotFound(what, a.GetName())
		}
		got := s.secret.DeepCopy()
		got.ResourceVersion = strconv.Itoa(s.version)
		return true, got, nil
	}
	return true, nil, errors.New("no right to do that")
}

func emptySecret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "weft-generated"}}
}

var passwordSettings = &Settings{Namespace: "kube-system", GeneratedSecret: "weft-generated"}

// All nodes that start at once in a new cluster have the same password, a good one, and it is
// written once.
func TestAllNodesGetTheSamePassword(t *testing.T) {
	const nodes = 200
	s := &secretServer{secret: emptySecret()}
	client := s.client()
	found := make(chan string, nodes)
	var wg sync.WaitGroup
	for range nodes {
		wg.Go(func() {
			p, err := GeneratedPassword(t.Context(), client, passwordSettings, rand.Reader, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
			}
			found <- p
		})
	}
	wg.Wait()
	close(found)
	first := <-found
	if len(first) != 43 || s.writes != 1 || string(s.secret.Data["password"]) != first {
		t.Errorf("the password is %q, and the Secret was written %d times: %q", first, s.writes, s.secret.Data)
	}
	for p := range found {
		if p != first {
			t.Fatalf("two nodes have the passwords %q and %q", first, p)
		}
	}
}

func TestPasswordThatIsThereIsKept(t *testing.T) {
	secret := emptySecret()
	secret.Data = map[string][]byte{"password": []byte("from before"), "other": []byte("x")}
	s := &secretServer{secret: secret}
	if p, err := GeneratedPassword(t.Context(), s.client(), passwordSettings, rand.Reader, slog.New(slog.DiscardHandler)); p != "from before" || err != nil || s.writes != 0 {
		t.Errorf("%q, %v, %d writes", p, err, s.writes)
	}
	delete(secret.Data, "password")
	p, err := GeneratedPassword(t.Context(), s.client(), passwordSettings, rand.Reader, slog.New(slog.DiscardHandler))
	if err != nil || string(s.secret.Data["other"]) != "x" || string(s.secret.Data["password"]) != p {
		t.Errorf("%q, %v; the Secret has %q", p, err, s.secret.Data)
	}
}

// Without the Secret, or without the API server, no router starts: it would be open to everybody.
func TestPasswordIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for what, s := range map[string]*secretServer{
			"apply weft's manifest again": {},
			"no answer":                   {secret: emptySecret(), fail: errors.New("no answer")},
		} {
			var log strings.Builder
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				_, err := GeneratedPassword(ctx, s.client(), passwordSettings, rand.Reader, slog.New(slog.NewTextHandler(&log, nil)))
				ended <- err
			}()
			synctest.Wait()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(log.String(), what) {
				t.Errorf("%s: %v, log %q", what, err, log.String())
			}
		}
		s := &secretServer{}
		found := make(chan string)
		go func() {
			p, err := GeneratedPassword(t.Context(), s.client(), passwordSettings, rand.Reader, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
			}
			found <- p
		}()
		synctest.Wait()
		s.mu.Lock()
		s.secret = emptySecret()
		s.mu.Unlock()
		if p := <-found; p == "" {
			t.Error("no password once the Secret is there")
		}
	})
}

func TestGivesPassword(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		args []string
		want bool
	}{
		{nil, nil, false},
		{map[string]string{"WEFT_PASSWORD": ""}, []string{"--log-level=debug", "--passwords"}, false},
		{map[string]string{"WEFT_PASSWORD": "x"}, nil, true},
		{map[string]string{"WEFT_PASSWORD_FILE": "/x"}, nil, true},
		{nil, []string{"--password-file", "/x"}, true},
		{nil, []string{"--password=x"}, true},
	} {
		s := &Settings{ExtraArgs: c.args}
		if got := s.GivesPassword(func(name string) (string, bool) { v, ok := c.env[name]; return v, ok }); got != c.want {
			t.Errorf("%v %q: %v", c.env, c.args, got)
		}
	}
}
