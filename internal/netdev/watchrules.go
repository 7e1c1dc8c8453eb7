package netdev

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Rules calls changed after tables, chains or rules of nftables changed, including
// those of iptables-nft, until ctx ends. One transaction may cause several calls. It
// also calls it after so many changes at once that the kernel could not report all
// of them.
func (w *Watch) Rules(ctx context.Context, changed func()) error {
	wrap := func(err error) error { return fmt.Errorf("watch rules of nftables: %w", err) }
	var c *netlink.Conn
	err := DoIn(w.ns, func() (err error) {
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
		return err
	})
	if err != nil {
		return wrap(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	for {
		msgs, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
			continue
		case err != nil:
			return wrap(err)
		}
		for _, m := range msgs {
			if changesRules(m) {
				changed()
				break
			}
		}
	}
}

// changesRules reports whether a message is about a table, a chain or a rule.
// Messages about sets come by the thousand and do not matter here.
func changesRules(m netlink.Message) bool {
	t := int(m.Header.Type)
	return t>>8 == unix.NFNL_SUBSYS_NFTABLES && t&0xff <= unix.NFT_MSG_DELRULE
}
