package firewall

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Kernel is the Source of the calling thread's network namespace. It reads each chain once, so
// it is for one look, at any number of packets. It never reads a whole set: blocklists have
// many thousands of addresses, so it asks the kernel about single elements.
type Kernel struct {
	conn   *nftables.Conn
	chains []*nftables.Chain
	rules  map[chainName][]*nftables.Rule
	sets   map[setName]*nftables.Set // nil if not known
}

type setName struct {
	family     nftables.TableFamily
	table, set string
}

// NewKernel returns a Kernel. It needs no Close.
func NewKernel() (*Kernel, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Kernel{conn: c, rules: make(map[chainName][]*nftables.Rule), sets: make(map[setName]*nftables.Set)}, nil
}

// Chains implements Source.
func (k *Kernel) Chains() (_ []*nftables.Chain, err error) {
	if k.chains == nil {
		k.chains, err = k.conn.ListChains()
	}
	return k.chains, err
}

// Rules implements Source.
func (k *Kernel) Rules(c *nftables.Chain) ([]*nftables.Rule, error) {
	if rules, known := k.rules[nameOf(c)]; known {
		return rules, nil
	}
	rules, err := k.conn.GetRules(c.Table, c)
	if err == nil {
		k.rules[nameOf(c)] = rules
	}
	return rules, err
}

// Contains implements Source. A set with an element for all other keys is not known.
func (k *Kernel) Contains(t *nftables.Table, set string, key []byte) (found, known bool) {
	name := setName{t.Family, t.Name, set}
	s, asked := k.sets[name]
	if !asked {
		s, _ = k.conn.GetSetByName(t, set) // nil if it was removed meanwhile
		k.sets[name] = s
	}
	if s == nil || s.Interval || s.Concatenation {
		return false, false
	}
	err := ask(name, netlink.Attribute{Type: unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED, Data: attributes(netlink.Attribute{Type: unix.NFTA_DATA_VALUE, Data: key})})
	if err == nil {
		return true, true
	}
	if !errors.Is(err, unix.ENOENT) {
		return false, false // its keys have another size, for example
	}
	// Linux before 5.13 has no such elements, and misses the key.
	err = ask(name, netlink.Attribute{Type: unix.NFTA_SET_ELEM_FLAGS, Data: binaryutil.BigEndian.PutUint32(catchAll)})
	return false, errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}

// catchAll is NFT_SET_ELEM_CATCHALL of linux/netfilter/nf_tables.h.
const catchAll = 2

// ask asks the kernel for an element of a set. The error is ENOENT if there is none.
func ask(set setName, element netlink.Attribute) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer c.Close()
	list := attributes(netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: attributes(element)})
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: netlink.Request},
		Data: append([]byte{byte(set.family), unix.NFNETLINK_V0, 0, 0}, attributes(
			netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(set.table + "\x00")},
			netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set.set + "\x00")},
			netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED, Data: list},
		)...),
	})
	return err
}

// attributes encodes attributes. Their names and keys came from the kernel and are short.
func attributes(list ...netlink.Attribute) []byte {
	b, err := netlink.MarshalAttributes(list)
	if err != nil {
		panic(err)
	}
	return b
}
