package netdev

import (
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rateLimitedGroup is the interface group of the interfaces with Attachment.RateLimited.
// They have it from the moment they exist: on kernels without TCX, a program of weft
// in a clsact qdisc would make the kernel refuse an ingress qdisc, which implements
// limits.
const rateLimitedGroup = 6784

// unlimited are the queueing disciplines that do not hold frames back. The children
// of mq are listed on their own.
var unlimited = []string{"clsact", "noqueue", "mq"}

// rateLimited returns the interfaces with a queueing discipline that a program
// installed and that may hold frames back. Those of the kernel itself, by
// net.core.default_qdisc, have no handle.
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

// qdiscChanges signals changes of queueing disciplines until done is closed. It
// closes the channel when the messages end.
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
