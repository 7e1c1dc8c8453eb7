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

	"github.com/weft-net/weft/internal/count"
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
	wait(time.Second, "no majority (2 of 5 voters, next try in 1m0s)")
	wait(time.Second, "no majority (2 of 5 voters, next try in 59.5s)")
	wait(time.Second, "no majority (1 of 5 voters, next try in 1h2m3s)")
	n.ready(about)
	n.ready(about)
	want := []string{
		"Warning WeftNotReady pods get no network on this Node: no ring",
		"Warning WeftNotReady pods get no network on this Node: no majority (2 of 5 voters, next try in 1m0s)",
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

// Warnings with counters and times are said once, in full. When another one comes that only
// differs in its numbers, such as that of another peer, it is said too.
func TestNoticesOfWarningsWithNumbers(t *testing.T) {
	fake := record.NewFakeRecorder(100)
	n := &notices{recorder: fake}
	about := []runtime.Object{&corev1.ObjectReference{Kind: "Node", Name: "self"}}
	for i := range 30 {
		list := []string{
			fmt.Sprintf("frames were lost (%d times, last 15:04:%02d)", 3+i, i),
			count.Of(1+i, "frame was", "frames were") + " dropped, and they came again " + count.Of(1+i, "time", "times"),
			fmt.Sprintf("the disk has %d.%d KB left", 1000-i, i),
			fmt.Sprintf("the lease of host-1 ends in %v", 70*time.Second-time.Duration(i)*time.Second),
		}
		if i >= 10 {
			list = append(list, "the lease of host-2 ends in 1h0m0s", "192.0.2.1 does not answer", "192.0.2.2 does not answer")
		}
		n.warn(about, list)
	}
	n.warn(about, []string{strings.Repeat("é", maxEvent/2-1) + "x€"})
	var got []string
	for range len(fake.Events) {
		got = append(got, <-fake.Events)
	}
	want := []string{
		"Warning WeftWarning frames were lost (3 times, last 15:04:00)",
		"Warning WeftWarning 1 frame was dropped, and they came again 1 time",
		"Warning WeftWarning the disk has 1000.0 KB left",
		"Warning WeftWarning the lease of host-1 ends in 1m10s",
		"Warning WeftWarning the lease of host-2 ends in 1h0m0s",
		"Warning WeftWarning 192.0.2.1 does not answer",
		"Warning WeftWarning 192.0.2.2 does not answer",
		"Warning WeftWarning " + strings.Repeat("é", maxEvent/2-1) + "x",
	}
	if !slices.Equal(got, want) {
		t.Errorf("Events %q, want %q", got, want)
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
