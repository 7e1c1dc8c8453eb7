package keeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// watcher receives the kernel's messages about changes.
type watcher struct {
	what   string
	family int
	groups []uint32
	events func(netlink.HeaderType) owned.Events
}

var routeWatcher = watcher{
	what: "interfaces, addresses and routes", family: unix.NETLINK_ROUTE,
	groups: []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_TC,
	},
	events: func(t netlink.HeaderType) owned.Events {
		switch t {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			return owned.Links
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			return owned.Addrs
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			return owned.Routes
		}
		return owned.Traffic
	},
}

var ruleWatcher = watcher{
	what: "nftables", family: unix.NETLINK_NETFILTER, groups: []uint32{unix.NFNLGRP_NFTABLES},
	events: func(t netlink.HeaderType) owned.Events {
		// Messages about sets come by the thousand and do not matter here.
		if t>>8 == unix.NFNL_SUBSYS_NFTABLES && t&0xff <= unix.NFT_MSG_DELRULE {
			return owned.Tables
		}
		return 0
	},
}

// buffer is the size in bytes of a socket for messages. If they come faster than they are
// read, everything counts as changed.
const buffer = 1 << 20

// run calls changed for each batch of messages until ctx ends.
func (w watcher) run(ctx context.Context, ns netns.NsHandle, changed func(owned.Events)) error {
	c, err := w.dial(ns)
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.what, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	changed(owned.All) // since the objects were made
	for {
		msgs, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed(owned.All)
			continue
		case err != nil:
			return fmt.Errorf("watch %s: %w", w.what, err)
		}
		var e owned.Events
		for _, m := range msgs {
			e |= w.events(m.Header.Type)
		}
		if e != 0 {
			changed(e)
		}
	}
}

// dial opens the socket. DoIn needs no capability if the thread is in ns, unlike the option
// of package netlink.
func (w watcher) dial(ns netns.NsHandle) (c *netlink.Conn, err error) {
	err = netdev.DoIn(ns, func() error {
		if c, err = netlink.Dial(w.family, nil); err != nil {
			return err
		}
		for _, g := range w.groups {
			if err := c.JoinGroup(g); err != nil {
				return errors.Join(err, c.Close())
			}
		}
		// Without the right to a larger buffer, the usual one must do.
		_ = c.SetReadBuffer(buffer)
		return nil
	})
	return c, err
}
