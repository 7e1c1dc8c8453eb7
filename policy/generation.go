package policy

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// generation returns the number of the last nftables transaction of any program.
func (k *nft) generation() (uint32, error) {
	wrap := func(err error) error { return fmt.Errorf("get the generation of nftables: %w", err) }
	c, err := k.dial()
	if err != nil {
		return 0, wrap(err)
	}
	defer c.Close()
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: netlink.Request,
		},
		Data: netfilterHeader(unix.AF_UNSPEC, 0),
	})
	if err != nil {
		return 0, wrap(err)
	}
	for _, m := range replies {
		if len(m.Data) < headerSize {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[headerSize:])
		if err != nil {
			return 0, wrap(err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), ad.Err()
			}
		}
	}
	return 0, wrap(fmt.Errorf("no generation in %d replies", len(replies)))
}

// headerSize is the length of struct nfgenmsg: family, version, and a 16-bit resource ID in
// network byte order.
const headerSize = 4

func netfilterHeader(family byte, number uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, number)
}
