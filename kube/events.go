package kube

import (
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Reasons of Events.
const (
	reasonNotReady = "WeftNotReady" // pods get no network on this Node
	reasonReady    = "WeftReady"    // after that
	reasonWarning  = "WeftWarning"  // a warning of weft status
	reasonTaken    = "WeftAddressTaken"
)

const (
	// sayAfter is how long pods have had no network when that is said: longer than a router
	// needs to start.
	sayAfter = 10 * time.Second
	// maxEvent is the length of a message in bytes, which the API server limits to 1,024.
	maxEvent = 1000
	// maxEvents bounds the warnings that are said at once.
	maxEvents = 10
)

// notices writes to Events of the Node and of the agent's own pod what otherwise only the log
// and weft status show: kubelets do not show why a probe fails. Make it with newNotices. It is
// for one goroutine.
//
// A text that only differs in its numbers from an earlier one is not new: many of them have a
// counter, an amount or a time, and the library drops all Events of an object that has too many.
type notices struct {
	recorder record.EventRecorder
	stop     func()

	since  time.Time // pods have had no network; zero if they have
	said   string    // why, in the last Event, without numbers; "" if there was none since
	warned []string  // the present warnings
}

// newNotices returns notices that write Events to the API server until close is called. The
// library joins Events that repeat, and drops them if there are too many.
func newNotices(client kubernetes.Interface, node string) *notices {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return &notices{recorder: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weft", Host: node}), stop: b.Shutdown}
}

func (n *notices) close() { n.stop() }

// notReady says why pods get no network, once that lasts.
func (n *notices) notReady(about []runtime.Object, why string, now time.Time) {
	if n.since.IsZero() {
		n.since = now
	}
	if key := withoutNumbers(why); now.Sub(n.since) >= sayAfter && n.said != key {
		n.said = key
		n.say(about, corev1.EventTypeWarning, reasonNotReady, "pods get no network on this Node: "+why)
	}
}

// ready says that pods get a network, if it was said that they did not.
func (n *notices) ready(about []runtime.Object) {
	if n.said != "" {
		n.say(about, corev1.EventTypeNormal, reasonReady, upMessage)
	}
	n.since, n.said = time.Time{}, ""
}

// warn says those of the warnings of weft status that are new. Of those that only differ in
// their numbers, as many are new as there are more than before.
func (n *notices) warn(about []runtime.Object, warnings []string) {
	more := make(map[string]int)
	for _, w := range warnings {
		more[withoutNumbers(w)]++
	}
	for _, w := range n.warned {
		more[withoutNumbers(w)]--
	}
	said := 0
	for _, w := range warnings {
		if key := withoutNumbers(w); !slices.Contains(n.warned, w) && more[key] > 0 && said < maxEvents {
			said++
			more[key]--
			n.say(about, corev1.EventTypeWarning, reasonWarning, w)
		}
	}
	n.warned = slices.Clone(warnings)
}

func (n *notices) say(about []runtime.Object, kind, reason, text string) {
	text = strings.ToValidUTF8(text[:min(len(text), maxEvent)], "")
	for _, o := range about {
		n.recorder.Event(o, kind, reason, text)
	}
}

// number matches numbers, times, durations and addresses, such as 7, 1,024, 15:04:05 and 1m30,
// what is before them, and the words behind them that differ between one thing and many: 1 frame
// was, 2 frames were. Numbers in names, such as host-1, are no numbers.
var number = regexp.MustCompile(`(^|[^0-9A-Za-z_-])[0-9]+([.,:hms]+[0-9]+)*( [a-z]+( (was|were|is|are|has|have)\b)?)?`)

func withoutNumbers(text string) string { return number.ReplaceAllString(text, "${1}#") }

// about returns what Events of this agent are about: the Node, and its own pod if its name is
// known.
func (a *Agent) about() (list []runtime.Object) {
	s := a.cfg.Settings
	if n, err := a.nodes.Get(s.NodeName); err == nil {
		list = append(list, &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID})
	}
	if s.PodName != "" {
		list = append(list, &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: s.Namespace, Name: s.PodName, UID: s.PodUID})
	}
	return list
}
