package kube

import (
	"slices"
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

// notices says as Events of the Node and of the agent's own pod what only the log and weft
// status say otherwise: kubelets do not show why a probe fails. Make it with newNotices. It is
// for one goroutine.
type notices struct {
	recorder record.EventRecorder
	stop     func()

	since  time.Time // pods have had no network; zero if they have
	said   string    // why, in the last Event; "" if there was none since
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
	if now.Sub(n.since) >= sayAfter && n.said != why {
		n.said = why
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

// warn says those of the warnings of weft status that are new.
func (n *notices) warn(about []runtime.Object, warnings []string) {
	said := 0
	for _, w := range warnings {
		if !slices.Contains(n.warned, w) && said < maxEvents {
			said++
			n.say(about, corev1.EventTypeWarning, reasonWarning, w)
		}
	}
	n.warned = slices.Clone(warnings)
}

func (n *notices) say(about []runtime.Object, kind, reason, text string) {
	for _, o := range about {
		n.recorder.Event(o, kind, reason, text[:min(len(text), maxEvent)])
	}
}

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
