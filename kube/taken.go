package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-net/weft/internal/api"
)

// Pods of a Node whose router was away for long, or whose peer an operator removed, can live on
// while others get their addresses. The router asks for each of them. If the peer that owns it by
// now uses it, it belongs to that peer's pod, and the pod here has to end. The agent writes an
// Event of the pod and deletes it, so that its controller makes another one, with another address.
// If the address is that of the Node itself, the Node gets another one.

// endTaken ends what has an address here that another Node uses, at most once in checkEvery.
func (a *Agent) endTaken(ctx context.Context) error {
	if time.Since(a.askedTaken) < checkEvery {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.cfg.Router.Summary(ctx, api.NoLists)
	if err != nil {
		return nil // the router is starting
	}
	a.askedTaken = time.Now()
	taken := takenAddresses(r)
	if len(taken) == 0 {
		return nil
	}
	return errors.Join(a.hideTaken(ctx, taken, r), a.deleteTaken(ctx, taken))
}

// takenAddresses returns the addresses in use here that other peers use too, and own.
func takenAddresses(r *api.Report) map[netip.Addr]api.Conflict {
	taken := make(map[netip.Addr]api.Conflict)
	for _, u := range []*api.IPAM{r.IPAM, r.IPAM6} {
		if u == nil {
			continue
		}
		for _, c := range u.Conflicts {
			if c.InUse {
				taken[c.Address] = c
			}
		}
	}
	return taken
}

// hideTaken takes such addresses from the Node itself. The next step gets others.
func (a *Agent) hideTaken(ctx context.Context, taken map[netip.Addr]api.Conflict, r *api.Report) error {
	var hide []api.Address
	for _, at := range r.Attachments {
		for _, p := range at.Addresses {
			if _, isTaken := taken[p.Addr()]; isTaken && at.ID == api.Exposed {
				hide = append(hide, api.Address{Kind: api.Exactly, Prefix: p})
			}
		}
	}
	if len(hide) == 0 {
		return nil
	}
	a.exposed = false
	a.cfg.Log.Warn("the Node gets another address in the network for pods, as another Node has it by now", "addrs", hide)
	_, err := a.cfg.Router.Hide(ctx, api.ExposeRequest{Addresses: hide})
	return err
}

// deleteTaken deletes the pods that have such addresses.
func (a *Agent) deleteTaken(ctx context.Context, taken map[netip.Addr]api.Conflict) error {
	self := a.cfg.Settings.NodeName
	pods, err := a.cfg.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{
		ResourceVersion: "0", FieldSelector: fields.OneTermEqualSelector("spec.nodeName", self).String(),
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, pod := range pods.Items {
		i := slices.IndexFunc(pod.Status.PodIPs, func(p corev1.PodIP) bool {
			addr, err := netip.ParseAddr(p.IP)
			_, isTaken := taken[addr]
			return err == nil && isTaken
		})
		ended := pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if i < 0 || ended || pod.Spec.NodeName != self || pod.Spec.HostNetwork {
			continue
		}
		c := taken[netip.MustParseAddr(pod.Status.PodIPs[i].IP)]
		errs = append(errs, a.deletePod(ctx, &pod, c))
	}
	return errors.Join(errs...)
}

// deletePod deletes one pod, and says why.
func (a *Agent) deletePod(ctx context.Context, pod *corev1.Pod, c api.Conflict) error {
	owner := c.NickName
	if owner == "" {
		owner = c.Peer
	}
	a.cfg.Log.Warn("deleting a pod, as another Node has its address by now", "pod", pod.Namespace+"/"+pod.Name, "addr", c.Address, "peer", owner)
	a.notices.say([]runtime.Object{&corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}},
		corev1.EventTypeWarning, reasonTaken, fmt.Sprintf("weft deletes this pod, so that it is made again with another address: while this Node was away, "+
			"its address %s was given to another one on Node %s", c.Address, owner))
	err := a.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is another pod by now
	}
	return err
}
