package policy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/policy/rules"
)

// Messages and attributes of linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = unix.NFNL_SUBSYS_ULOG << 8
	msgConfig = unix.NFNL_SUBSYS_ULOG<<8 + 1

	attrPayload = 9
	attrPrefix  = 10

	configCommand = 1
	configMode    = 2
	configTimeout = 4

	commandBind = 1
	copyPacket  = 2
)

// listen passes logged packets to denial. Policies are enforced without it too, so an error is
// logged and listening is retried.
func (e *Engine) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := e.kernel.denials(ctx, e.denial); err != nil && ctx.Err() == nil {
			e.log.Warn("denied flows are not logged", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Second):
			}
		}
	}
}

// denial passes a logged packet to Run, or counts it if the queue is full.
func (e *Engine) denial(d denial) {
	select {
	case e.denied <- d:
	default:
		e.metrics.unreported.Inc()
	}
}

func (k *nft) denials(ctx context.Context, report func(denial)) error {
	c, err := k.dial()
	if err != nil {
		return fmt.Errorf("open netfilter's log: %w", err)
	}
	defer c.Close()
	if err := bindLog(c, rules.LogGroup); err != nil {
		return fmt.Errorf("join group %d of netfilter's log: %w", rules.LogGroup, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	for {
		messages, err := c.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			continue // The socket buffer was full. The counters of the rules include the lost packets.
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("read netfilter's log: %w", err)
		}
		for _, m := range messages {
			if d, ok := parseLog(m); ok {
				report(d)
			}
		}
	}
}

// bindLog subscribes to the headers of the packets of one group.
func bindLog(c *netlink.Conn, group uint16) error {
	mode := append(binary.BigEndian.AppendUint32(nil, snapLen), copyPacket, 0)
	hundredths := binary.BigEndian.AppendUint32(nil, 10)
	// All in one message, so that no packet arrives in another format.
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: configCommand, Data: []byte{commandBind}},
		{Type: configMode, Data: mode},
		{Type: configTimeout, Data: hundredths},
	})
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(netfilterHeader(unix.AF_UNSPEC, group), attrs...),
	})
	return err
}

// parseLog parses a message of the log. It returns false if the message has no packet.
func parseLog(m netlink.Message) (d denial, ok bool) {
	if m.Header.Type != msgPacket || len(m.Data) < headerSize {
		return d, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[headerSize:])
	if err != nil {
		return d, false
	}
	for ad.Next() {
		switch ad.Type() {
		case attrPrefix:
			d.chain = string(bytes.TrimRight(ad.Bytes(), "\x00"))
		case attrPayload:
			d.flow, d.sport, ok = parsePacket(ad.Bytes())
		}
	}
	return d, ok && ad.Err() == nil
}
