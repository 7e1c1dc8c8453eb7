package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
)

// What the log says when pods get no network becomes an Event, once it lasts, and its end too.
func TestNoticesOfANodeThatIsNotReady(t *testing.T) {
	fake := record.NewFakeRecorder(100)
	n := &notices{recorder: fake}
	about := []runtime.Object{&corev1.ObjectReference{Kind: "Node", Name: "self"}}
	now := time.Unix(1000, 0)
	wait := func(d time.Duration, why string) {
		now = now.Add(d)
		n.notReady(about, why, now)
	}
	said := func() (list []string) {
		for {
			select {
			case e := <-fake.Events:
				list = append(list, e)
			default:
				return list
			}
		}
	}
	n.ready(about)
	wait(0, "the router is starting")
	wait(sayAfter-time.Second, "the router is starting")
	n.ready(about)
	if got := said(); len(got) > 0 {
		t.Errorf("a start makes the Events %q", got)
	}
	wait(0, "no ring")
	wait(sayAfter, "no ring")
	wait(time.Minute, "no ring")
	wait(time.Second, "no majority")
	n.ready(about)
	n.ready(about)
	want := []string{
		"Warning WeftNotReady pods get no network on this Node: no ring",
		"Warning WeftNotReady pods get no network on this Node: no majority",
		"Normal WeftReady " + upMessage,
	}
	if got := said(); !slices.Equal(got, want) {
		t.Errorf("Events %q, want %q", got, want)
	}
}

// A warning of the router is said when it comes, and again only after it was gone. However many
// there are, some are said.
func TestNoticesOfWarnings(t *testing.T) {
	fake := record.NewFakeRecorder(100)
	n := &notices{recorder: fake}
	about := []runtime.Object{&corev1.ObjectReference{Kind: "Node", Name: "self"}}
	for _, list := range [][]string{{"a"}, {"a", "b"}, {"b", "a"}, {"b"}, {"a"}, {strings.Repeat("x", 5000)}} {
		n.warn(about, list)
	}
	var got []string
	for range len(fake.Events) {
		e := <-fake.Events
		got = append(got, e[:min(len(e), 25)])
	}
	if want := []string{"Warning WeftWarning a", "Warning WeftWarning b", "Warning WeftWarning a", "Warning WeftWarning xxxxx"}; !slices.Equal(got, want) {
		t.Errorf("Events %q, want %q", got, want)
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprint("warning ", i))
	}
	n.warn(about, many)
	if len(fake.Events) != maxEvents {
		t.Errorf("a thousand warnings make %d Events, want %d", len(fake.Events), maxEvents)
	}
}

// Events are about the Node and the pod of the agent, so that kubectl describe shows them.
func TestEventsOfAnAgent(t *testing.T) {
	s := newScene(t, nil)
	s.router.warns = []string{"the table is full"}
	s.agent.cfg.Settings.PodName, s.agent.cfg.Settings.PodUID = "weft-x", "uid-pod"
	s.run()
	s.until("the Events are there", func() bool {
		list, err := s.client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var about []string
		for _, e := range list.Items {
			if e.Message == "the table is full" && e.Source.Host == "self" {
				about = append(about, fmt.Sprintf("%s/%s/%s/%s", e.Namespace, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.InvolvedObject.UID))
			}
		}
		slices.Sort(about)
		return slices.Equal(about, []string{"default/Node/self/uid-self", "kube-system/Pod/weft-x/uid-pod"})
	})
}
