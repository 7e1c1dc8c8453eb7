package netdev

import (
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// shapedGroup is the group of interfaces that Attachment.Shaped is set for. It is there from the
// moment when the interface is: a program of ours in the clsact qdisc would have the kernel refuse
// an ingress qdisc, which is what limits are made of, on kernels without TCX.
const rateLimitedGroup = 6784

// freely are the queueing disciplines that hold nothing back by themselves. What mq hands frames to
// is listed by itself.
var unlimited = []string{"clsact", "noqueue", "mq"}

// shaped returns the interfaces that have a queueing discipline which somebody put there and which
// may hold frames back. Those that the kernel gives by itself, by net.core.default_qdisc, have no
// handle.
func (w *Watch) rateLimited() (map[int]bool, error) {
	list, err := Dump(func() ([]netlink.Qdisc, error) { return w.h.QdiscList(nil) })
	if err != nil {
		return nil, err
	}
	shaped := make(map[int]bool)
	for _, q := range list {
		if a := q.Attrs(); a.Handle != 0 && !slices.Contains(unlimited, q.Type()) {
			shaped[a.LinkIndex] = true
		}
	}
	return shaped, nil
}

// disciplines tells of changes of queueing disciplines until done is closed; a closed channel says
// that the messages ended.
func qdiscChanges(done <-chan struct{}) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-done:
		case <-ended:
		}
		s.Close()
	}()
	changes := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		defer close(changes)
		for {
			if _, _, err := s.Receive(); err != nil {
				return
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes, nil
}
