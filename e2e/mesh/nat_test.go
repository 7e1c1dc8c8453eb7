package mesh

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// translate puts a host behind NAT: only answers to what it sent come in, and outside
// its router has another UDP port.
//
//	table ip translation {
//	  chain in  { type filter hook input priority filter; policy drop
//	    iif lo accept       ct state established,related accept
//	  }
//	  chain out { type nat hook postrouting priority srcnat
//	    udp sport 6783 snat to ADDRESS:PORT
//	  }
//	}
func translate(t *testing.T, lab *testbed.Lab, host int, port uint16) {
	t.Helper()
	err := netdev.Do(lab.Netns(testbed.Place{Host: host}), func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "translation", Family: nftables.TableFamilyIPv4})
		drop := nftables.ChainPolicyDrop
		in := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		accept := &expr.Verdict{Kind: expr.VerdictAccept}
		c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("lo\x00")},
			accept,
		}})
		answers := make([]byte, 4)
		binary.NativeEndian.PutUint32(answers, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
		c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: answers, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			accept,
		}})
		out := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, 6783)},
			&expr.Immediate{Register: 1, Data: testbed.Addr4(host).AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, port)},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
		}})
		return c.Flush()
	})
	if err != nil {
		t.Fatalf("put h%d behind translation: %v", host, err)
	}
}

// Two hosts that nobody can dial get a direct link if a third host sees both.
func TestHostsBehindTranslationGetADirectLink(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	translate(t, lab, 2, 20002)
	translate(t, lab, 3, 20003)
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, testbed.Addr4(1).String())
	harness.Launch(t, lab, 3, testbed.Addr4(1).String())
	direct := func(host int, address string) func() bool {
		return func() bool {
			for _, c := range harness.Report(t, lab, host).Router.Connections {
				if c.Address == address && c.State == api.StateEstablished && strings.Contains(c.Info, "no session of its own") {
					return true
				}
			}
			return false
		}
	}
	harness.Eventually(t, "h2 has a link to h3 at its outer port", direct(2, testbed.Addr4(3).String()+":20003"))
	harness.Eventually(t, "h3 has a link to h2 at its outer port", direct(3, testbed.Addr4(2).String()+":20002"))
	addr := harness.AddContainer(t, lab, 2, "a")[0].Addr()
	harness.AddContainer(t, lab, 3, "b")
	harness.Reach(t, lab, harness.At(3, "b"), addr)
	self := harness.Report(t, lab, 3).Router.Name
	harness.Eventually(t, "the route from h2 to h3 is direct", func() bool {
		return slices.ContainsFunc(harness.Report(t, lab, 2).Router.UnicastRoutes, func(r api.UnicastRoute) bool {
			return r.Dest == self && r.Via == self
		})
	})

	// Frames between h2 and h3 do not pass h1: it sends heartbeats meanwhile, and no
	// bulk.
	relayed := func() (bytes uint64) {
		for _, c := range harness.Report(t, lab, 1).Router.Connections {
			bytes += c.TxBytes
		}
		return bytes
	}
	const pings, size = 100, 1000
	p, err := testbed.NewPinger(lab.Netns(harness.At(3, "b")), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	before := relayed()
	for range pings {
		if _, err := p.Once(size, harness.Timeout); err != nil {
			t.Fatal(err)
		}
	}
	if sent := relayed() - before; sent >= pings*size/2 {
		t.Errorf("h1 sent %d bytes while h2 and h3 exchanged %d bytes in each direction", sent, pings*size)
	}
}
