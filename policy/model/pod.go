package model

import (
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Key names an object of a namespace, or of the whole cluster if Namespace is "".
type Key struct{ Namespace, Name string }

// String returns namespace/name, or the name alone.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Protocol is the number of an IP protocol.
type Protocol uint8

// The protocols that policies support.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the protocol's name, or its number if policies do not support it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(uint8(p))
}

// parseProtocol converts the API's word; "" means TCP.
func parseProtocol(p corev1.Protocol) (Protocol, error) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, nil
	case corev1.ProtocolUDP:
		return UDP, nil
	case corev1.ProtocolSCTP:
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is not TCP, UDP or SCTP", p)
}

// Pod is the part of a pod that policies depend on.
type Pod struct {
	Key
	Node       string
	Labels     labels.Set
	UID        string       // as the kubelet knows it
	Excluded   bool         // policies ignore the pod: it is in the host's network, or has ended
	Addrs      []netip.Addr // none if policies ignore the pod, or it has no address yet
	Ports      []NamedPort
	FromPlugin bool  // Addrs come from the CNI plugin and not from the API server
	Ending     bool  // it is being deleted
	Created    int64 // seconds since 1970
}

// NamedPort is a named port of a container.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// PodOf converts an API object. The error lists the parts that it cannot read; the pod does not
// have them.
func PodOf(p *corev1.Pod) (*Pod, error) {
	pod := &Pod{
		Key:     Key{p.Namespace, p.Name},
		Node:    p.Spec.NodeName,
		Labels:  p.Labels,
		UID:     uidOf(p),
		Ending:  p.DeletionTimestamp != nil,
		Created: p.CreationTimestamp.Unix(),
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		pod.Excluded = true
		return pod, nil
	}
	var errs []error
	addError := func(err error) { errs = append(errs, fmt.Errorf("read pod %s: %w", pod.Key, err)) }
	addrs := p.Status.PodIPs
	if len(addrs) == 0 && p.Status.PodIP != "" {
		addrs = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, a := range addrs {
		addr, err := netip.ParseAddr(a.IP)
		if err != nil {
			addError(err)
			continue
		}
		pod.Addrs = append(pod.Addrs, addr.Unmap().WithZone(""))
	}
	containers := p.Spec.Containers
	for _, c := range p.Spec.InitContainers {
		// An init container with restart policy Always runs next to the containers.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers[:len(containers):len(containers)], c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name == "" {
				continue
			}
			proto, err := parseProtocol(port.Protocol)
			if err == nil && (port.ContainerPort < 1 || port.ContainerPort > 65535) {
				err = fmt.Errorf("port %s: %d is not a port number", port.Name, port.ContainerPort)
			}
			if err != nil {
				addError(err)
				continue
			}
			pod.Ports = append(pod.Ports, NamedPort{port.Name, proto, uint16(port.ContainerPort)})
		}
	}
	return pod, errors.Join(errs...)
}

// uidOf returns the UID by which the kubelet knows a pod. For a static pod the API server has only
// a mirror pod, which has a UID of its own.
func uidOf(p *corev1.Pod) string {
	if uid := p.Annotations[corev1.MirrorPodAnnotationKey]; uid != "" {
		return uid
	}
	return string(p.UID)
}
